//! Pods that plugins connect: made-up ones whose every call is seen, and Debian's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use node::CniConfig;
use serde_json::{Value, json};

use crate::Test;
use crate::control::{Authority, Control};
use crate::host::{Host, eventually, pod, run};
use crate::host_ports::get;

pub(crate) const TESTS: &[Test] = &[
    ("cni::plugins_connect_pods_in_turn_and_take_them_down", || {
        run(plugins_connect_pods_in_turn_and_take_them_down())
    }),
    ("cni::what_an_agent_had_begun_is_taken_down_by_the_next", || {
        run(what_an_agent_had_begun_is_taken_down_by_the_next())
    }),
    ("cni::debians_plugins_connect_pods", || run(debians_plugins_connect_pods())),
];

/// Writes down how it is called. ADD fails while there is a file `fail`; it gives every pod the same address.
const PLUGIN: &str = r#"#!/bin/sh
dir=$(dirname "$0")
tr -d '\n' > "$dir/given"
printf '{"command": "%s", "plugin": "%s", "link": "%s", "id": "%s", "args": "%s", "netns": "%s", "given": %s}\n' \
    "$CNI_COMMAND" "$(basename "$0")" "$CNI_IFNAME" "$CNI_CONTAINERID" "$CNI_ARGS" "$CNI_NETNS" "$(cat "$dir/given")" >> "$dir/calls"
if [ "$CNI_COMMAND" = ADD ]; then
    if [ -e "$dir/fail" ] && [ "$(basename "$0")" = second ]; then
        echo '{"cniVersion": "1.0.0", "code": 11, "msg": "no cable", "details": "try another"}'
        exit 1
    fi
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.5/24"}], "by": "'"$(basename "$0")"'"}'
fi
"#;

/// A host whose pods are connected by made-up plugins.
async fn plugged() -> (Host, Control, PathBuf) {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    let dir = host.dir.path().join("cni");
    fs::create_dir(&dir).unwrap();
    for name in ["first", "second"] {
        fs::write(dir.join(name), PLUGIN).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    host.config.pod_network.cni =
        Some(CniConfig { conf_dir: dir.join("net.d"), bin_dirs: vec![dir.clone()] });
    control.lead(1, &host.pod_cidr);
    (host, control, dir)
}

fn configure(dir: &Path, network: &Value) {
    fs::create_dir_all(dir.join("net.d")).unwrap();
    fs::write(dir.join("net.d/10-test.conflist"), network.to_string()).unwrap();
}

fn chain() -> Value {
    json!({"cniVersion": "1.0.0", "name": "test", "plugins": [
        {"type": "first", "capabilities": {"ipRanges": true}},
        {"type": "second", "capabilities": {"portMappings": true}},
    ]})
}

fn calls(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("calls")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Which plugins were called for what, from the `from`th call on.
fn words(dir: &Path, from: usize) -> Vec<String> {
    let word =
        |call: &Value| format!("{} {}", call["command"].as_str().unwrap(), call["plugin"].as_str().unwrap());
    calls(dir)[from..].iter().map(word).collect()
}

async fn plugins_connect_pods_in_turn_and_take_them_down() {
    let (mut host, control, dir) = plugged().await;
    host.start();
    // Nothing to connect with: it is said, and tried again.
    control.put(&pod("web", &["serve"], |pod| {
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 18080}]);
    }));
    let said = |word: &str| control.heard().said_of("web").iter().any(|said| said.contains(word));
    eventually("it says that there is no network", || said("no network configuration in"));
    configure(&dir, &json!({"cniVersion": "1.0.0", "name": "test", "type": "first"}));
    eventually("it says that nobody makes ports", || said("add the plugin portmap"));
    assert!(calls(&dir).is_empty(), "a network that will not do is not begun");
    fs::write(dir.join("fail"), "").unwrap();
    configure(&dir, &chain());
    eventually("it says what the plugin said", || {
        said("plugin type=\"second\" failed (add): no cable; try another")
    });
    fs::remove_file(dir.join("fail")).unwrap();
    let (_, status) = control.running("web-uid").await;
    assert_eq!(status.pod_ip.as_deref(), Some("10.77.0.5"));

    // What had been begun was taken down before it was begun again.
    let all = words(&dir, 0);
    let turns: Vec<&[String]> = all.chunks(4).collect();
    let (last, before) = turns.split_last().unwrap();
    assert_eq!(*last, ["ADD first", "ADD second"]);
    for turn in before {
        assert_eq!(*turn, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    }
    let made = calls(&dir);
    let [first, second] = &made[made.len() - 2..] else { panic!("two plugins") };
    assert_eq!((&first["link"], &first["id"]), (&json!("eth0"), &json!("web-uid")));
    let args = first["args"].as_str().unwrap();
    assert!(args.contains("K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"), "{args}");
    assert_eq!(first["given"]["runtimeConfig"], json!({"ipRanges": [[{"subnet": host.pod_cidr}]]}));
    assert_eq!(first["given"]["prevResult"], Value::Null);
    assert_eq!(
        second["given"]["runtimeConfig"]["portMappings"],
        json!([{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}])
    );
    assert_eq!(second["given"]["prevResult"]["by"], "first");

    // Another network is for other pods; this one is taken down by those who connected it.
    configure(&dir, &json!({"cniVersion": "1.0.0", "name": "other", "type": "missing"}));
    let count = made.len();
    control.delete("web-uid", 0);
    control.gone("web-uid").await;
    assert_eq!(words(&dir, count), ["DEL second", "DEL first"]);
    let down = &calls(&dir)[count];
    assert_eq!(
        (&down["given"]["name"], &down["given"]["prevResult"]["by"]),
        (&json!("test"), &json!("second"))
    );
    control.put(&pod("lost", &["serve"], |_| {}));
    let said = |word: &str| control.heard().said_of("lost").iter().any(|said| said.contains(word));
    eventually("it says that the plugin is nowhere", || said("failed to find plugin \"missing\" in path"));
    // A plugin that is nowhere has made nothing, and cannot take anything down either.
    fs::copy(dir.join("first"), dir.join("missing")).unwrap();
    control.delete("lost-uid", 0);
    control.gone("lost-uid").await;
    host.finish().await;
}

