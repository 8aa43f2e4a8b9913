//! Members of a store as processes: `barque store`, or etcd, which takes the same flags.
//!
//! Owns their processes, ports, directories and logs. Members know each other, and clients know them, by the ports of
//! [`Links`] only. Promises that a member that ended by itself is noticed ([`Group::unexpected_ends`]).

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

use super::faulty_disk::FaultyDisk;
use super::keeper::Keeper;
use super::links::Links;
use crate::nemesis::membership;

/// Longest wait for a group to form, or for a member to come back.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where members listen: below the ephemeral ports of Linux.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// How many ports are tried before there is none.
const PORT_ATTEMPTS_MAX: usize = 200;
/// Longest wait for a member to end after TERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for one answer about a member's health.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait until a new member is taken in.
const TAKE_IN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Lines of a log that are shown.
const LOG_LINES: usize = 12;

/// Whose members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum System {
    /// This program's `store`.
    Barque(PathBuf),
    /// An etcd.
    Etcd(PathBuf),
}

/// How to make a group.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Whose members.
    pub system: System,
    /// The program that has `chaos keep`.
    pub keeper: PathBuf,
    /// How many.
    pub members: usize,
    /// More flags for each.
    pub flags: Vec<String>,
    /// Where the group's directory is made.
    pub parent: PathBuf,
    /// Put each member on a disk that can fail.
    pub faulty_disks: bool,
}

struct Member {
    name: String,
    /// Where it listens.
    listen_client: SocketAddr,
    listen_peer: SocketAddr,
    /// Where it is found.
    client: SocketAddr,
    peer: SocketAddr,
    data_dir: PathBuf,
    disk: Option<FaultyDisk>,
    /// It came after the others.
    joins: bool,
    /// The id of the one who was here and is gone; nobody has been taken in yet.
    lost: Option<u64>,
    /// The id of one that will be lost, since its disk is damaged. It may end by itself.
    doomed: Option<u64>,
    process: Option<Child>,
}

/// A running group. Dropping it ends and removes everything.
pub struct Group {
    shape: Shape,
    members: Vec<Member>,
    /// The links between its members, and from clients to them.
    pub links: Links,
    // Last: it waits until everything is gone.
    keeper: Keeper,
}

impl Group {
    /// Starts a group and waits until every member answers a linearizable read.
    ///
    /// # Errors
    /// When it does not form, with the end of a log.
    pub async fn start(shape: Shape) -> anyhow::Result<Self> {
        let mut group = Self::prepare(shape).await?;
        group.start_all()?;
        group.wait_healthy().await?;
        Ok(group)
    }

    /// Makes directories and ports, and starts nothing yet.
    ///
    /// # Errors
    /// When there is no place or no port.
    pub async fn prepare(shape: Shape) -> anyhow::Result<Self> {
        let keeper = Keeper::start(&shape.keeper, &shape.parent)?;
        let links = Links::new(shape.members);
        let mut members = Vec::new();
        for (number, [listen_client, listen_peer]) in free_addresses(shape.members)?.into_iter().enumerate() {
            let name = format!("m{}", number + 1);
            let disk = match shape.faulty_disks {
                true => Some(FaultyDisk::mount(&keeper.directory().join(format!("disk-{name}")))?),
                false => None,
            };
            let place = disk.as_ref().map_or(keeper.directory(), |disk| disk.path());
            members.push(Member {
                data_dir: place.join(&name),
                name,
                disk,
                listen_client,
                listen_peer,
                client: links.open(number, listen_client, true).await?,
                peer: links.open(number, listen_peer, false).await?,
                joins: false,
                lost: None,
                doomed: None,
                process: None,
            });
        }
        Ok(Self { shape, members, links, keeper })
    }

