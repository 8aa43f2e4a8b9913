//! Three members of one system on this machine: processes, ports, directories.
//!
//! Both systems take etcd's flags. Dropping a group kills its processes and removes its directory.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::Target;
use super::systems;
use crate::up::process::log_tail;

/// How many members.
pub(crate) const MEMBERS: usize = 3;
/// Longest wait for a group to form or a member to come back.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a member to end after TERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A running group.
pub(crate) struct Group {
    program: PathBuf,
    /// Arguments before etcd's flags: our binary needs its subcommand.
    leading_args: Vec<String>,
    directory: PathBuf,
    members: Vec<Member>,
}

/// One member.
struct Member {
    name: String,
    client: String,
    peer: String,
    process: Option<Child>,
}

impl Group {
    /// Starts a group in a new directory under `parent` and waits until every member serves.
    pub(crate) async fn start(
        name: &str,
        program: &Path,
        leading_args: &[&str],
        parent: &Path,
    ) -> anyhow::Result<Self> {
        let directory = parent.join(format!("barque-bench-{}-{name}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut group = Self {
            program: program.to_owned(),
            leading_args: leading_args.iter().map(|&arg| arg.to_owned()).collect(),
            directory,
            members: Vec::new(),
        };
        for (number, [client, peer]) in free_addresses()?.into_iter().enumerate() {
            group.members.push(Member { name: format!("m{}", number + 1), client, peer, process: None });
        }
        for number in 0..MEMBERS {
            group.launch(number)?;
        }
        for number in 0..MEMBERS {
            group.wait_healthy(number).await?;
        }
        Ok(group)
    }

    /// Client addresses and processes, the leader's first.
    pub(crate) async fn target(&self) -> Target {
        let mut endpoints: Vec<String> = self.members.iter().map(|member| member.client.clone()).collect();
        systems::leader_first(&mut endpoints).await;
        Target { endpoints, pids: self.pids() }
    }

    /// The processes that run.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.members.iter().filter_map(|member| pid(member.process.as_ref()?)).collect()
    }

    /// The client address of each member.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// Starts a member that does not run.
    pub(crate) fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        let cluster: Vec<String> =
            self.members.iter().map(|member| format!("{}=http://{}", member.name, member.peer)).collect();
        let member = &mut self.members[number];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("{}.log", member.name)))
            .context("cannot open a member's log")?;
        let process = Command::new(&self.program)
            .args(&self.leading_args)
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.directory.join(&member.name))
            .args(["--listen-client-urls", &format!("http://{}", member.client)])
            .args(["--advertise-client-urls", &format!("http://{}", member.client)])
            .args(["--listen-peer-urls", &format!("http://{}", member.peer)])
            .args(["--initial-advertise-peer-urls", &format!("http://{}", member.peer)])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-token", "bench"])
            .args(["--initial-cluster-state", "new"])
            .args(["--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot use a log twice")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        member.process = Some(process);
        Ok(())
    }

    /// Waits until a member answers a linearizable read.
    pub(crate) async fn wait_healthy(&mut self, number: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let member = &mut self.members[number];
            if systems::is_healthy(&member.client).await {
                return Ok(());
            }
            let ended = member.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            let log = || log_tail(&self.directory.join(format!("{}.log", member.name)));
            if let Some(status) = ended {
                anyhow::bail!("{} {}: it ended ({status}){}", self.program.display(), member.name, log());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} {} does not serve after {} s{}",
                self.program.display(),
                member.name,
                START_TIMEOUT.as_secs(),
                log()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends a member as a crash does.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some(mut process) = self.members[number].process.take() {
            // It may have ended already; waiting takes it off the process table in any case.
            let _ended = process.kill();
            let _reaped = process.wait();
        }
    }

    /// Ends every member in an orderly way.
    pub(crate) async fn stop_all(&mut self) -> anyhow::Result<()> {
        for pid in self.pids() {
            kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot send TERM")?;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for member in &mut self.members {
            while let Some(process) = &mut member.process {
                if process.try_wait().context("cannot wait for a member")?.is_some() {
                    member.process = None;
                }
                anyhow::ensure!(Instant::now() < deadline, "{} does not stop", member.name);
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
        }
        // Nothing more can be done about files that stay.
        let _left = fs::remove_dir_all(&self.directory);
    }
}

fn pid(process: &Child) -> Option<i32> {
    i32::try_from(process.id()).ok()
}

/// A client and a peer address for each member. All are taken at the same time, so that they differ.
fn free_addresses() -> anyhow::Result<Vec<[String; 2]>> {
    let bind = || TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1");
    let listeners = (0..2 * MEMBERS).map(|_| bind()).collect::<anyhow::Result<Vec<_>>>()?;
    let addresses = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect::<anyhow::Result<Vec<String>>>()?;
    Ok(addresses.chunks(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect())
}
