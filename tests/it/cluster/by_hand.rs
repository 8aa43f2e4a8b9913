//! Three masters and a node as an operator sets them up: a configuration file and a token each, on hosts of
//! their own (network namespaces here), masters started in any order.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use runtime::net::{NetNs, Netlink, Prefix, Route, VethPair, netns, sysctl};
use serde_json::{Value, json};

use super::first_pod::{hello, run_pod};
use super::{PATIENCE, TURN, measured, skipped};

const BRIDGE: &str = "bqhand";
const ROUTER: &str = "router";
pub(super) const CGROUP: &str = "barque-by-hand";
/// A host's name and address.
pub(super) type Host = (&'static str, &'static str);
/// The node is the last.
pub(super) const HOSTS: [Host; 4] =
    [("m1", "10.88.77.11"), ("m2", "10.88.77.12"), ("m3", "10.88.77.13"), ("n1", "10.88.77.21")];

/// Hosts with their processes, those of one network on one bridge, and a router between the networks that knows nothing
/// else; all of it goes when this is dropped.
pub(super) struct Hosts {
    hosts: &'static [Host],
    directory: tempfile::TempDir,
    processes: Vec<(String, Child)>,
}

/// What an operator hands out.
pub(super) struct Given {
    /// The file of the masters' token.
    pub(super) token: PathBuf,
    /// A node's token.
    pub(super) join_token: String,
    /// An administrator's file.
    pub(super) kubeconfig: PathBuf,
}

impl Hosts {
    pub(super) fn make(hosts: &'static [Host]) -> Self {
        let made = Self { hosts, directory: tempfile::tempdir().unwrap(), processes: Vec::new() };
        let router = netns::create(&netns_name(ROUTER)).unwrap();
        let mut machine = Netlink::open().unwrap();
        for network in made.networks() {
            let bridge = bridge(network);
            machine.add_bridge(&bridge).unwrap();
            machine.add_address(&bridge, prefix(&format!("{network}.254"))).unwrap();
            machine.set_up(&bridge).unwrap();
            // The router's links are named as their bridges.
            connect(&mut machine, network, &router, (&format!("{bridge}r"), &bridge), &gateway(network));
        }
        sysctl::set_in(&router, "net.ipv4.ip_forward", "1").unwrap();
        for (name, address) in hosts {
            let namespace = netns::create(&netns_name(name)).unwrap();
            let network = network_of(address);
            let link = format!("bqh-{name}");
            let mut inside = connect(&mut machine, network, &namespace, (&link, "eth0"), address);
            inside.set_up("lo").unwrap();
            let router = gateway(network).parse().unwrap();
            inside.replace_route(&Route::via(Prefix::DEFAULT_V4, router)).unwrap();
        }
        made
    }

