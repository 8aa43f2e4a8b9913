//! Clusters of real processes.
//!
//! Owns a cluster made by `barque up`, with handles to its processes ([`Cluster`]) and to the machines that they are on
//! ([`machines`]), and groups of a store's members whose every link and disk can be made to fail ([`group`]). Promises that
//! dropping a [`Cluster`] runs `barque down`, whatever happened to it before, that what a group started ends with the
//! process that started it, even if that is killed ([`keeper`]), and that a cluster of somebody else is whole afterwards
//! ([`guest`]).

pub mod disk;
pub mod faulty_disk;
pub mod group;
pub mod guest;
pub mod keeper;
pub mod links;
pub mod machines;
mod owner;
pub mod site;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

/// How often conditions are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a killed process may take to end: as long as the kernel needs for its memory.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How to make a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `barque` binary.
    pub binary: PathBuf,
    /// The cluster's name; unique on the machine.
    pub name: String,
    /// Where its files lie.
    pub data_dir: PathBuf,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// How many masters.
    pub masters: u8,
    /// How many nodes.
    pub nodes: u8,
    /// Whether masters are nodes too.
    pub master_nodes: bool,
    /// Whether the API has an address that the leader holds.
    pub virtual_address: bool,
    /// How many addresses Services of type `LoadBalancer` may get.
    pub load_balancer_addresses: u8,
    /// More flags for each master, before its own.
    pub master_flags: Vec<String>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    /// Somebody else made it, and keeps it.
    is_guest: bool,
}

#[derive(Deserialize)]
struct PidFile {
    pid: i32,
}

impl Cluster {
    /// Makes a cluster and waits until it is Ready.
    ///
    /// # Errors
    /// With what `barque up` said.
    pub fn up(options: Options) -> anyhow::Result<Self> {
        let cluster = Self { options, is_guest: false };
        cluster.complete()?;
        Ok(cluster)
    }

    /// A cluster that somebody else made: it is not taken down when this is dropped.
    fn of_somebody(binary: &Path, name: &str, data_dir: &Path) -> Self {
        let options = Options {
            binary: binary.to_owned(),
            name: name.to_owned(),
            data_dir: data_dir.to_owned(),
            port: 0,
            masters: 0,
            nodes: 0,
            master_nodes: false,
            virtual_address: false,
            load_balancer_addresses: 0,
            master_flags: Vec::new(),
        };
        Self { options, is_guest: true }
    }

