//! What breaks a cluster, and makes it whole again.
//!
//! Owns the faults by name ([`Fault`]), their plan ([`schedule`]), and carrying them out ([`Nemesis`]). Every fault is recorded in the
//! history of faults when it begins and when it ends; one that had no effect says so as an error, and a run whose planned
//! faults never had an effect is rejected ([`crate::checker::vacuity`]). It promises that [`Nemesis::heal`] undoes everything.
//!
//! There is no fault of clocks: `CLOCK_REALTIME` is one for the whole machine (time namespaces have the monotonic clocks only), a
//! static binary loads no library that could change what it is told, and the store's own promises rest on no clock unless lease
//! reads are switched on. In the simulation clocks run apart.

mod damage;
mod disks;
pub(crate) mod machines;
pub mod membership;
mod networks;
mod processes;
pub mod schedule;

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use serde::Deserialize;
use serde_json::json;

use crate::cluster::site::Site;
use crate::history::{NEMESIS, Recorder};
use schedule::{Entry, Of};

/// A fault by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL; started again at its end.
    Kill,
    /// SIGKILL of all members at once; all are started again.
    KillAll,
    /// SIGSTOP; SIGCONT at its end.
    Pause,
    /// TERM, as an operator does it; started again at its end.
    Terminate,
    /// Every member in turn: TERM and a new start.
    RollingRestart,
    /// SIGKILL, then killed again several times while it starts.
    KillWhileBooting,
    /// No data to or from other members.
    Isolate,
    /// No data from other members.
    IsolateInbound,
    /// No data to other members.
    IsolateOutbound,
    /// A smaller half without the larger one.
    Halves,
    /// Two halves that only one member reaches both.
    Bridge,
    /// Each member reaches only the next one round.
    Ring,
    /// Everything between members takes longer.
    Delay,
    /// Data between members is held up as by lost packets.
    Loss,
    /// Little data a second between members.
    Bandwidth,
    /// Connections between members are reset, again and again.
    Reset,
    /// Ends of connections between members are not passed on, while one is killed and started.
    HalfOpen,
    /// Clients reach nobody there.
    CutClients,
    /// One write or sync fails with EIO.
    DiskErrorOnce,
    /// Every write and sync fails with EIO.
    DiskError,
    /// Every write fails with ENOSPC.
    DiskFull,
    /// Each sync takes long.
    DiskSlow,
    /// No sync returns.
    DiskHang,
    /// SIGKILL, and what was not synced is gone; started again at its end.
    LoseUnsynced,
    /// The same for all members at once: their power fails.
    PowerCut,
    /// SIGKILL in the middle of a write: a piece of it is there; started again at its end.
    TornWrite,
    /// History is forgotten up to now.
    Compact,
    /// A member defragments.
    Defragment,
    /// Leadership is handed over.
    MoveLeader,
    /// A member is lost with its data: it is taken out of the group, and an empty one is taken in at its place.
    ReplaceMember,
    /// A member is killed, bits of a file of its are flipped, and it is started again; at the end it is replaced.
    FlipBits,
    /// The same with a file that is cut short.
    Truncate,
    /// The same with a file that is gone.
    DeleteFile,
    /// At its end a member's disk is put back to what it was at its beginning; then it is replaced.
    RestoreOld,
    /// A machine's process and all that runs on it are gone at once, and it is off the network; it is on again at its end.
    PowerOff,
    /// A node is cordoned and its pods are evicted, as an operator does it; it takes pods again at its end.
    Drain,
}