    /// Starts every member that does not run.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_all(&mut self) -> anyhow::Result<()> {
        for number in 0..self.members.len() {
            let member = &self.members[number];
            if member.process.is_none() && member.lost.is_none() {
                self.launch(number)?;
            }
        }
        Ok(())
    }

    /// How many members.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// A member's name.
    pub fn name(&self, number: usize) -> &str {
        &self.members[number].name
    }

    /// Where the group's files lie.
    pub fn directory(&self) -> &Path {
        self.keeper.directory()
    }

    /// Where a member's data lies.
    pub fn data_dir(&self, number: usize) -> &Path {
        &self.members[number].data_dir
    }

    /// A member's disk, if it can fail.
    pub fn disk(&self, number: usize) -> Option<&FaultyDisk> {
        self.members[number].disk.as_ref()
    }

    /// How often disks have failed, been slow, or lost something.
    pub fn disk_hits(&self) -> u64 {
        self.members.iter().filter_map(|member| member.disk.as_ref()).map(FaultyDisk::hits).sum()
    }

    /// Makes every disk whole.
    pub fn heal_disks(&self) {
        for disk in self.members.iter().filter_map(|member| member.disk.as_ref()) {
            disk.change(|state| *state = super::faulty_disk::DiskState::default());
        }
    }

    /// Where clients reach each member.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// Members whose processes run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|number| self.members[*number].process.is_some()).collect()
    }

    /// Starts a member that does not run.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        ensure!(self.members[number].process.is_none(), "{} runs already", self.name(number));
        ensure!(self.members[number].lost.is_none(), "{} was not taken in yet", self.name(number));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path(number))
            .context("a member's log")?;
        let mut command = self.command(number);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.keeper.keep(&mut command);
        let process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        self.links.set_pid(number, i32::try_from(process.id()).ok());
        self.members[number].process = Some(process);
        Ok(())
    }

    fn command(&self, number: usize) -> Command {
        let member = &self.members[number];
        let all: Vec<String> = self.members.iter().map(|m| format!("{}=http://{}", m.name, m.peer)).collect();
        let mut command = match &self.shape.system {
            System::Barque(program) => {
                let mut command = Command::new(program);
                command.arg("store");
                command
            }
            System::Etcd(program) => Command::new(program),
        };
        command
            .args(&self.shape.flags)
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(&member.data_dir)
            .args(["--listen-client-urls", &format!("http://{}", member.listen_client)])
            .args(["--advertise-client-urls", &format!("http://{}", member.client)])
            .args(["--listen-peer-urls", &format!("http://{}", member.listen_peer)])
            .args(["--initial-advertise-peer-urls", &format!("http://{}", member.peer)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-token", "chaos"])
            .args(["--initial-cluster-state", if member.joins { "existing" } else { "new" }]);
        command
    }

    fn pid(&self, number: usize) -> anyhow::Result<Pid> {
        let process = self.members[number].process.as_ref();
        let process = process.with_context(|| format!("{} does not run", self.name(number)))?;
        Ok(Pid::from_raw(i32::try_from(process.id())?))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the member does not run.
    pub fn signal(&self, number: usize, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(number)?;
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name(number)))
    }

    /// Ends a member as a crash does. Returns whether it ran.
    pub fn kill(&mut self, number: usize) -> bool {
        self.links.set_pid(number, None);
        let Some(mut process) = self.members[number].process.take() else { return false };
        let ran = matches!(process.try_wait(), Ok(None));
        let _ended = process.kill();
        let _reaped = process.wait();
        ran
    }

    /// Ends a member as a crash does; nobody starts it with its data again. [`take_in`](Self::take_in) puts a new member
    /// in its place.
    ///
    /// # Errors
    /// When it does not answer who it is.
    pub async fn lose(&mut self, number: usize) -> anyhow::Result<()> {
        self.doom(number).await?;
        self.lose_doomed(number);
        Ok(())
    }

    /// Ends a member as a crash does, before its disk is damaged. It can be started with that, until it is lost.
    ///
    /// # Errors
    /// When it does not answer who it is.
    pub async fn doom(&mut self, number: usize) -> anyhow::Result<()> {
        let status = self.status(number).await.context("the member does not answer")?;
        self.kill(number);
        self.members[number].doomed = Some(status.header.unwrap_or_default().member_id);
        Ok(())
    }

    /// Ends a doomed member for good, if it has not ended by itself.
    pub fn lose_doomed(&mut self, number: usize) {
        self.kill(number);
        let member = &mut self.members[number];
        if let Some(id) = member.doomed.take() {
            member.lost = Some(id);
            member.data_dir.set_file_name(format!("{}-after-{id:x}", member.name));
        }
    }

    /// Whether a member is lost or doomed.
    pub fn misses_somebody(&self) -> bool {
        self.members.iter().any(|member| member.lost.is_some() || member.doomed.is_some())
    }

    /// Has the others take in, and starts, an empty member at the place of each that is lost.
    ///
    /// # Errors
    /// When they do not within ten seconds; it can be tried again.
    pub async fn take_in(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + TAKE_IN_TIMEOUT;
        let lost: Vec<(usize, u64)> =
            (0..self.size()).filter_map(|number| Some((number, self.members[number].lost?))).collect();
        for (number, id) in lost {
            let url = format!("http://{}", self.members[number].peer);
            let running = self.running();
            for asked in running.iter().cycle() {
                let step = membership::exchange(self.direct(*asked), id, &url);
                match tokio::time::timeout(ASK_TIMEOUT, step).await {
                    Ok(Ok(Some(_))) => break,
                    Ok(Ok(None)) => {}
                    Ok(Err(_)) | Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
                }
                ensure!(
                    Instant::now() < deadline,
                    "the others did not take {} in within {TAKE_IN_TIMEOUT:?}",
                    self.name(number)
                );
            }
            ensure!(!running.is_empty(), "nobody is there to take {} in", self.name(number));
            self.members[number].lost = None;
            self.members[number].joins = true;
            self.launch(number)?;
        }
        Ok(())
    }

    /// Ends a member in an orderly way.
    ///
    /// # Errors
    /// When it does not end in time, or not with success.
    pub async fn terminate(&mut self, number: usize) -> anyhow::Result<()> {
        self.signal(number, Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            let Some(process) = &mut self.members[number].process else { return Ok(()) };
            if let Some(status) = process.try_wait()? {
                self.members[number].process = None;
                self.links.set_pid(number, None);
                // etcd cleans up, and then ends by the signal that it was sent.
                let is_etcds = matches!(self.shape.system, System::Etcd(_))
                    && status.signal() == Some(Signal::SIGTERM as i32);
                ensure!(
                    status.success() || is_etcds,
                    "{} ended with {status}{}",
                    self.name(number),
                    self.log_tail(number)
                );
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.kill(number);
                bail!("{} does not end after TERM{}", self.name(number), self.log_tail(number));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Members that ended though nobody ended them, with the end of their logs. They count as not running from now on.
    pub fn unexpected_ends(&mut self) -> Vec<(usize, String)> {
        let mut ended = Vec::new();
        for number in 0..self.members.len() {
            let status =
                self.members[number].process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            if let Some(status) = status {
                self.members[number].process = None;
                self.links.set_pid(number, None);
                // Rightly so.
                if self.members[number].doomed.is_some() {
                    continue;
                }
                ended.push((
                    number,
                    format!("{} ended ({status}){}", self.name(number), self.log_tail(number)),
                ));
            }
        }
        ended
    }

    /// Whether a member's process has ended by itself.
    pub fn has_ended(&mut self, number: usize) -> bool {
        self.members[number].process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(Some(_))))
    }

    /// Waits until every member answers a linearizable read.
    ///
    /// # Errors
    /// When one ends or does not answer in time.
    pub async fn wait_healthy(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        for number in 0..self.members.len() {
            while !is_healthy(self.members[number].client).await {
                if let Some((_, what)) = self.unexpected_ends().into_iter().next() {
                    bail!("the group does not form: {what}");
                }
                ensure!(
                    Instant::now() < deadline,
                    "{} does not serve after {START_TIMEOUT:?}{}",
                    self.name(number),
                    self.log_tail(number)
                );
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// The member that leads, by the word of any that answers; asked past the links, so that cuts do not matter.
    pub async fn leader(&self) -> Option<usize> {
        let mut ids: Vec<(u64, u64, u64, usize)> = Vec::new();
        for number in self.running() {
            if let Some(status) = status(self.members[number].listen_client).await {
                let id = status.header.as_ref().map_or(0, |header| header.member_id);
                ids.push((status.raft_term, status.leader, id, number));
            }
        }
        let newest = ids.iter().map(|(term, ..)| *term).max()?;
        let leads = ids.iter().find(|(term, leader, id, _)| *term == newest && leader == id);
        leads.map(|(.., number)| *number)
    }

    /// What a member says of itself, asked past the links.
    pub async fn status(&self, number: usize) -> Option<pb::StatusResponse> {
        status(self.members[number].listen_client).await
    }

    /// A connection to a member, past the links.
    pub fn direct(&self, number: usize) -> Channel {
        channel(self.members[number].listen_client)
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.directory().join(format!("{}.log", self.members[number].name))
    }

    /// The end of a member's log, ready to stand after a message.
    pub fn log_tail(&self, number: usize) -> String {
        let text = std::fs::read(self.log_path(number)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("\n  {line}")).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that waits for a disk cannot be ended.
        self.heal_disks();
        for number in 0..self.members.len() {
            self.kill(number);
        }
    }
}

/// A connection that is made when it is first used, and again after it broke. Nothing is sent twice.
pub fn channel(address: SocketAddr) -> Channel {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).expect("an address is a host and a port");
    endpoint.connect_timeout(ASK_TIMEOUT).tcp_nodelay(true).connect_lazy()
}

async fn is_healthy(address: SocketAddr) -> bool {
    let request = pb::RangeRequest { key: b"health".as_slice().into(), ..pb::RangeRequest::default() };
    let ask = async { KvClient::new(channel(address)).range(request).await.is_ok() };
    tokio::time::timeout(ASK_TIMEOUT, ask).await.unwrap_or(false)
}

async fn status(address: SocketAddr) -> Option<pb::StatusResponse> {
    let ask = async { MaintenanceClient::new(channel(address)).status(pb::StatusRequest {}).await };
    Some(tokio::time::timeout(ASK_TIMEOUT, ask).await.ok()?.ok()?.into_inner())
}

/// A client and a peer address for each member; all are taken at the same time, so that they differ. They lie below the ports
/// that the kernel gives to connections, one of which would otherwise have a member's while that is down.
fn free_addresses(members: usize) -> anyhow::Result<Vec<[SocketAddr; 2]>> {
    let bind = || {
        let mut ports = std::iter::repeat_with(|| rand::random_range(PORTS)).take(PORT_ATTEMPTS_MAX);
        let found = ports.find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        found.context("no free port on 127.0.0.1")
    };
    let listeners = (0..2 * members).map(|_| bind()).collect::<anyhow::Result<Vec<_>>>()?;
    let addresses =
        listeners.iter().map(|listener| Ok(listener.local_addr()?)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(addresses.chunks(2).map(|pair| [pair[0], pair[1]]).collect())
}
