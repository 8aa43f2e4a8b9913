//! Other runtimes: an OCI bundle, and the command lines of `runc` and `crun`, which are the same.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

/// What every container of the comparison is told.
pub(crate) struct Work<'a> {
    /// The directory that is its root filesystem.
    pub(crate) rootfs: &'a Path,
    /// Program and arguments.
    pub(crate) args: &'a [String],
    /// The process whose network, IPC and host name it shares, as the containers of a pod do.
    pub(crate) pause: i32,
    /// Its cgroup, from the controllers' roots.
    pub(crate) cgroup: &'a str,
    /// Limits.
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_shares: u64,
}

/// A runtime with a command line.
pub(crate) struct OciRuntime {
    program: PathBuf,
    /// Its state, and the bundles.
    directory: PathBuf,
}

impl OciRuntime {
    pub(crate) fn new(program: &Path, directory: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(directory.join("state"))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { program: program.to_owned(), directory })
    }

    /// Writes a container's bundle.
    pub(crate) fn prepare(&self, id: &str, work: &Work<'_>) -> anyhow::Result<()> {
        let bundle = self.bundle(id);
        fs::create_dir_all(&bundle).with_context(|| format!("cannot create {}", bundle.display()))?;
        let config = serde_json::to_vec(&config(work)).context("a configuration is plain data")?;
        fs::write(bundle.join("config.json"), config).context("cannot write a bundle's configuration")?;
        Ok(())
    }

    /// Makes and starts it, as containerd's shim would: two commands.
    pub(crate) fn start(&self, id: &str) -> anyhow::Result<()> {
        let bundle = self.bundle(id);
        let file = |name: &str| File::create(bundle.join(name)).context("cannot create an output file");
        let create = ["create".as_ref(), "--bundle".as_ref(), bundle.as_os_str(), id.as_ref()];
        // The container inherits both, so they must not be pipes that are read to their end here.
        self.run(&create, file("output")?.into(), file("errors")?.into())
            .with_context(|| fs::read_to_string(bundle.join("errors")).unwrap_or_default())?;
        self.run(&["start".as_ref(), id.as_ref()], Stdio::null(), Stdio::piped())
    }

    /// What it has printed.
    pub(crate) fn output(&self, id: &str) -> String {
        fs::read_to_string(self.bundle(id).join("output")).unwrap_or_default()
    }

    /// Ends and removes it.
    pub(crate) fn delete(&self, id: &str) -> anyhow::Result<()> {
        self.run(&["delete".as_ref(), "--force".as_ref(), id.as_ref()], Stdio::null(), Stdio::piped())
    }

    /// Whether it can be executed at all.
    pub(crate) fn is_there(&self) -> bool {
        let mut version = Command::new(&self.program);
        let status = version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    fn run(&self, args: &[&std::ffi::OsStr], stdout: Stdio, stderr: Stdio) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.directory.join("state")).args(args);
        let output = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
        let output = output.and_then(std::process::Child::wait_with_output);
        let output = output.with_context(|| format!("cannot execute {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {args:?}: {} {said}", self.program.display(), output.status);
        Ok(())
    }
}

/// What `runc spec` would write, for a container that joins a pod.
fn config(work: &Work<'_>) -> Value {
    let capabilities = runtime::CAPABILITIES_DEFAULT.map(|name| format!("CAP_{name}"));
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let join =
        |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", work.pause)});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": work.args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": work.rootfs, "readonly": false},
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"},
                join("network", "net"), join("ipc", "ipc"), join("uts", "uts"),
            ],
            "cgroupsPath": work.cgroup,
            "resources": {
                "memory": {"limit": work.memory_bytes},
                "cpu": {"shares": work.cpu_shares},
            },
            "maskedPaths": runtime::default_masked_paths(),
            "readonlyPaths": runtime::default_readonly_paths(),
        },
    })
}
