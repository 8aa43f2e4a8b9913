//! An engine of its own with a registry of its own, and a reader who types.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;

use crate::cluster::books::images::{Layers, Registry, missing};
use crate::cluster::stage::Live;
use crate::support::{eventually, skipped};

/// The bridge of the engine's own choice.
const BRIDGE: &str = "barque0";
/// Where version 1 mounts its hierarchies.
pub(super) const GROUPS: &str = "/sys/fs/cgroup";
/// The image of the book's server, and that of its memory program.
pub(super) const SERVER: &str = "packtworkshops/the-kubernetes-workshop:k8s-for-beginners";
pub(super) const MEMORY: &str = "packtworkshops/the-kubernetes-workshop:memconsumer";

/// One engine at a time.
static TURN: Mutex<()> = Mutex::new(());

pub(super) struct Stage {
    pub(super) directory: tempfile::TempDir,
    pub(super) registry: Registry,
    /// Groups that were there before.
    groups: Vec<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    pub(super) fn open(test: &str) -> Option<Self> {
        Self::open_with(test, None)
    }

    /// The same with more in its configuration. `None`: it cannot be had on this machine.
    pub(super) fn open_with(test: &str, more: Option<&str>) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped(&format!("{test}: containers need root"));
            return None;
        }
        if let Some(program) = missing() {
            skipped(&format!("{test}: {program} is not there"));
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new().prefix("it-containers").tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let registry = Registry::start("127.0.0.1");
        put_images(&registry, &Layers::make(directory.path()));
        fs::create_dir(directory.path().join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_barque"), directory.path().join("bin/docker")).unwrap();
        let path = |name: &str| directory.path().join(name);
        let images = json!({"registries": {"docker.io": {"mirrors": [registry.address.to_string()]}}});
        let text = format!(
            "dataDir: {}\nrunDir: {}\nimages: {images}\n{}",
            path("data").display(),
            path("run").display(),
            more.unwrap_or_default()
        );
        fs::write(path("engine.yaml"), text).unwrap();
        Some(Self { directory, registry, groups: own_groups(), _turn: turn })
    }

    /// A line that the reader types.
    pub(super) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        let bin = self.directory.path().join("bin");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-c", line]).current_dir(self.directory.path()).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", bin.display()));
        command.env("BARQUE_ENGINE", self.directory.path().join("engine.yaml"));
        command
    }

    /// An engine beside this one that has nothing, as a variable before a line.
    pub(super) fn another(&self) -> String {
        let path = |name: &str| self.directory.path().join(name);
        let text = format!(
            "dataDir: {}\nrunDir: {}\nbridgeName: barque1\nbridgeRange: 172.27.0.0/16\n",
            path("other-data").display(),
            path("other-run").display()
        );
        fs::write(path("other.yaml"), text).unwrap();
        format!("BARQUE_ENGINE={}", path("other.yaml").display())
    }

    pub(super) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What a line that works prints, without the last end of line.
    pub(super) fn prints(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    /// What a line says on standard error that ends with this code.
    pub(super) fn refuses(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a container in the background; its id.
    pub(super) fn detached(&self, line: &str) -> String {
        let id = self.prints(line);
        let is_id = id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(is_id, "{line}: {id:?}");
        id
    }

    pub(super) fn terminal(&self, line: &str) -> (Live, fs::File) {
        Live::on_terminal(self.command(line))
    }

    /// One field of a container.
    pub(super) fn about(&self, container: &str, field: &str) -> String {
        self.prints(&format!("docker inspect --format '{{{{{field}}}}}' {container}"))
    }

    pub(super) fn pid(&self, container: &str) -> u32 {
        self.about(container, ".State.Pid").parse().unwrap()
    }

    /// Waits until curl gets something; what.
    pub(super) fn curl(&self, address: &str) -> String {
        let host = address.split('/').next().unwrap().to_owned();
        eventually(|| TcpStream::connect(&host).ok());
        self.prints(&format!("curl -s {address}"))
    }

    /// Lines of `docker ps` without the header.
    pub(super) fn rows(&self, line: &str) -> Vec<String> {
        let text = self.prints(line);
        let mut lines = text.lines().map(str::to_owned);
        let header = lines.next().unwrap();
        let columns: Vec<&str> = header.split("   ").map(str::trim).filter(|name| !name.is_empty()).collect();
        let wanted = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
        assert_eq!(columns, wanted, "{header:?}");
        lines.collect()
    }

    pub(super) fn clean(&self) {
        let all = self.prints("docker ps -aq");
        if !all.is_empty() {
            assert_eq!(self.prints("docker rm -f $(docker ps -aq)"), all);
        }
        assert_eq!(self.prints("docker ps -aq"), "");
        self.holds_nothing();
    }

    /// No container, no process, address, link, group or writable layer of one is there.
    pub(super) fn holds_nothing(&self) {
        let entries = |path: &str| -> Vec<String> {
            let dir = self.directory.path().join(path);
            let entries =
                fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
            entries.iter().map(|entry| entry.file_name().into_string().unwrap()).collect()
        };
        assert_eq!(entries("data/containers"), ["lock"]);
        for dir in ["data/network/addresses", "run/runtime/containers", "run/runtime/sandboxes"] {
            assert_eq!(entries(dir), [""; 0], "{dir}");
        }
        let links = self.prints("ip -o link show master barque0 2>/dev/null; true");
        assert_eq!(links, "", "links of containers");
        for parent in own_groups() {
            let below = fs::read_dir(&parent).unwrap().flatten().filter(|entry| entry.path().is_dir());
            let below: Vec<_> = below.map(|entry| entry.path()).collect();
            assert!(below.is_empty(), "{below:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = self.directory.path().to_str().unwrap();
        assert!(!mounts.contains(root), "{mounts}");
    }

    pub(super) fn data(&self, path: &str) -> PathBuf {
        self.directory.path().join("data").join(path)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _left = self.run("docker rm -f $(docker ps -aq)");
        let _gone = self.run(&format!("ip link del {BRIDGE}"));
        if self.directory.path().join("other.yaml").exists() {
            let other = self.another();
            let _left =
                self.run(&format!("export {other}; docker rm -f $(docker ps -aq); ip link del barque1"));
        }
        for group in own_groups().iter().filter(|group| !self.groups.contains(group)) {
            let _left = fs::remove_dir(group);
        }
    }
}

/// The engine's groups in every hierarchy.
fn own_groups() -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(GROUPS).into_iter().flatten().flatten();
    let groups =
        hierarchies.flat_map(|entry| ["docker", "docker-sandboxes"].map(|name| entry.path().join(name)));
    groups.filter(|path| path.is_dir()).collect()
}

/// The books' images, of the binary under test and this machine's programs.
fn put_images(registry: &Registry, layers: &Layers) {
    let named =
        |shown: &str, words: &str| json!({"Cmd": ["bash", "-c", format!("exec -a {shown} /barque {words}")]});
    let shell = |text: &str| json!({"Cmd": ["sh", "-c", text]});
    let page = "<html><title>Welcome to nginx!</title></html>";
    let mut nginx =
        shell(&format!("echo '{page}' > /usr/share/nginx/html/index.html; echo serving; exec nginx"));
    nginx["ExposedPorts"] = json!({"80/tcp": {}});
    let mut redis = named("redis-server", "demo keys");
    redis["ExposedPorts"] = json!({"6379/tcp": {}});
    let images = [
        ("library/nginx:latest", nginx),
        ("library/redis:latest", redis),
        ("library/hello-world:latest", shell("echo 'Hello from Docker!'; echo 'This message is a test.'")),
        ("library/alpine:3.10", json!({"Cmd": ["sh"]})),
        ("library/fedora:latest", json!({"Cmd": ["bash"]})),
        ("nicolaka/netshoot:latest", json!({"Cmd": ["bash"]})),
        ("library/k8s-for-beginners:v0.0.1", named("/k8s-for-beginners", "demo pings")),
        (SERVER, named("/k8s-for-beginners", "demo pings")),
        (MEMORY, named("/memconsumer", "demo memory")),
        ("student/pageview:v0.0.1", named("/pageview", "demo counter")),
        ("student/pageview:v0.0.2", named("/pageview", "demo counter --store db:6379")),
    ];
    for (name, about) in images {
        registry.put(name, layers, about);
    }
}

/// Whether a port of this machine can be listened at.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok()
}

/// The number of a namespace of this process, which is the host's.
pub(super) fn host_namespace(kind: &str) -> String {
    namespace(std::process::id(), kind)
}

/// The number of a namespace of a process.
pub(super) fn namespace(pid: u32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// Types a line.
pub(super) fn types(mut terminal: &fs::File, line: &str) {
    terminal.write_all(format!("{line}\r").as_bytes()).unwrap();
}

pub(super) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}