/// Every fault, with one line for people.
pub const FAULTS: &[(Fault, &str, &str)] = &[
    (Fault::Kill, "kill", "SIGKILL a member; it is started again at the end"),
    (Fault::KillAll, "kill-all", "SIGKILL all members at once; all are started again"),
    (Fault::Pause, "pause", "SIGSTOP a member, SIGCONT at the end"),
    (Fault::Terminate, "terminate", "TERM a member; it is started again at the end"),
    (Fault::RollingRestart, "rolling-restart", "TERM and start every member, one after the other"),
    (Fault::KillWhileBooting, "kill-while-booting", "SIGKILL a member, and again while it starts"),
    (Fault::Isolate, "isolate", "cut a member from the others, both ways"),
    (Fault::IsolateInbound, "isolate-inbound", "a member hears nothing from the others"),
    (Fault::IsolateOutbound, "isolate-outbound", "the others hear nothing from a member"),
    (Fault::Halves, "halves", "cut a smaller half from the larger one"),
    (Fault::Bridge, "bridge", "two halves that only one member reaches both"),
    (Fault::Ring, "ring", "each member reaches only its neighbours round a ring"),
    (Fault::Delay, "delay", "everything between members takes longer, by `delay` and up to `jitter`"),
    (Fault::Loss, "loss", "data between members is held up as by lost packets, with `probability`"),
    (Fault::Bandwidth, "bandwidth", "at most `bytes_per_second` on each link between members"),
    (Fault::Reset, "reset", "connections of a member are reset, again and again"),
    (Fault::HalfOpen, "half-open", "the others are not told when a member is killed and started"),
    (Fault::CutClients, "cut-clients", "clients do not reach a member"),
    (Fault::DiskErrorOnce, "disk-error-once", "one write or sync of a member fails with EIO"),
    (Fault::DiskError, "disk-error", "every write and sync of a member fails with EIO"),
    (Fault::DiskFull, "disk-full", "every write of a member that needs room fails with ENOSPC"),
    (Fault::DiskSlow, "disk-slow", "each sync of a member takes `delay` longer"),
    (Fault::DiskHang, "disk-hang", "no sync of a member returns"),
    (Fault::LoseUnsynced, "lose-unsynced", "SIGKILL a member and lose what it had not synced"),
    (Fault::PowerCut, "power-cut", "SIGKILL all members and lose what they had not synced"),
    (Fault::TornWrite, "torn-write", "the same, and a piece of the last write is there"),
    (Fault::Compact, "compact", "forget history up to now"),
    (Fault::Defragment, "defragment", "a member defragments"),
    (Fault::MoveLeader, "move-leader", "hand leadership over to another member"),
    (
        Fault::ReplaceMember,
        "replace-member",
        "lose a member and its data, take it out of the group and an empty one in",
    ),
    (
        Fault::FlipBits,
        "flip-bits",
        "damage a file of a member that was killed; replace the member at the end",
    ),
    (Fault::Truncate, "truncate", "the same: cut the file short"),
    (Fault::DeleteFile, "delete-file", "the same: remove the file"),
    (
        Fault::RestoreOld,
        "restore-old",
        "at the end put a member's data back to what it was at the beginning; replace it",
    ),
    (
        Fault::PowerOff,
        "power-off",
        "a machine of a cluster and all its pods are gone; it is on again at the end",
    ),
    (Fault::Drain, "drain", "cordon a node of a cluster and evict its pods; uncordon it at the end"),
];

impl Fault {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        FAULTS.iter().find(|(fault, ..)| *fault == self).map_or("unknown", |(_, name, _)| name)
    }

    /// Whether a member may end by itself under it: one whose disk failed does not go on as if nothing had happened.
    pub fn may_end_members(self) -> bool {
        matches!(
            self,
            Self::DiskErrorOnce
                | Self::DiskError
                | Self::DiskFull
                | Self::LoseUnsynced
                | Self::PowerCut
                | Self::FlipBits
                | Self::Truncate
                | Self::DeleteFile
        )
    }

    /// Whether it can befall the machines of a whole cluster.
    pub fn suits_clusters(self) -> bool {
        use Fault::*;
        self.needs_machines()
            || matches!(
                self,
                Kill | KillAll | Pause | Terminate | RollingRestart | KillWhileBooting | Isolate
            )
    }

    /// Whether it can befall nothing else.
    pub fn needs_machines(self) -> bool {
        matches!(self, Self::PowerOff | Self::Drain)
    }

    /// Whether the members' directories must lie on disks that can fail.
    pub fn needs_disks(self) -> bool {
        use Fault::*;
        matches!(
            self,
            DiskErrorOnce | DiskError | DiskFull | DiskSlow | DiskHang | LoseUnsynced | PowerCut | TornWrite
        )
    }
}