async fn what_an_agent_had_begun_is_taken_down_by_the_next() {
    let (mut host, control, dir) = plugged().await;
    configure(&dir, &chain());
    host.start();
    for name in ["stays", "goes"] {
        control.put(&pod(name, &["serve"], |_| {}));
        control.running(&format!("{name}-uid")).await;
    }
    host.stop().await;
    control.remove("goes-uid");
    let count = calls(&dir).len();
    host.start();
    eventually("the one is taken down", || words(&dir, count) == ["DEL second", "DEL first"]);
    assert_eq!(calls(&dir)[count]["id"], "goes-uid");
    control.delete("stays-uid", 0);
    control.gone("stays-uid").await;
    assert_eq!(words(&dir, count + 2), ["DEL second", "DEL first"]);
    host.finish().await;
}

/// Where the plugins of this machine are.
fn plugins() -> Option<PathBuf> {
    let named = std::env::var_os("CNI_PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&named).chain(["/usr/lib/cni".into(), "/opt/cni/bin".into()]);
    dirs.into_iter().find(|dir| ["bridge", "host-local"].iter().all(|name| dir.join(name).is_file()))
}

async fn debians_plugins_connect_pods() {
    let Some(plugins) = plugins() else {
        eprintln!(
            "skipped: cni::debians_plugins_connect_pods: no plugins in CNI_PATH, /usr/lib/cni, /opt/cni/bin"
        );
        return;
    };
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    let (dir, bridge) = (host.dir.path().join("cni"), host.config.bridge_name.clone());
    let addresses = dir.join("addresses");
    let network = json!({"cniVersion": "1.0.0", "name": "debian", "plugins": [
        {
            "type": "bridge", "bridge": bridge, "isGateway": true, "hairpinMode": true,
            "capabilities": {"ipRanges": true},
            "ipam": {"type": "host-local", "dataDir": addresses, "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}},
    ]});
    configure(&dir, &network);
    host.config.pod_network.cni = Some(CniConfig { conf_dir: dir.join("net.d"), bin_dirs: vec![plugins] });
    control.lead(1, &host.pod_cidr);
    host.start();
    let mut served = Vec::new();
    for name in ["one", "two"] {
        control.put(&pod(name, &["serve"], |_| {}));
        let (_, status) = control.running(&format!("{name}-uid")).await;
        let address = format!("{}:8080", status.pod_ip.unwrap());
        assert!(address.starts_with(host.pod_cidr.trim_end_matches("0/24")), "{address}");
        eventually("it serves", || get(&address).is_some());
        served.push(address);
    }
    assert_ne!(served[0], served[1]);
    // The agent goes and comes; what plugins made stays.
    host.stop().await;
    assert!(get(&served[0]).is_some());
    host.start();
    control.delete("one-uid", 0);
    control.gone("one-uid").await;
    assert_eq!(get(&served[0]), None);
    assert!(get(&served[1]).is_some(), "the other pod is as it was");
    let kept = |address: &str| addresses.join("debian").join(address.trim_end_matches(":8080")).exists();
    assert!(!kept(&served[0]) && kept(&served[1]), "the address of the pod that is gone is free");
    control.delete("two-uid", 0);
    control.gone("two-uid").await;
    assert!(!kept(&served[1]));
    let veths = || {
        let links = runtime::net::Netlink::open().unwrap().links().unwrap();
        links.into_iter().filter(|link| link.name.starts_with("veth")).count()
    };
    assert_eq!(veths(), 0);
    host.finish().await;
}