    /// Runs `up` again, which starts the processes that are not running, and waits until all is Ready.
    ///
    /// # Errors
    /// With what `barque up` said.
    pub fn complete(&self) -> anyhow::Result<()> {
        let Options { masters, nodes, port, load_balancer_addresses, .. } = &self.options;
        let (masters, nodes, port) = (masters.to_string(), nodes.to_string(), port.to_string());
        let addresses = load_balancer_addresses.to_string();
        let mut args = vec!["up", "--masters", &masters, "--nodes", &nodes, "--port", &port];
        args.extend(["--load-balancer-addresses", &addresses]);
        let master_flags: Vec<String> =
            self.options.master_flags.iter().map(|flag| format!("--master-flag={flag}")).collect();
        args.extend(master_flags.iter().map(String::as_str));
        if self.options.master_nodes {
            args.push("--master-nodes");
        }
        if self.options.virtual_address {
            args.push("--virtual-address");
        }
        let output = self.barque(&args)?;
        if !output.status.success() {
            bail!("barque up: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts one process of the cluster that is not running, and waits for nothing.
    ///
    /// # Errors
    /// With what `barque up` said.
    pub fn start(&self, process: &str) -> anyhow::Result<()> {
        let output = self.barque(&["up", "--only", process])?;
        if !output.status.success() {
            bail!("barque up --only {process}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Runs a subcommand on this cluster.
    ///
    /// # Errors
    /// When the binary cannot be run.
    pub fn barque(&self, args: &[&str]) -> anyhow::Result<Output> {
        let Options { binary, name, data_dir, .. } = &self.options;
        Command::new(binary)
            .args(args)
            .args(["--name", name])
            .arg("--data-dir")
            .arg(data_dir)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", binary.display()))
    }

    /// Where this cluster keeps everything.
    pub fn directory(&self) -> PathBuf {
        self.options.data_dir.join("clusters").join(&self.options.name)
    }

    /// Where its machines keep what is gone after they were off.
    pub fn run_directory(&self) -> PathBuf {
        run_dir(&self.options).into()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory().join("kubeconfig")
    }

    /// The pid of `master-1`, `node-2`, `endpoint`, …
    ///
    /// # Errors
    /// When there is no such process.
    pub fn pid(&self, process: &str) -> anyhow::Result<i32> {
        let path = Path::new(&run_dir(&self.options)).join("pids").join(format!("{process}.json"));
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice::<PidFile>(&text)?.pid)
    }

    /// `kill -9`, and waits until the process has ended.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, process: &str) -> anyhow::Result<()> {
        let pid = self.pid(process)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .with_context(|| format!("cannot kill {process} ({pid})"))?;
        until(KILL_PATIENCE, || has_ended(pid).then_some(()))
            .with_context(|| format!("{process} ({pid}) goes on after KILL"))
    }

    /// Asks a process to end, and does not wait for it.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn terminate(&self, process: &str) -> anyhow::Result<()> {
        let pid = self.pid(process)?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .with_context(|| format!("cannot ask {process} ({pid}) to end"))
    }

    /// What `barque status -v` prints.
    ///
    /// # Errors
    /// When the status cannot be had.
    pub fn status(&self) -> anyhow::Result<String> {
        let output = self.barque(&["status", "-v"])?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The leading master's name, once all that answer agree on it.
    ///
    /// # Errors
    /// When none leads within `patience`.
    pub fn leader(&self, patience: Duration) -> anyhow::Result<String> {
        let mut last = String::new();
        let found = until(patience, || {
            last = self.status().unwrap_or_default();
            let line = last.lines().next().unwrap_or_default().to_owned();
            let name = line.split("leader ").nth(1)?.split([',', ' ']).next()?.to_owned();
            name.starts_with("master-").then_some(name)
        });
        found.with_context(|| format!("no leader within {patience:?}; status: {last}"))
    }

    /// The masters' names.
    pub fn masters(&self) -> Vec<String> {
        (1..=self.options.masters).map(|n| format!("master-{n}")).collect()
    }

    /// The log of a process, for reports.
    pub fn log(&self, process: &str) -> String {
        fs::read_to_string(self.directory().join("logs").join(format!("{process}.log"))).unwrap_or_default()
    }

    /// Takes the cluster down and returns what `barque down` said.
    ///
    /// # Errors
    /// When `down` fails.
    pub fn down(self) -> anyhow::Result<String> {
        let output = self.barque(&["down"])?;
        if !output.status.success() {
            bail!("barque down: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_guest {
            return;
        }
        // After `down` this says that there is nothing; there is nobody to tell of a failure.
        let _ = self.barque(&["down"]);
    }
}

/// Waits until `look` finds something, but not longer than `patience`.
pub fn until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Whether nothing of a process runs any more. Its last thread's end is what makes it a zombie.
fn has_ended(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    };
    threads.filter_map(state).all(|state| matches!(state, 'Z' | 'X'))
}

/// What is left on this machine that bears the cluster's name: processes by their command line, mounts,
/// network namespaces, cgroups, files.
///
/// # Errors
/// When /proc or /sys cannot be read.
pub fn leftovers(options: &Options) -> anyhow::Result<Vec<String>> {
    let data_dir = options.data_dir.display().to_string();
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let is_number = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        if is_number && command.contains("barque") && command.contains(&data_dir) {
            left.push(format!("process {}: {command}", entry.file_name().to_string_lossy()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mine =
        |line: &&str| line.contains(&format!("{data_dir}/clusters")) || line.contains(&run_dir(options));
    left.extend(mounts.lines().filter(mine).map(|line| format!("mount {line}")));
    for name in runtime::net::netns::list()? {
        if name.contains(&options.name) {
            left.push(format!("network namespace {name}"));
        }
    }
    for controller in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let directory = controller.path().join("barque").join(&options.name);
        if directory.exists() {
            left.push(format!("cgroup {}", directory.display()));
        }
    }
    for path in [options.data_dir.join("clusters").join(&options.name), run_dir(options).into()] {
        if Path::new(&path).exists() {
            left.push(format!("files {}", path.display()));
        }
    }
    Ok(left)
}

fn run_dir(options: &Options) -> String {
    format!("/run/barque/clusters/{}", options.name)
}