/// What must be undone.
struct Active {
    fault: Fault,
    targets: Vec<usize>,
    /// What the links had held back when it began.
    held: u64,
    /// What the disks had refused or lost when it began.
    hits: u64,
    /// Ends what goes on during the fault.
    busy: Option<tokio_util::sync::DropGuard>,
}

/// Carries faults out.
pub struct Nemesis {
    recorder: Recorder,
    random: StdRng,
    active: Vec<(usize, Active)>,
}

impl Nemesis {
    /// One that records what it does.
    pub fn new(recorder: Recorder, random: StdRng) -> Self {
        Self { recorder, random, active: Vec::new() }
    }

    /// Names of the faults that are under way.
    pub fn active(&self) -> Vec<&'static str> {
        self.active.iter().map(|(_, active)| active.fault.name()).collect()
    }

    /// Begins the fault of an entry; `number` names it until its end. One that cannot be carried out is recorded as such.
    pub async fn begin(&mut self, site: &mut Site, entry: &Entry, number: usize) {
        let targets = self.targets(site, entry).await;
        let names: Vec<&str> = targets.iter().map(|target| site.name(*target)).collect();
        let value = json!({"phase": "begin", "targets": names, "number": number});
        let held = site.held();
        let hits = site.disk_hits();
        match self.inflict(site, entry, &targets).await {
            Ok(busy) => {
                // A machine's only link is cut or not; what is held back on links can be counted.
                let is_proven = site.as_machines().is_some() || !is_proven_at_end(entry.fault);
                let note = if is_proven { "fire" } else { "begin" };
                self.note(entry.fault, note, value, None);
                self.active.push((number, Active { fault: entry.fault, targets, held, hits, busy }));
            }
            Err(error) => self.note(entry.fault, "begin", value, Some(format!("{error:#}"))),
        }
    }

    /// Ends the fault of that number.
    pub async fn end(&mut self, site: &mut Site, number: usize) {
        let Some(at) = self.active.iter().position(|(other, _)| *other == number) else { return };
        let (_, mut active) = self.active.remove(at);
        drop(active.busy.take());
        let had_effect = match active.fault {
            fault if fault.needs_disks() => site.disk_hits() > active.hits,
            _ => site.held() > active.held,
        };
        let undone = self.undo(site, &active).await;
        let names: Vec<&str> = active.targets.iter().map(|target| site.name(*target)).collect();
        let value = json!({"phase": "end", "targets": names, "number": number});
        if is_proven_at_end(active.fault) && had_effect {
            self.note(active.fault, "fire", value.clone(), None);
        }
        self.note(active.fault, "end", value, undone.err().map(|error| format!("{error:#}")));
    }

    /// Ends every fault, makes every link and disk whole, and starts every member that does not run.
    ///
    /// # Errors
    /// When a member cannot be started.
    pub async fn heal(&mut self, site: &mut Site) -> anyhow::Result<()> {
        let numbers: Vec<usize> = self.active.iter().map(|(number, _)| *number).collect();
        for number in numbers {
            self.end(site, number).await;
        }
        site.heal()?;
        match site.group() {
            Ok(group) => group.take_in().await,
            // The members of a cluster are never lost.
            Err(_) => Ok(()),
        }
    }

    /// Only notes with the word *fire* prove that a fault had an effect.
    fn note(&self, fault: Fault, word: &str, mut value: serde_json::Value, error: Option<String>) {
        value["note"] = json!(word);
        let name = if word == "fire" { fault.name().to_owned() } else { format!("{}:{word}", fault.name()) };
        self.recorder.info(NEMESIS, &name, value, error);
    }

    async fn targets(&mut self, site: &mut Site, entry: &Entry) -> Vec<usize> {
        let (members, nodes): (Vec<usize>, Vec<usize>) =
            site.running().into_iter().partition(|number| *number < site.members());
        let any = |random: &mut StdRng, among: &[usize]| {
            (!among.is_empty()).then(|| among[random.random_range(0..among.len())])
        };
        let of = match (entry.fault, &entry.of) {
            // Between a leader that reaches everybody and its followers nothing would be cut.
            (Fault::Bridge, Of::One) => &Of::Follower,
            (Fault::Drain, Of::Node | Of::Nodes | Of::Member(_)) => &entry.of,
            (Fault::Drain, _) => &Of::Node,
            (_, of) => of,
        };
        match of {
            Of::Leader => match site.leader().await {
                Some(leader) => vec![leader],
                None => any(&mut self.random, &members).into_iter().collect(),
            },
            Of::Follower => {
                let leader = site.leader().await;
                let others: Vec<usize> = members.into_iter().filter(|n| Some(*n) != leader).collect();
                any(&mut self.random, &others).into_iter().collect()
            }
            Of::One => any(&mut self.random, &members).into_iter().collect(),
            Of::Minority => {
                let mut rest = members;
                let count = (site.members() - 1) / 2;
                let mut chosen = Vec::new();
                while let Some(one) = any(&mut self.random, &rest).filter(|_| chosen.len() < count) {
                    rest.retain(|other| *other != one);
                    chosen.push(one);
                }
                chosen
            }
            Of::Majority => members.into_iter().take(site.members() / 2 + 1).collect(),
            Of::All => members,
            Of::Node => any(&mut self.random, &nodes).into_iter().collect(),
            Of::Nodes => nodes,
            Of::Member(name) => (0..site.nodes().end).filter(|n| site.name(*n) == name).collect(),
        }
    }

    async fn inflict(
        &mut self,
        site: &mut Site,
        entry: &Entry,
        targets: &[usize],
    ) -> anyhow::Result<Option<tokio_util::sync::DropGuard>> {
        use Fault::*;
        anyhow::ensure!(!targets.is_empty(), "no member to do it to");
        match entry.fault {
            Kill | KillAll | Pause | Terminate | RollingRestart | KillWhileBooting => {
                processes::inflict(site, entry, targets, &mut self.random).await.map(|()| None)
            }
            Compact | Defragment | MoveLeader => {
                processes::maintain(site.group()?, entry.fault, targets).await.map(|()| None)
            }
            ReplaceMember => processes::replace(site.group()?, targets).await.map(|()| None),
            FlipBits | Truncate | DeleteFile | RestoreOld => {
                let random = &mut self.random;
                damage::inflict(site.group()?, entry.fault, targets, random).await.map(|()| None)
            }
            fault if fault.needs_disks() => disks::inflict(site.group()?, entry, targets).map(|()| None),
            fault if fault.needs_machines() || site.as_machines().is_some() => {
                machines::inflict(site.machines()?, fault, targets).await.map(|()| None)
            }
            _ => networks::inflict(site.group()?, entry, targets),
        }
    }

    async fn undo(&mut self, site: &mut Site, active: &Active) -> anyhow::Result<()> {
        use Fault::*;
        match active.fault {
            HalfOpen => {
                networks::undo(site.group()?);
                processes::start_again(site, &active.targets)
            }
            Kill | KillAll | Terminate | KillWhileBooting | LoseUnsynced | PowerCut | TornWrite => {
                processes::start_again(site, &active.targets)
            }
            Pause => processes::resume(site, &active.targets),
            RollingRestart | Compact | Defragment | MoveLeader => Ok(()),
            ReplaceMember => site.group()?.take_in().await,
            FlipBits | Truncate | DeleteFile | RestoreOld => {
                damage::undo(site.group()?, active.fault, &active.targets).await
            }
            fault if fault.needs_disks() => {
                disks::undo(site.group()?, &active.targets);
                processes::start_again(site, &active.targets)
            }
            fault if fault.needs_machines() || site.as_machines().is_some() => {
                machines::undo(site.machines()?, fault, &active.targets).await
            }
            _ => {
                networks::undo(site.group()?);
                Ok(())
            }
        }
    }
}

/// Faults that have an effect only if something happens to run into them.
fn is_proven_at_end(fault: Fault) -> bool {
    use Fault::*;
    matches!(
        fault,
        Isolate
            | IsolateInbound
            | IsolateOutbound
            | Halves
            | Bridge
            | Ring
            | Delay
            | Loss
            | Bandwidth
            | CutClients
            | DiskErrorOnce
            | DiskError
            | DiskFull
            | DiskSlow
            | DiskHang
    )
}

/// How long a fault lasts if nothing else is said.
pub const LASTING: Duration = Duration::from_secs(1);
