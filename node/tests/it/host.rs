//! A throw-away host: directories, an agent that can be stopped and started, and the assertion that nothing
//! is left.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use node::{BackoffConfig, Config};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::control::{Authority, Control};

/// Longer than anything takes here, even on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The image that every test host has.
pub(crate) const IMAGE: &str = "barque/hello:1.0";

static NEXT: AtomicU32 = AtomicU32::new(1);

/// An agent in a process of its own: `agent <configuration file>`.
pub(crate) fn agent(mut args: impl Iterator<Item = OsString>) -> ! {
    let config = Config::load(Path::new(&args.next().unwrap())).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(node::run(config, CancellationToken::new())).unwrap();
    unreachable!("nobody asked the agent to stop")
}

/// Puts this process, still single-threaded, into a network of its own.
pub(crate) fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    runtime::net::Netlink::open().unwrap().set_up("lo").unwrap();
}

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) pod_cidr: String,
    /// Says that the host goes down.
    pub(crate) power: CancellationToken,
    agent: Option<(JoinHandle<Result<(), node::Error>>, CancellationToken)>,
}

impl Host {
    /// A host that will join these replicas.
    pub(crate) fn new(authority: &Authority, replicas: &[&Control]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix(&format!("barque-node-{}-", std::process::id()))
            .tempdir()
            .unwrap();
        let path = |name: &str| dir.path().join(name);
        let exe = std::env::current_exe().unwrap();
        let yaml = serde_json::json!({
            "nodeName": format!("node{number}"),
            "dataDir": path("data"),
            "runDir": path("run"),
            "controlAddresses": replicas.iter().map(|r| r.address.to_string()).collect::<Vec<_>>(),
            "joinToken": authority.token(),
            "internalIp": "127.0.0.1",
            "cgroupRoot": format!("/barque-node-test/{}-{number}", std::process::id()),
            "shimCommand": [exe.to_str().unwrap(), "shim"],
            "bridgeName": format!("br{number}"),
            "builtinImage": true,
            "builtinBinary": exe,
            "heartbeatInterval": "100ms",
            "metricsInterval": "250ms",
            "failSwapOn": false,
        });
        let mut config = Config::parse(&yaml.to_string()).unwrap();
        config.restart_backoff = BackoffConfig {
            initial: Duration::from_millis(200),
            max: Duration::from_millis(800),
            reset_after: Duration::from_secs(600),
        };
        config.image_backoff = config.restart_backoff;
        // How full the machine's own disk is must not matter to a test.
        config.eviction_hard = [("memory.available".to_owned(), "100Mi".to_owned())].into();
        Self {
            dir,
            config,
            pod_cidr: format!("10.{}.{number}.0/24", 100 + number % 100),
            power: CancellationToken::new(),
            agent: None,
        }
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) {
        let shutdown = CancellationToken::new();
        self.power = CancellationToken::new();
        let task = tokio::spawn(node::run_until(self.config.clone(), shutdown.clone(), self.power.clone()));
        self.agent = Some((task, shutdown));
    }

    /// Starts the agent in a process of its own.
    pub(crate) fn spawn(&self) -> AgentProcess {
        let path = self.dir.path().join("config.yaml");
        fs::write(&path, serde_json::to_vec(&self.config).unwrap()).unwrap();
        // Its command line must not name the host's directory: what does so is counted as left over.
        let mut command = Command::new(std::env::current_exe().unwrap());
        AgentProcess(command.current_dir(self.dir.path()).args(["agent", "config.yaml"]).spawn().unwrap())
    }

