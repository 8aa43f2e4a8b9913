//! Three masters and a node as an operator sets them up: a configuration file and a token each, on hosts of
//! their own (network namespaces here), masters started in any order.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use runtime::net::{NetNs, Netlink, Prefix, Route, VethPair, netns};
use serde_json::json;

use super::first_pod::{hello, run_pod};
use super::{PATIENCE, TURN, measured, skipped};

const BRIDGE: &str = "bqhand";
pub(super) const CGROUP: &str = "barque-by-hand";
const GATEWAY: &str = "10.88.77.1";
/// Each host's name and address; the node is the last.
pub(super) const HOSTS: [(&str, &str); 4] =
    [("m1", "10.88.77.11"), ("m2", "10.88.77.12"), ("m3", "10.88.77.13"), ("n1", "10.88.77.21")];

/// Hosts on a bridge, with one process each; all of it goes when this is dropped.
pub(super) struct Hosts {
    directory: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Hosts {
    pub(super) fn make() -> Self {
        let hosts = Self { directory: tempfile::tempdir().unwrap(), processes: Vec::new() };
        let mut host = Netlink::open().unwrap();
        host.add_bridge(BRIDGE).unwrap();
        host.add_address(BRIDGE, prefix(GATEWAY)).unwrap();
        host.set_up(BRIDGE).unwrap();
        for (name, address) in HOSTS {
            let namespace = netns::create(&netns_name(name)).unwrap();
            host.add_veth(VethPair {
                name: &format!("bqh-{name}"),
                peer_name: "eth0",
                peer_netns: Some(&namespace),
                mtu: None,
                master: Some(BRIDGE),
                up: true,
            })
            .unwrap();
            let mut inside = Netlink::open_in(&namespace).unwrap();
            inside.add_address("eth0", prefix(address)).unwrap();
            inside.set_up("eth0").unwrap();
            inside.set_up("lo").unwrap();
            inside.replace_route(&Route::via(Prefix::DEFAULT_V4, GATEWAY.parse().unwrap())).unwrap();
        }
        hosts
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a command of the binary prints, kept in a file as an operator would.
    pub(super) fn keep(&self, file: &str, args: &[&str]) -> PathBuf {
        let output = Command::new(env!("CARGO_BIN_EXE_barque")).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = self.path(file);
        fs::write(&path, output.stdout).unwrap();
        path
    }

    /// Starts `barque control`, `barque node` or `barque cri` on a host.
    pub(super) fn start(&mut self, host: &str, role: &str, config: &serde_json::Value) {
        let file = self.path(&format!("{host}-{role}.yaml"));
        // JSON is YAML too.
        fs::write(&file, config.to_string()).unwrap();
        let log =
            fs::File::options().create(true).append(true).open(self.path(&format!("{host}.log"))).unwrap();
        let namespace = NetNs::open_named(&netns_name(host)).unwrap();
        let role = role.to_owned();
        let started = namespace.run(move || {
            Command::new(env!("CARGO_BIN_EXE_barque"))
                .args([&role, "--config"])
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
        });
        self.processes.push(started.unwrap().unwrap());
    }

    pub(super) fn logs(&self) -> String {
        let logs = HOSTS.iter().map(|(name, _)| {
            let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            format!("== {name}\n{text}")
        });
        logs.collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // They may have ended; what is left shows as a namespace that cannot be removed.
            let _ = process.kill();
            let _ = process.wait();
        }
        for (name, _) in HOSTS {
            let _ = netns::delete(&netns_name(name));
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_cgroup(&controller.path().join(CGROUP));
        }
        if let Ok(mut host) = Netlink::open() {
            for (name, _) in HOSTS {
                let _ = host.delete_link(&format!("bqh-{name}"));
            }
            let _ = host.delete_link(BRIDGE);
        }
    }
}

/// Removes an empty cgroup with everything below it.
fn remove_cgroup(directory: &Path) {
    for below in fs::read_dir(directory).into_iter().flatten().flatten() {
        if below.path().is_dir() {
            remove_cgroup(&below.path());
        }
    }
    // What is still in use stays, and the next run meets it.
    let _ = fs::remove_dir(directory);
}

fn netns_name(host: &str) -> String {
    format!("bqhand-{host}")
}

fn prefix(address: &str) -> Prefix {
    Prefix::new(address.parse::<IpAddr>().unwrap(), 24).unwrap()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn master(hosts: &Hosts, name: &str, token: &Path) -> serde_json::Value {
    let address = |host: &str| HOSTS.iter().find(|(name, _)| *name == host).unwrap().1;
    json!({
        "name": name,
        "dataDir": hosts.path(name),
        "tokenFile": token,
        "listenAddress": "0.0.0.0:6443",
        "initialMembers": {
            "m1": format!("{}:6443", address("m1")),
            "m2": format!("{}:6443", address("m2")),
            "m3": format!("{}:6443", address("m3")),
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_masters_started_in_any_order_and_a_node_that_joins_by_token() {
    if skipped("three_masters_started_in_any_order_and_a_node_that_joins_by_token") {
        return;
    }
    let _turn = TURN.lock().await;
    let mut hosts = Hosts::make();
    let token = hosts.keep("control.token", &["token", "create", "--role", "control"]);
    let node_token = hosts.keep("node.token", &["token", "create", "--role", "node", "--from", text(&token)]);
    let server = format!("{}:6443", HOSTS[0].1);
    let kubeconfig =
        hosts.keep("kubeconfig", &["kubeconfig", "create", "--from", text(&token), "--server", &server]);

    // The node first, and the masters with time between them: nobody waits for an order.
    let join_token = fs::read_to_string(&node_token).unwrap().trim().to_owned();
    let node = json!({
        "nodeName": "n1",
        "dataDir": hosts.path("n1"),
        "runDir": hosts.path("n1-run"),
        "controlAddresses": HOSTS[..3].iter().map(|(_, address)| format!("{address}:6443")).collect::<Vec<_>>(),
        "joinToken": join_token,
        "internalIp": HOSTS[3].1,
        "cgroupRoot": format!("{CGROUP}/n1"),
        "clusterName": "by-hand",
        "failSwapOn": false,
        "evictionHard": {"memory.available": "100Mi"},
        "builtinImage": true,
    });
    hosts.start("n1", "node", &node);
    for name in ["m3", "m1", "m2"] {
        let config = master(&hosts, name, &token);
        hosts.start(name, "control", &config);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    let started = Instant::now();
    let mut client = Client::from_kubeconfig(&kubeconfig).unwrap();
    loop {
        let nodes = client.get("/api/v1/nodes").await.unwrap_or_default();
        let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True") {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "the node is not Ready: {nodes:#}\n{}", hosts.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    measured(&format!("by hand: the last master started to the node Ready: {:?}", started.elapsed()));
    run_pod(&mut client, &hello("by-hand", None)).await;

    let path = "/api/v1/namespaces/default/pods/by-hand";
    client.request(http::Method::DELETE, path, None).await.unwrap();
    let asked = Instant::now();
    while client.get(path).await.is_ok() {
        assert!(asked.elapsed() < PATIENCE, "the pod does not go away\n{}", hosts.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
