//! A cluster of one master and one node for measuring, made by `barque up` and removed by `barque down`.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::api::Api;
use crate::kubeconfig;
use crate::memory;
use crate::up::progress::line;

/// A running cluster.
pub(crate) struct Cluster {
    name: String,
    data_dir: PathBuf,
}

impl Cluster {
    /// Makes one below `parent`.
    pub(crate) fn up(parent: &Path) -> anyhow::Result<Self> {
        let name = format!("bench{}", std::process::id());
        let cluster = Self { data_dir: parent.join(format!("barque-bench-{name}")), name };
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr())?.port();
        let port = port.to_string();
        cluster.run(&["up", "--masters", "1", "--nodes", "1", "--port", &port])?;
        Ok(cluster)
    }

    /// Its API, as an administrator.
    pub(crate) fn api(&self) -> anyhow::Result<Api> {
        let file = self.run(&["kubeconfig"])?;
        Api::new(&kubeconfig::read(Path::new(file.trim()))?)
    }

    /// The process that is the node agent.
    pub(crate) fn agent(&self) -> anyhow::Result<i32> {
        let marks = |args: &[String]| args.iter().any(|arg| arg == "node");
        self.processes(marks).pop().context("the node agent does not run")
    }

    /// Shims and pause processes of its containers and sandboxes.
    pub(crate) fn companions(&self) -> Vec<i32> {
        let found = self.processes(|args| args.get(1).is_some_and(|word| word == "shim"));
        let name = self.name.as_str();
        let pauses = processes().into_iter().filter(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            comm.trim() == "pause" && groups.contains(name)
        });
        // A pause process is forked from a shim and keeps its command line.
        let found: BTreeSet<i32> = found.into_iter().chain(pauses).collect();
        found.into_iter().collect()
    }

    fn processes(&self, marks: impl Fn(&[String]) -> bool) -> Vec<i32> {
        let is_ours = |args: &[String]| args.iter().any(|arg| arg.contains(&self.name));
        let found = processes().into_iter().filter(|pid| {
            let args = memory::command_line(*pid);
            is_ours(&args) && marks(&args)
        });
        found.collect()
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let (verb, flags) = args.split_first().context("a command is given")?;
        let binary = std::env::current_exe().context("cannot find out which file this program is")?;
        let output = Command::new(binary)
            .arg(verb)
            .args(["--name", &self.name, "--data-dir"])
            .arg(&self.data_dir)
            .args(flags)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run barque {verb}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "barque {verb}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["down"]) {
            line(format_args!("  the cluster was not removed: {error:#}"));
        }
    }
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
