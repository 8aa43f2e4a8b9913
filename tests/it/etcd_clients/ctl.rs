//! Running etcdctl.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::group::{Group, System};
use crate::support::{Running, eventually};

/// Every program of that name on PATH, in PATH's order.
pub(super) fn programs(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = Vec::new();
    for program in std::env::split_paths(&path).map(|directory| directory.join(name)) {
        // A directory may be named twice, and one may be a link to another.
        let Ok(program) = program.canonicalize() else { continue };
        if program.is_file() && !found.contains(&program) {
            found.push(program);
        }
    }
    found
}

/// etcdctl and the group that it speaks to.
pub(super) struct Ctl<'a> {
    program: &'a Path,
    pub(super) group: &'a Group,
    /// As it prints it: 3.4.23.
    pub(super) version: String,
}

impl<'a> Ctl<'a> {
    pub(super) fn new(program: &'a Path, group: &'a Group) -> Self {
        let mut ctl = Self { program, group, version: String::new() };
        let text = ctl.ok(&["version"]);
        ctl.version = text.lines().next().unwrap().trim_start_matches("etcdctl version: ").to_owned();
        ctl
    }

    /// A key of these steps, apart from those of another version's.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.version)
    }

    pub(super) fn is_barque(&self) -> bool {
        matches!(self.group.system, System::Barque)
    }

    pub(super) fn at_least(&self, version: &str) -> bool {
        let parts =
            |text: &str| -> Vec<u32> { text.split('.').filter_map(|part| part.parse().ok()).collect() };
        parts(&self.version) >= parts(version)
    }

    /// The command line, at all endpoints.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        self.command_at(&self.group.clients, args)
    }

    fn command_at(&self, endpoints: &[String], args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoints.join(",")])
            .args(["--dial-timeout", "10s", "--command-timeout", "30s"])
            .args(args);
        command
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub(super) fn ok(&self, args: &[&str]) -> String {
        self.expect_ok(self.command(args), args, "")
    }

    /// The same at one member only.
    #[track_caller]
    pub(super) fn ok_at(&self, member: usize, args: &[&str]) -> String {
        self.expect_ok(self.command_at(&self.group.clients[member..=member], args), args, "")
    }

    /// The same with a standard input.
    #[track_caller]
    pub(super) fn ok_with(&self, input: &str, args: &[&str]) -> String {
        self.expect_ok(self.command(args), args, input)
    }

    #[track_caller]
    fn expect_ok(&self, command: Command, args: &[&str], input: &str) -> String {
        let (ok, stdout, stderr) = run(command, input);
        assert!(ok, "etcdctl {} {}: {stdout}{stderr}", self.version, args.join(" "));
        stdout
    }

    /// Asks until a command succeeds: for what etcd allows only after a while.
    #[track_caller]
    pub(super) fn ok_eventually(&self, args: &[&str]) -> String {
        eventually(|| {
            let (ok, stdout, _) = run(self.command(args), "");
            ok.then_some(stdout)
        })
    }

    /// A command that must fail with this in its error.
    #[track_caller]
    pub(super) fn fails(&self, args: &[&str], error: &str) {
        self.fails_with("", args, error);
    }

    /// The same with a standard input.
    #[track_caller]
    pub(super) fn fails_with(&self, input: &str, args: &[&str], error: &str) {
        let (ok, stdout, stderr) = run(self.command(args), input);
        assert!(!ok, "etcdctl {} {}: it succeeded: {stdout}", self.version, args.join(" "));
        assert!(
            stderr.contains(error),
            "etcdctl {} {}: {error:?} is not in {stderr}",
            self.version,
            args.join(" ")
        );
    }

    /// Starts a command that runs until it is interrupted.
    pub(super) fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args).stderr(Stdio::null()))
    }

    /// The store's revision.
    #[track_caller]
    pub(super) fn revision(&self) -> u64 {
        let text = self.ok(&["get", "nothing", "-w", "json"]);
        json(&text)["header"]["revision"].as_u64().unwrap()
    }
}

/// Sends INT, as a terminal does.
pub(super) fn interrupt(running: &Running) {
    kill(Pid::from_raw(i32::try_from(running.child.id()).unwrap()), Signal::SIGINT).unwrap();
}

pub(super) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub(super) fn run(mut command: Command, input: &str) -> (bool, String, String) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading; what it printed says why.
    let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}
