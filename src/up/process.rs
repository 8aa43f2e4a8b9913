//! Processes that outlive the command that started them: starting, recognising, stopping.
//!
//! A process is remembered by its number, its start time and the boot it belongs to, so that a number that
//! the kernel has given to another process since is never taken for ours.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::net::NetNs;
use serde::{Deserialize, Serialize};

/// How often it is looked whether a process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How many lines of a failed process's log are shown.
const LOG_TAIL_LINES: usize = 12;
/// Only the end of a log is read for that.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// A process, told apart from every other one that has had or will have its number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number.
    pub(crate) pid: i32,
    /// Clock ticks from boot to its start.
    start_ticks: u64,
    /// The boot it was started in.
    boot_id: String,
}

impl ProcessId {
    /// The process that has this number now, if there is one that has not ended.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let (state, start_ticks) = read_stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then(|| Self { pid, start_ticks, boot_id: boot_id() })
    }

    /// Reads a pid file; `None` when there is none or it is damaged.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal, if it runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end between the two lines; then there is nobody to tell.
            let _gone = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// What to start.
pub(crate) struct Launch<'a> {
    /// Arguments of this binary.
    pub(crate) args: Vec<String>,
    /// The network namespace it runs in; `None`: the caller's.
    pub(crate) netns: Option<&'a NetNs>,
    /// Where its output goes.
    pub(crate) log_file: PathBuf,
    /// Where its identity is written.
    pub(crate) pid_file: PathBuf,
}

/// Starts this binary as a process in a session of its own that survives the caller.
pub(crate) fn launch(launch: &Launch<'_>) -> anyhow::Result<Child> {
    let binary = std::env::current_exe().context("cannot find out which file this program is")?;
    let log = open_log(&launch.log_file)?;
    let mut command = Command::new(&binary);
    command
        .arg("--new-session")
        .args(&launch.args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot use a log file twice")?)
        .stderr(log);
    let spawned = match launch.netns {
        // A child begins in the network namespace of the thread that started it.
        Some(netns) => netns.run(|| command.spawn())?,
        None => command.spawn(),
    };
    let child = spawned.with_context(|| format!("cannot start {}", binary.display()))?;
    let pid = i32::try_from(child.id()).context("process numbers fit")?;
    if let Some(id) = ProcessId::of(pid) {
        let text = serde_json::to_vec(&id).context("a process id is plain data")?;
        control::pki::write_public(&launch.pid_file, &text)?;
    }
    Ok(child)
}

/// Waits until none of the processes runs; returns those that still do at the deadline.
pub(crate) fn wait_gone(processes: &[ProcessId], timeout: Duration) -> Vec<ProcessId> {
    let deadline = Instant::now() + timeout;
    loop {
        let left: Vec<ProcessId> = processes.iter().filter(|process| process.is_alive()).cloned().collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The numbers of all processes.
pub(crate) fn all_pids() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The last lines of a log, indented, for an error message.
pub(crate) fn log_tail(path: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let begin = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[begin..].iter().map(|line| format!("\n    {line}")).collect()
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// State letter and start time out of `/proc/<pid>/stat` (proc(5)).
fn read_stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses and may itself hold any character.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the line; the state is field 3.
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, start_ticks))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(id.is_alive());
        let earlier = ProcessId { start_ticks: id.start_ticks - 1, ..id.clone() };
        assert!(!earlier.is_alive());
        earlier.signal(Signal::SIGKILL);
        assert!(id.is_alive(), "a reused number is not signalled");
        let other_boot = ProcessId { boot_id: "another".to_owned(), ..id.clone() };
        assert!(!other_boot.is_alive());

        id.signal(Signal::SIGKILL);
        assert!(
            wait_gone(std::slice::from_ref(&id), Duration::from_secs(5)).is_empty(),
            "a zombie does not run"
        );
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, (0..100).map(|line| format!("line {line}\n")).collect::<String>()).unwrap();
        let tail = log_tail(&path);
        assert!(tail.ends_with("line 99") && tail.contains("line 88") && !tail.contains("line 87"), "{tail}");
        assert_eq!(log_tail(&directory.path().join("missing")), "");
    }
}