    /// The first three bytes of each network.
    fn networks(&self) -> BTreeSet<&'static str> {
        self.hosts.iter().map(|(_, address)| network_of(address)).collect()
    }

    /// Makes tokens, and a kubeconfig for a master's `host:port`.
    pub(super) fn given(&self, server: &str) -> Given {
        let token = self.keep("control.token", &["token", "create", "--role", "control"]);
        let node = self.keep("node.token", &["token", "create", "--role", "node", "--from", text(&token)]);
        let args = ["kubeconfig", "create", "--from", text(&token), "--server", server];
        let kubeconfig = self.keep("kubeconfig", &args);
        let join_token = fs::read_to_string(node).unwrap().trim().to_owned();
        Given { token, join_token, kubeconfig }
    }

    /// The configuration of a node that joins by token.
    pub(super) fn node(&self, name: &str, given: &Given, masters: &[&str]) -> Value {
        let (_, address) = self.hosts.iter().find(|(host, _)| *host == name).unwrap();
        json!({
            "nodeName": name,
            "dataDir": self.path(name),
            "runDir": self.path(&format!("{name}-run")),
            "controlAddresses": masters,
            "joinToken": given.join_token,
            "internalIp": address,
            "cgroupRoot": format!("{CGROUP}/{name}"),
            "clusterName": "by-hand",
            "failSwapOn": false,
            // How full the machine's own disk is must not matter to a test.
            "evictionHard": {"memory.available": "100Mi"},
            "builtinImage": true,
        })
    }

    /// Waits until there are so many nodes and all are Ready, and returns them.
    pub(super) async fn until_ready(&self, client: &mut Client, count: usize) -> Vec<Value> {
        let started = Instant::now();
        let is_ready = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.clone().any(|it| it["type"] == "Ready" && it["status"] == "True")
        };
        loop {
            let nodes = client.get("/api/v1/nodes").await.unwrap_or_default();
            let items = nodes["items"].as_array().cloned().unwrap_or_default();
            if items.len() == count && items.iter().all(is_ready) {
                return items;
            }
            assert!(started.elapsed() < PATIENCE, "not all are Ready: {nodes:#}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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

    /// Starts `barque control`, `barque node` or `barque cri` on a host, with a configuration file.
    pub(super) fn start(&mut self, host: &str, role: &str, config: &Value) {
        self.start_with(host, role, config, &[]);
    }

    /// The same; `flags` come after the file.
    fn start_with(&mut self, host: &str, role: &str, config: &Value, flags: &[&str]) {
        let file = self.path(&format!("{host}-{role}.yaml"));
        // JSON is YAML too.
        fs::write(&file, config.to_string()).unwrap();
        let args = ["--config", text(&file)].iter().chain(flags).map(|word| (*word).to_owned()).collect();
        self.launch(host, role, args);
    }

    /// Starts it without any file: each key is a flag.
    fn start_by_flags(&mut self, host: &str, role: &str, config: &Value) {
        let keys = config.as_object().unwrap().iter();
        let args = keys.flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]).collect();
        self.launch(host, role, args);
    }

    fn launch(&mut self, host: &str, role: &str, args: Vec<String>) {
        let log =
            fs::File::options().create(true).append(true).open(self.path(&format!("{host}.log"))).unwrap();
        let namespace = NetNs::open_named(&netns_name(host)).unwrap();
        let role = role.to_owned();
        let started = namespace.run(move || {
            Command::new(env!("CARGO_BIN_EXE_barque"))
                .arg(role)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
        });
        self.processes.push((host.to_owned(), started.unwrap().unwrap()));
    }

    /// Kills what runs on a host.
    pub(super) fn kill(&mut self, host: &str) {
        for (_, mut process) in self.processes.extract_if(.., |(place, _)| place == host) {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(super) fn logs(&self) -> String {
        let logs = self.hosts.iter().map(|(name, _)| {
            let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            format!("== {name}\n{text}")
        });
        logs.collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for (_, process) in &mut self.processes {
            // They may have ended; what is left shows as a namespace that cannot be removed.
            let _ = process.kill();
            let _ = process.wait();
        }
        // Pods outlive their agents.
        let directory = text(self.directory.path()).to_owned();
        let is_own = |pid: i32| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let group = format!("/{CGROUP}/");
            String::from_utf8_lossy(&read("cmdline")).contains(&directory)
                || String::from_utf8_lossy(&read("cgroup")).contains(&group)
        };
        let own = || processes().into_iter().filter(|pid| is_own(*pid)).collect::<Vec<_>>();
        let deadline = Instant::now() + PATIENCE;
        while !own().is_empty() && Instant::now() < deadline {
            for pid in own() {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for place in mounted.filter(|place| place.starts_with(&directory)).collect::<Vec<_>>().iter().rev() {
            let _ = nix::mount::umount2(*place, nix::mount::MntFlags::MNT_DETACH);
        }
        for name in self.hosts.iter().map(|(name, _)| *name).chain([ROUTER]) {
            let _ = netns::delete(&netns_name(name));
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_cgroup(&controller.path().join(CGROUP));
        }
        if let Ok(mut host) = Netlink::open() {
            for (name, _) in self.hosts {
                let _ = host.delete_link(&format!("bqh-{name}"));
            }
            for network in self.networks() {
                let _ = host.delete_link(&bridge(network));
            }
        }
    }
}

/// All processes of this machine.
fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
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

pub(super) fn netns_name(host: &str) -> String {
    format!("bqhand-{host}")
}

/// Gives a namespace a link to a network, with an address; the names are the link's on this machine, and inside.
fn connect(
    machine: &mut Netlink,
    network: &str,
    namespace: &NetNs,
    (outside, inside): (&str, &str),
    address: &str,
) -> Netlink {
    let pair = VethPair {
        name: outside,
        peer_name: inside,
        peer_netns: Some(namespace),
        mtu: None,
        master: Some(&bridge(network)),
        up: true,
    };
    machine.add_veth(pair).unwrap();
    let mut netlink = Netlink::open_in(namespace).unwrap();
    netlink.add_address(inside, prefix(address)).unwrap();
    netlink.set_up(inside).unwrap();
    netlink
}

/// The first three bytes of an address.
fn network_of(address: &str) -> &str {
    address.rsplit_once('.').unwrap().0
}

/// The router's address in a network.
fn gateway(network: &str) -> String {
    format!("{network}.1")
}

/// The bridge of a network.
fn bridge(network: &str) -> String {
    format!("{BRIDGE}{}", network.rsplit_once('.').unwrap().1)
}

fn prefix(address: &str) -> Prefix {
    Prefix::new(address.parse::<IpAddr>().unwrap(), 24).unwrap()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn master(hosts: &Hosts, name: &str, token: &Path) -> Value {
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
    let mut hosts = Hosts::make(&HOSTS);
    let masters = HOSTS.map(|(_, address)| format!("{address}:6443"));
    let masters: Vec<&str> = masters[..3].iter().map(String::as_str).collect();
    let given = hosts.given(masters[0]);

    // The node first, and the masters with time between them: nobody waits for an order.
    let node = hosts.node("n1", &given, &masters);
    hosts.start_with("n1", "node", &node, &["--set", "maxPods=17", "--set", "labels.disk=ssd"]);
    for name in ["m3", "m1", "m2"] {
        let config = master(&hosts, name, &given.token);
        match name {
            "m1" => hosts.start_by_flags(name, "control", &config),
            _ => hosts.start(name, "control", &config),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    let started = Instant::now();
    let mut client = Client::from_kubeconfig(&given.kubeconfig).unwrap();
    let nodes = hosts.until_ready(&mut client, 1).await;
    assert_eq!(nodes[0]["status"]["capacity"]["pods"], "17");
    assert_eq!(nodes[0]["metadata"]["labels"]["disk"], "ssd");
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
