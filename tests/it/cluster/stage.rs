//! What tests of streams share: a cluster whose kubectls speak to a replica that does not lead, pods that run scripts
//! with this machine's own programs, and kubectls that keep running, on a terminal too.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use chaos_tests::client::Client;
use chaos_tests::cluster::until;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Lab, PATIENCE, kubectls, skip, skipped};

/// A pod whose containers run scripts with this machine's own programs.
pub(super) fn scripts(name: &str, node: &str, containers: &[(&str, &str, Value)]) -> Value {
    let places = [("usr", "/usr", "/usr"), ("bin", "/usr/bin", "/bin"), ("lib", "/usr/lib", "/lib")];
    let places = places.into_iter().chain([("lib64", "/usr/lib64", "/lib64")]);
    let places: Vec<_> = places.filter(|(_, from, _)| Path::new(from).exists()).collect();
    let mounts: Vec<Value> =
        places.iter().map(|(name, _, to)| json!({"name": name, "mountPath": to, "readOnly": true})).collect();
    let volumes: Vec<Value> =
        places.iter().map(|(name, from, _)| json!({"name": name, "hostPath": {"path": from}})).collect();
    let containers: Vec<Value> = containers
        .iter()
        .map(|(name, script, more)| {
            let mut container = json!({
                "name": name, "image": "barque/hello:1.0",
                "command": ["/bin/sh", "-c", script], "volumeMounts": mounts,
                "env": [{"name": "PATH", "value": "/usr/bin:/bin"}],
            });
            for (key, value) in more.as_object().into_iter().flatten() {
                container[key] = value.clone();
            }
            container
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0, "containers": containers, "volumes": volumes,
            "nodeSelector": {"kubernetes.io/hostname": node},
        },
    })
}

pub(super) const SLEEP: &str = "mkdir -p /tmp; exec sleep 100000";

/// A cluster with kubectls, which speak to a replica that does not lead.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) client: Client,
    pub(super) programs: Vec<PathBuf>,
    pub(super) server: String,
}

impl Stage {
    pub(super) async fn up(test: &str, name: &str) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let all = kubectls();
        let (Some(first), Some(last)) = (all.first(), all.last()) else {
            skip(test, "no kubectl on PATH");
            return None;
        };
        // The oldest speaks SPDY, the newest WebSocket.
        let mut programs = vec![first.clone(), last.clone()];
        programs.dedup();
        let lab = Lab::up(name, 3, 2).await;
        let leader = lab.cluster.leader(PATIENCE).unwrap();
        let status = lab.cluster.status().unwrap();
        let follower = status
            .lines()
            .find(|line| line.starts_with("master-") && !line.starts_with(&leader))
            .and_then(|line| line.split_whitespace().nth(1))
            .expect("a master that does not lead")
            .to_owned();
        let client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
        let client = client.at(follower.parse().unwrap());
        Some(Self { lab, client, programs, server: format!("https://{follower}") })
    }

    pub(super) fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--server")
            .arg(&self.server)
            .args(args)
            .env("KUBECONFIG", self.lab.cluster.kubeconfig())
            .env("HOME", self.lab.directory.path());
        command
    }

    pub(super) fn run(&self, program: &Path, args: &[&str]) -> Output {
        self.command(program, args).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a success.
    pub(super) fn ok(&self, program: &Path, args: &[&str]) -> String {
        let output = self.run(program, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?} {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and standard error of a failure.
    pub(super) fn fails(&self, program: &Path, args: &[&str]) -> (i32, String) {
        let output = self.run(program, args);
        assert!(!output.status.success(), "{program:?} {args:?} succeeds");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// With input through a pipe.
    pub(super) fn feed(&self, program: &Path, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(program, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _broken = writer.join().unwrap();
        output
    }
}

/// A running kubectl whose output is gathered.
pub(crate) struct Live {
    pub(crate) child: Child,
    output: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Live {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = std::sync::Arc::default();
        gather(OwnedFd::from(child.stdout.take().unwrap()), &output);
        gather(OwnedFd::from(child.stderr.take().unwrap()), &output);
        Self { child, output }
    }

    /// On a terminal of its own; the returned file is what the user sees and types.
    pub(crate) fn on_terminal(mut command: Command) -> (Self, File) {
        let size = Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let copy = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        drop((command, pty.slave));
        let output = std::sync::Arc::default();
        gather(pty.master.try_clone().unwrap(), &output);
        (Self { child, output }, File::from(pty.master))
    }

    pub(crate) fn text(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn await_text(&self, wanted: &str) {
        let seen = until(PATIENCE, || self.text().contains(wanted).then_some(()));
        assert!(seen.is_some(), "{wanted:?} does not come: {:?}", self.text());
    }

    pub(crate) fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
    }

    pub(crate) fn ended(&mut self) -> Option<i32> {
        let ended = until(PATIENCE, || self.child.try_wait().unwrap());
        ended.unwrap_or_else(|| panic!("it does not end: {:?}", self.text())).code()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn gather(from: OwnedFd, into: &std::sync::Arc<std::sync::Mutex<String>>) {
    let into = std::sync::Arc::clone(into);
    std::thread::spawn(move || {
        let (mut from, mut chunk) = (File::from(from), [0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    });
}

/// Processes of this machine whose command line holds a word.
pub(crate) fn processes_with(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            let line = String::from_utf8_lossy(line);
            line.contains(word) && !line.contains("kubectl")
        })
        .count()
}
