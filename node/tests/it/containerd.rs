//! containerd, where this machine has it: a daemon of its own for a test, which pulls from the test's registry and
//! gives sandboxes addresses with the usual network plugins. `PATH` says where it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::net::UnixStream;

use crate::host::PATIENCE;
use crate::registry::Registry;

/// What it needs beside itself.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "runc"];
/// Where distributions put network plugins.
const PLUGIN_DIRS: [&str; 3] = ["lib/cni", "libexec/cni", "../opt/cni/bin"];
pub(crate) const POD_RANGE: &str = "10.251.0.0/24";

/// A running daemon.
pub(crate) struct Containerd {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    path: PathBuf,
}

/// Why there is none on this machine, or where its network plugins are.
pub(crate) fn find() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Some(absent) = PROGRAMS.iter().find(|name| !dirs.iter().any(|dir| dir.join(name).exists())) {
        return Err(format!("no {absent} on PATH"));
    }
    let prefixes = dirs.iter().filter_map(|dir| dir.parent());
    let mut plugins = prefixes.flat_map(|prefix| PLUGIN_DIRS.map(|dir| prefix.join(dir)));
    plugins.find(|dir| dir.join("bridge").exists()).ok_or_else(|| "no network plugins (CNI)".to_owned())
}

impl Containerd {
    pub(crate) async fn start(registry: &Registry, plugins: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("barque-containerd-").tempdir().unwrap();
        registry.put_program_with("pause:1", &[], json!({"Entrypoint": ["/barque", "work", "rest"]}));
        let networks = dir.path().join("networks");
        fs::create_dir(&networks).unwrap();
        let network = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "ctd0", "isGateway": true, "promiscMode": false,
             "ipam": {"type": "host-local", "dataDir": dir.path().join("leases"),
                      "ranges": [[{"subnet": POD_RANGE}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        ]});
        fs::write(networks.join("10-pods.conflist"), network.to_string()).unwrap();
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{pause}\"\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
             stream_server_address = \"127.0.0.1\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {plugins:?}\nconf_dir = {networks:?}\n",
            root = dir.path().join("root"),
            state = dir.path().join("state"),
            socket = dir.path().join("c.sock"),
            pause = registry.name("pause:1"),
        );
        let path = dir.path().join("config.toml");
        fs::write(&path, config).unwrap();
        let mut containerd = Self { dir, daemon: None, path };
        containerd.begin().await;
        containerd
    }

    pub(crate) async fn begin(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&self.path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).await.is_err() {
            assert!(Instant::now() < end, "containerd does not begin to serve: {}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    /// Kills the first process of every sandbox.
    pub(crate) fn kill_pauses(&self) {
        let pauses: Vec<i32> = commands("/barque\0work\0rest");
        assert!(!pauses.is_empty());
        pauses.into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Stops it and asserts that no sandbox is left.
    pub(crate) fn finish(mut self) {
        let state = self.dir.path().join("state");
        let tasks = state.join("io.containerd.runtime.v2.task/k8s.io");
        let left: Vec<_> = fs::read_dir(tasks).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left in containerd: {left:?}");
        self.stop();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd said:\n{}", self.log());
        }
        if self.daemon.is_some() {
            self.stop();
        }
        let own = self.dir.path().to_str().unwrap().to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            let Some(point) = line.split(' ').nth(4).filter(|point| point.starts_with(&own)) else {
                continue;
            };
            let _gone = umount2(point, MntFlags::MNT_DETACH);
        }
        // Sandboxes of a test that failed: their shims name the directory of their bundle.
        for pid in commands(&own) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The processes in whose command line a text stands.
fn commands(text: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        pid.filter(|_| String::from_utf8_lossy(&line).contains(text))
    });
    processes.collect()
}
