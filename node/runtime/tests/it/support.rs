//! A throw-away host for tests: a state directory, an image of one layer, a runtime, and the assertion
//! that nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use runtime::{
    CgroupSpec, ContainerSpec, ContainerState, Exit, LogSpec, ProcessSpec, RootfsSpec, Runtime,
    RuntimeConfig, SandboxSpec,
};
use tempfile::TempDir;

/// Longer than anything takes here, even on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) runtime: Runtime,
    pub(crate) cgroup_root: PathBuf,
}

impl Host {
    pub(crate) fn new() -> Host {
        let dir = tempfile::Builder::new().prefix("barque-runtime-").tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup_root = PathBuf::from(format!("barque-runtime-test/{}-{number}", std::process::id()));
        let runtime = Runtime::new(config(dir.path(), &cgroup_root)).unwrap();
        Host { dir, runtime, cgroup_root }
    }

    /// A second runtime over the same state, as a restarted agent has it.
    pub(crate) fn restarted(&self) -> Runtime {
        Runtime::new(config(self.dir.path(), &self.cgroup_root)).unwrap()
    }

    pub(crate) fn sandbox_spec(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.to_owned(),
            hostname: format!("host-{id}"),
            cgroup: CgroupSpec { path: format!("pod-{id}").into(), ..CgroupSpec::default() },
            ..SandboxSpec::default()
        }
    }

    pub(crate) fn sandbox(&self, id: &str) -> runtime::Sandbox {
        self.runtime.create_sandbox(&self.sandbox_spec(id)).unwrap()
    }

    /// A container that does some work (see `workload`) in a sandbox.
    pub(crate) fn spec(&self, id: &str, sandbox: &str, work: &[&str]) -> ContainerSpec {
        let files = self.dir.path().join("files").join(id);
        let logs = self.dir.path().join("logs");
        fs::create_dir_all(&logs).unwrap();
        let args = ["/bin/workload", "work"].iter().chain(work).map(|arg| (*arg).to_owned());
        ContainerSpec {
            id: id.to_owned(),
            sandbox: sandbox.to_owned(),
            rootfs: RootfsSpec {
                lower_dirs: vec![image().to_owned()],
                upper: files.join("upper"),
                work: files.join("work"),
                merged: files.join("merged"),
                ..RootfsSpec::default()
            },
            process: ProcessSpec { args: args.collect(), ..ProcessSpec::default() },
            masked_paths: runtime::default_masked_paths(),
            readonly_paths: runtime::default_readonly_paths(),
            cgroup: CgroupSpec { path: format!("pod-{sandbox}/{id}").into(), ..CgroupSpec::default() },
            log: Some(LogSpec::new(logs.join(format!("{id}.log")))),
            ..ContainerSpec::default()
        }
    }

    pub(crate) fn start(&self, spec: &ContainerSpec) -> runtime::Started {
        match self.runtime.start_container(spec) {
            Ok(started) => started,
            Err(error) => panic!("{}: {error}", spec.id),
        }
    }

    /// Runs a container to its end: how it ended and what it printed on standard output.
    pub(crate) fn run(&self, spec: &ContainerSpec) -> (Exit, String) {
        self.start(spec);
        let exit = self.runtime.wait_exit(&spec.id).unwrap().unwrap();
        (exit, self.output(&spec.id))
    }

    /// Everything that a container has printed so far, log format taken off.
    pub(crate) fn output(&self, id: &str) -> String {
        let mut text = String::new();
        for line in self.log(id).lines() {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            text.push_str(fields[3]);
            text.push_str(if fields[2] == "F" { "\n" } else { "" });
        }
        text
    }

    pub(crate) fn log(&self, id: &str) -> String {
        fs::read_to_string(self.log_path(id)).unwrap()
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(format!("{id}.log"))
    }

    pub(crate) fn state(&self, id: &str) -> Option<ContainerState> {
        self.runtime.observe(id).unwrap().map(|observed| observed.state)
    }

    /// Waits until a container has printed something.
    pub(crate) fn await_output(&self, id: &str, wanted: &str) {
        eventually(&format!("{id} prints {wanted:?}"), || self.output(id).contains(wanted));
    }

    /// Deletes everything and asserts that nothing is left.
    pub(crate) fn finish(self) {
        for sandbox in self.runtime.sandboxes().unwrap() {
            self.runtime.delete_sandbox(&sandbox.id).unwrap();
        }
        self.assert_clean();
    }

    /// Nothing of this host is mounted, grouped, running or stored.
    pub(crate) fn assert_clean(&self) {
        let dir = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(dir)).collect();
        assert!(left.is_empty(), "mounts left: {left:?}");
        for group in self.groups() {
            let left: Vec<_> = children(&group);
            assert!(left.is_empty(), "cgroups left: {left:?}");
        }
        eventually("all processes are gone", || processes_naming(dir).is_empty());
        for kind in ["containers", "sandboxes"] {
            let left = children(&self.dir.path().join("state").join(kind));
            assert!(left.is_empty(), "state left: {left:?}");
        }
        let left = children(&self.dir.path().join("files"));
        let left: Vec<_> = left.iter().flat_map(|dir| children(dir)).collect();
        assert!(left.is_empty(), "root filesystems left: {left:?}");
    }

    /// This host's groups in all hierarchies of version 1 and 2.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        children(Path::new("/sys/fs/cgroup"))
            .into_iter()
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|hierarchy| hierarchy.join(&self.cgroup_root))
            .filter(|group| group.exists())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // After a failed assertion: leave no process, mount or group behind.
        for sandbox in self.runtime.sandboxes().unwrap_or_default() {
            let _ = self.runtime.delete_sandbox(&sandbox.id);
        }
        for group in self.groups() {
            let _ = fs::remove_dir(&group);
            let _ = group.parent().map(fs::remove_dir);
        }
    }
}

pub(crate) fn config(dir: &Path, cgroup_root: &Path) -> RuntimeConfig {
    RuntimeConfig {
        state_dir: dir.join("state"),
        shim_command: vec![std::env::current_exe().unwrap().into(), "shim".into()],
        cgroup_root: cgroup_root.to_owned(),
        every_hierarchy: false,
    }
}

/// A layer that holds this very file as `/bin/workload`, and little else.
pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        // Nobody could remove it at the end of all tests, so each run makes it anew in one place of the build's.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtime-image");
        let _left_by_the_last_run = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "etc", "tmp"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(std::env::current_exe().unwrap(), dir.join("bin/workload")).unwrap();
        fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/\nweb:x:33:34::/srv:/\n").unwrap();
        fs::write(dir.join("etc/group"), "root:x:0:\nweb:x:34:\nlogs:x:40:web\n").unwrap();
        fs::write(dir.join("etc/not-executable"), "#!/bin/workload\n").unwrap();
        dir
    })
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Processes whose command line names a text, zombies left out.
pub(crate) fn processes_naming(text: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != std::process::id() as i32)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}
