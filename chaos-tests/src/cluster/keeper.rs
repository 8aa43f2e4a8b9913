//! Nothing outlives an experiment, not even one that is killed.
//!
//! A keeper is a small process of its own: `barque chaos keep`. Everything that a group starts belongs to the keeper's
//! process group. It waits on a pipe that only the experiment holds; when that ends, in whatever way, the keeper kills the
//! group, takes down the cluster that the experiment made, or makes the one whole that was not its own, unmounts what lies
//! under the experiment's directory, and removes it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, getppid};

use super::guest::Restoration;

/// What every experiment's directory is called, with a number after it. A keeper removes nothing else.
pub(super) const PREFIX: &str = "barque-chaos-";
/// Longest wait for killed processes to go.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for a cluster to be taken down or made whole, and how often that is tried.
const DOWN_PATIENCE: Duration = Duration::from_secs(120);
const DOWN_INTERVAL: Duration = Duration::from_millis(500);
/// How often is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The longest wait between two looks at the time.
const POLL_MAX: Duration = Duration::from_secs(1);

/// The keeper of one experiment. Dropping it has everything cleaned up, and waits for that.
#[derive(Debug)]
pub struct Keeper {
    process: Child,
    directory: PathBuf,
}

impl Keeper {
    /// Makes the experiment's directory under `parent` and starts its keeper.
    ///
    /// # Errors
    /// When the directory cannot be made, or `program` has no `chaos keep`.
    pub fn start(program: &Path, parent: &Path) -> anyhow::Result<Self> {
        Self::start_with(program, parent, &[])
    }

    /// The same for an experiment that makes a cluster of that name in the directory.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_for_cluster(program: &Path, parent: &Path, cluster: &str) -> anyhow::Result<Self> {
        Self::start_with(program, parent, &["--cluster", cluster])
    }

    /// The same for an experiment that breaks a cluster of somebody else.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_for_guest(program: &Path, parent: &Path, end: &Restoration) -> anyhow::Result<Self> {
        let end = serde_json::to_string(end).context("a restoration is plain data")?;
        Self::start_with(program, parent, &["--restore", &end])
    }

    fn start_with(program: &Path, parent: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let unique = format!("{PREFIX}{}-{:08x}", std::process::id(), rand::random::<u32>());
        let directory = parent.join(unique);
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let started = Command::new(program)
            .args(["chaos", "keep"])
            .arg(&directory)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(if more.is_empty() { Stdio::null() } else { Stdio::inherit() })
            .process_group(0)
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) => {
                let _empty = fs::remove_dir(&directory);
                bail!("cannot start {}: {error}", program.display());
            }
        };
        Ok(Self { process, directory })
    }

    /// The experiment's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a command's process one of the experiment's.
    pub fn keep(&self, command: &mut Command) {
        command.process_group(i32::try_from(self.process.id()).unwrap_or(0));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _reaped = self.process.wait();
    }
}

/// What has to be done for a whole cluster at an experiment's end.
#[derive(Debug, Clone)]
pub enum Duty {
    /// Take the cluster of that name down, which was made in the directory.
    TakeDown(String),
    /// Make a cluster whole that somebody else made.
    Restore(Restoration),
}

/// `barque chaos keep DIRECTORY`: waits for the end of standard input, then cleans up.
///
/// # Errors
/// When something stays.
pub fn keep(directory: &Path, duty: Option<&Duty>) -> anyhow::Result<()> {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(name.starts_with(PREFIX), "{} is not the directory of an experiment", directory.display());
    ensure!(
        getpgrp() == Pid::this(),
        "this process does not lead a group of its own; `barque chaos run` starts it so"
    );
    // Ctrl-C in a terminal reaches the experiment, whose end is what counts here; other signals are not caught.
    match duty {
        Some(Duty::Restore(restoration)) => wait_for_end(restoration.limit)?,
        _ => drop(std::io::stdin().read_to_end(&mut Vec::new())),
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = others_of_group(Pid::this())?;
        if processes.is_empty() {
            break;
        }
        for pid in &processes {
            match kill(*pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => bail!("cannot end process {pid}: {errno}"),
            }
        }
        ensure!(Instant::now() < deadline, "processes {processes:?} do not end");
        std::thread::sleep(POLL_INTERVAL);
    }
    match duty {
        Some(Duty::TakeDown(cluster)) => take_down(directory, cluster)?,
        Some(Duty::Restore(restoration)) => restore(restoration)?,
        None => {}
    }
    unmount_under(directory)?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let _closed =
                writeln!(std::io::stderr(), "barque: cannot remove {}: {error}", directory.display());
            bail!("cannot remove {}: {error}", directory.display())
        }
        _ => Ok(()),
    }
}

/// Until the experiment has ended. One that takes longer than it may is killed.
fn wait_for_end(limit: Duration) -> anyhow::Result<()> {
    let (experiment, deadline) = (getppid(), Instant::now() + limit);
    let stdin = std::io::stdin();
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(POLL_MAX);
        let mut watched = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if stdin.lock().read(&mut [0; 16])? == 0 => return Ok(()),
            Ok(_) => {}
            Err(errno) => bail!("cannot wait for the experiment's end: {errno}"),
        }
        if Instant::now() >= deadline && getppid() == experiment {
            let _gone = kill(experiment, Signal::SIGKILL);
        }
    }
}

/// Makes a cluster whole; masters that were just started take requests a moment later. Whoever looks at the terminal is told of a
/// failure: nobody else waits for it when the experiment was killed.
fn restore(restoration: &Restoration) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let name = &restoration.guest.name;
    insist(|| restoration.carry_out(&program)).map_err(|error| {
        let why =
            format!("cluster {name} is not whole after the experiment: {error:#}; `barque up --name {name}`");
        let _closed = writeln!(std::io::stderr(), "barque: {why}");
        anyhow::anyhow!(why)
    })
}

/// Takes a cluster down; an `up` that outlives the experiment has to end first.
fn take_down(directory: &Path, cluster: &str) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    insist(|| {
        let mut command = Command::new(&program);
        command.args(["down", "--name", cluster, "--data-dir"]).arg(directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let done = command.status().is_ok_and(|status| status.success());
        ensure!(done, "`barque down --name {cluster}` does not succeed");
        Ok(())
    })
}

/// Tries as often as needed, for [`DOWN_PATIENCE`].
fn insist(mut attempt: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + DOWN_PATIENCE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(DOWN_INTERVAL),
            ended => return ended,
        }
    }
}

/// Living processes of a group, without its leader.
fn others_of_group(group: Pid) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // pid (name) state ppid pgrp …, where the name may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, pgrp) = (fields.next(), fields.nth(1));
        if pgrp.and_then(|pgrp| pgrp.parse().ok()) == Some(group.as_raw())
            && state != Some("Z")
            && pid != group.as_raw()
        {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Takes away every mount under a directory, the newest first.
pub(super) fn unmount_under(directory: &Path) -> anyhow::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let inside = table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    for mount in inside.filter(|mount| mount.starts_with(directory)) {
        umount2(&mount, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", mount.display()))?;
    }
    Ok(())
}