    /// Whether the agent has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.agent.as_ref().is_none_or(|(task, _)| task.is_finished())
    }

    /// Stops the agent as a signal does.
    pub(crate) async fn stop(&mut self) {
        let (task, shutdown) = self.agent.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(PATIENCE, task).await.expect("the agent stops").unwrap().unwrap();
    }

    /// Stops the agent, and asserts that nothing of it is left.
    pub(crate) async fn finish(mut self) {
        self.stop().await;
        self.assert_clean();
    }

    /// The host's containers, looked at past the agent.
    fn runtime(&self) -> runtime::Runtime {
        let config = runtime::RuntimeConfig {
            state_dir: self.config.run_dir.join("runtime"),
            shim_command: self.config.shim_command.iter().map(Into::into).collect(),
            cgroup_root: self.config.cgroup_root.trim_start_matches('/').into(),
            every_hierarchy: false,
        };
        runtime::Runtime::new(config).unwrap()
    }

    /// How many containers the host runs.
    pub(crate) fn containers(&self) -> usize {
        self.runtime().list().unwrap().len()
    }

    /// The first processes of the containers that run.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let containers = self.runtime().list().unwrap().into_iter();
        let process = |state| match state {
            runtime::ContainerState::Running { process, .. } => Some(process.pid),
            _ => None,
        };
        containers.filter_map(|container| process(container.state)).collect()
    }

    /// Mounts, links, addresses, records and directories of pods that are still there.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let dir = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut left: Vec<String> =
            mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect();
        for sub in [
            "data/pods",
            "data/network/addresses",
            "data/network/cni",
            "data/users",
            "data/logs/pods",
            "data/logs/containers",
            "run/runtime/containers",
            "run/runtime/sandboxes",
        ] {
            left.extend(entries(&self.dir.path().join(sub)).iter().map(|path| path.display().to_string()));
        }
        let links = runtime::net::Netlink::open().unwrap().links().unwrap();
        left.extend(links.into_iter().map(|link| link.name).filter(|name| name.starts_with("vb")));
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            for level in ["besteffort", "burstable", ""] {
                let groups = hierarchy.join(self.config.cgroup_root.trim_start_matches('/')).join("kubepods");
                let pods = entries(&groups.join(level)).into_iter();
                let is_pod = |path: &PathBuf| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    path.is_dir() && name.starts_with("pod")
                };
                left.extend(pods.filter(is_pod).map(|path| path.display().to_string()));
            }
        }
        left
    }

    /// No mount, process, cgroup, link, address or pod directory.
    pub(crate) fn assert_clean(&self) {
        let left = self.leftovers();
        assert!(left.is_empty(), "left: {left:#?}");
        let dir = self.dir.path().to_str().unwrap();
        eventually("all processes are gone", || processes_naming(dir).is_empty());
        self.remove_cgroups();
    }

    /// Removes the host's own groups; a group of a pod in them would make that fail.
    fn remove_cgroups(&self) {
        let root = self.config.cgroup_root.trim_start_matches('/');
        let mut hierarchies: Vec<PathBuf> = entries(Path::new("/sys/fs/cgroup"));
        hierarchies.push("/sys/fs/cgroup".into());
        for hierarchy in hierarchies {
            let own = hierarchy.join(root);
            for sub in ["kubepods/besteffort", "kubepods/burstable", "kubepods", ""] {
                let group = own.join(sub);
                if group.is_dir() {
                    fs::remove_dir(&group).unwrap_or_else(|e| panic!("{}: {e}", group.display()));
                }
            }
            drop(fs::remove_dir(hierarchy.join("barque-node-test")));
        }
    }
}

/// An agent in a process of its own; it ends with this handle, by SIGKILL.
pub(crate) struct AgentProcess(Child);

impl AgentProcess {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A test that failed leaves nothing behind either.
impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some((task, shutdown)) = self.agent.take() {
            // It must not make anew what is removed below.
            shutdown.cancel();
            let end = Instant::now() + PATIENCE;
            while !task.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let runtime = self.runtime();
        for sandbox in runtime.sandboxes().unwrap_or_default() {
            drop(runtime.delete_sandbox(&sandbox.id));
        }
        let mut netlink = runtime::net::Netlink::open().unwrap();
        for link in netlink.links().unwrap_or_default() {
            if link.name.starts_with("vb") {
                drop(netlink.delete_link(&link.name));
            }
        }
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            remove_groups(&hierarchy.join(self.config.cgroup_root.trim_start_matches('/')));
        }
    }
}

fn remove_groups(group: &Path) {
    for child in entries(group).into_iter().filter(|path| path.is_dir()) {
        remove_groups(&child);
    }
    drop(fs::remove_dir(group));
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect()
}

fn processes_naming(text: &str) -> Vec<PathBuf> {
    let names = |path: &PathBuf| {
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(text)
    };
    entries(Path::new("/proc")).into_iter().filter(names).collect()
}

pub(crate) fn eventually(what: &str, question: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !question() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A pod of one container named `c` that does some work; `change` may make it another.
pub(crate) fn pod(name: &str, work: &[&str], change: impl FnOnce(&mut serde_json::Value)) -> Pod {
    let command: Vec<&str> = ["/barque", "work"].iter().chain(work).copied().collect();
    let mut pod = serde_json::json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("{name}-uid"), "labels": {"app": name}},
        "spec": {
            "nodeName": "node1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

/// Runs a test on an async runtime.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
    runtime.shutdown_timeout(Duration::from_secs(1));
}
