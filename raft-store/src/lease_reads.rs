//! Linearizable reads at the leader without a round, while a majority has promised not to elect another one.
//!
//! Off unless [`Config::lease_reads`](crate::Config) is set. The consensus library's own lease is not enough for this:
//! `succession` elects past it, a restarted member has forgotten it, and an acknowledgement that comes late
//! counts from a later request. So the leader asks for promises of its own:
//!
//! ```text
//!   leader    asks every follower, each heartbeat          ── PromiseLease ──►
//!   follower  its vote is the leader's, the leader's last message came `age` ago   ◄── age ──
//!   leader    counts from `age` before it asked, and half of the lease only
//! ```
//!
//! A member that has promised elects nobody for a whole lease from then on: not at its own time-out (the consensus
//! library sees to that), not early, and it keeps an early candidate's request waiting. After a start a member that
//! may have promised takes no part for as long. A leader that hands over answers nothing more by itself, and releases
//! the promises. Every majority that could elect has a member in common with the one that has promised, so nobody else
//! writes while the leader counts.
//!
//! The assumption about clocks: of two members' monotonic clocks neither runs twice as fast as the other, and
//! none stands still while its machine is suspended or moved and the others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::ReadPolicy;
use openraft::async_runtime::instant::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use proto::raft as wire;
use tokio::sync::{MutexGuard, Notify};
use tokio::time::Instant;

use crate::raft::types::{LogId, Vote};
use crate::raft::{MemberId, PeerClient, codec};
use crate::store::Store;

/// A file that is there while a member may have promised something.
const MARKER: &str = "lease-reads";

/// See the module's head; one for each store.
#[derive(Debug, Default)]
pub(crate) struct LeaseReads {
    /// As the leader: what the followers have promised.
    lease: Mutex<Option<Lease>>,
    /// As a follower.
    promise: tokio::sync::Mutex<Promise>,
    released: Notify,
    /// The next start will know that something may have been promised.
    marked: AtomicBool,
}

#[derive(Debug)]
struct Lease {
    term: u64,
    /// The list of members by which a majority was counted.
    membership: Option<LogId>,
    until: Instant,
}

/// What this member has promised.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    to: Option<Vote>,
    until: Option<Instant>,
    /// Is handing over, so that it is promised nothing more.
    released: Option<Vote>,
}

impl Store {
    fn lease_reads(&self) -> &LeaseReads {
        self.admission().lease_reads()
    }

    /// How long a member that has heard of its leader elects no other.
    fn lease_length(&self) -> Duration {
        self.config().election_timeout_max
    }

    /// What a read must wait for, if the promises of the others allow to say so without asking them.
    pub(crate) async fn read_index_by_lease(&self) -> Option<u64> {
        if !self.config().lease_reads {
            return None;
        }
        // It also refuses while this leader hands over, and before it has committed an entry of its own.
        let linearizer = self.raft().get_read_linearizer(ReadPolicy::LeaseRead).await.ok()?;
        // Only now: what holds now held when consensus was asked.
        let holds = {
            let metrics = self.raft().metrics();
            let metrics = metrics.borrow_watched();
            let lease = self.lease_reads().lease.lock().expect("no code panics while it holds this lock");
            lease.as_ref().is_some_and(|lease| {
                lease.term == metrics.current_term
                    && lease.membership == *metrics.membership_config.log_id()
                    && Instant::now() < lease.until
            })
        };
        holds.then(|| {
            self.counters().count_lease_read();
            linearizer.read_log_id().index()
        })
    }

    /// A leader's request: promises it what the module's head says, if it is this member's leader.
    pub(crate) async fn promise_lease(&self, to: Vote) -> wire::PromiseLeaseResponse {
        let refused = wire::PromiseLeaseResponse::default();
        if !self.config().lease_reads || !self.lease_reads().marked.load(Ordering::Acquire) {
            return refused;
        }
        let mut promise = self.lease_reads().promise.lock().await;
        if promise.released == Some(to) {
            return refused;
        }
        let asked = self.raft().with_raft_state(|state| {
            let heard = state.vote_last_modified().map(|heard| heard.elapsed());
            (*state.vote_ref(), heard)
        });
        match asked.await {
            Ok((vote, Some(age))) if vote == to && vote.committed && age < self.lease_length() => {
                *promise = Promise {
                    to: Some(to),
                    until: Some(Instant::now() + self.lease_length()),
                    released: None,
                };
                wire::PromiseLeaseResponse { promised: true, age_us: age.as_micros() as u64 }
            }
            _ => refused,
        }
    }

    /// Waits until nothing is promised. Nothing can be while the answer is kept.
    pub(crate) async fn may_elect_early(&self) -> MutexGuard<'_, Promise> {
        loop {
            let released = self.lease_reads().released.notified();
            let until = {
                let promise = self.lease_reads().promise.lock().await;
                match promise.until.filter(|until| *until > Instant::now()) {
                    None => return promise,
                    Some(until) => until,
                }
            };
            tokio::select! {
                () = released => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// A leader hands over: it reads no more by what it was promised.
    pub(crate) async fn release_lease(&self, from: Vote) {
        let mut promise = self.lease_reads().promise.lock().await;
        if promise.to.is_none_or(|to| to == from) {
            *promise = Promise { to: None, until: None, released: Some(from) };
            self.lease_reads().released.notify_waiters();
        }
    }

    /// Before this member takes part: waits for what an earlier process may have promised, and leaves word for the
    /// next.
    pub(crate) async fn wait_out_promises(&self) {
        let marker = self.config().data_dir.join(MARKER);
        let wanted = self.config().lease_reads;
        let was_marked = marker.exists();
        if was_marked {
            tokio::time::sleep(self.lease_length()).await;
        }
        let changed = match (was_marked, wanted) {
            (false, true) => mark(&marker),
            (true, false) => unmark(&marker),
            _ => Ok(()),
        };
        match changed {
            Ok(()) => self.lease_reads().marked.store(wanted, Ordering::Release),
            Err(error) => {
                tracing::warn!(%error, "no lease reads: cannot leave word of them for the next start")
            }
        }
    }
}

fn mark(marker: &Path) -> std::io::Result<()> {
    std::fs::File::create(marker)?.sync_all()?;
    sync_directory_of(marker)
}

fn unmark(marker: &Path) -> std::io::Result<()> {
    std::fs::remove_file(marker)?;
    sync_directory_of(marker)
}

fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    let directory: PathBuf = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    std::fs::File::open(directory)?.sync_all()
}

/// At the leader: has the promises renewed until the store stops.
pub(crate) async fn run(store: Store) {
    if !store.config().lease_reads {
        return;
    }
    let mut clients = Clients::default();
    let mut counted_from = BTreeMap::new();
    let mut term = 0;
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(store.config().heartbeat_interval) => {}
        }
        let (vote, membership, voters) = {
            let metrics = store.raft().metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != openraft::ServerState::Leader {
                continue;
            }
            let list = metrics.membership_config.membership();
            (metrics.vote, *metrics.membership_config.log_id(), list.get_joint_config().clone())
        };
        if vote.leader_id.term != term {
            term = vote.leader_id.term;
            counted_from.clear();
        }
        renew(&store, vote, &voters, &mut clients, &mut counted_from).await;
        let from = promised_from(&voters, store.member_id(), &counted_from);
        let lease = from.map(|from| Lease { term, membership, until: from + store.lease_length() / 2 });
        *store.lease_reads().lease.lock().expect("no code panics while it holds this lock") = lease;
    }
}

/// With the address, and the generation of certificates, that each was made for.
type Clients = BTreeMap<MemberId, ((String, u64), PeerClient)>;

/// Asks every other voter once.
async fn renew(
    store: &Store,
    vote: Vote,
    voters: &[BTreeSet<MemberId>],
    clients: &mut Clients,
    counted_from: &mut BTreeMap<MemberId, Instant>,
) {
    let others: BTreeSet<_> =
        voters.iter().flatten().copied().filter(|id| *id != store.member_id()).collect();
    let mut asked = Vec::new();
    for id in others {
        let Some(address) = store.address_of(id) else { continue };
        let address = (address, store.connector().generation());
        if clients.get(&id).is_none_or(|(at, _)| *at != address) {
            let Ok(client) = store.connector().client(id, &address.0) else { continue };
            clients.insert(id, (address, client));
        }
        let Some((_, client)) = clients.get(&id) else { continue };
        let mut client = client.clone();
        let request = wire::PromiseLeaseRequest { vote: Some(codec::vote_to_wire(&vote)) };
        asked.push(async move {
            let at = Instant::now();
            let answer = client.promise_lease(request).await.ok()?.into_inner();
            let from = at.checked_sub(Duration::from_micros(answer.age_us))?;
            answer.promised.then_some((id, from))
        });
    }
    let within = store.lease_length() / 4;
    let answers = join_all(asked.into_iter().map(|ask| tokio::time::timeout(within, ask))).await;
    for (id, from) in answers.into_iter().filter_map(|answer| answer.ok().flatten()) {
        let known = counted_from.entry(id).or_insert(from);
        *known = (*known).max(from);
    }
}

/// The instant from which on a majority of each set of voters has promised.
fn promised_from(
    voters: &[BTreeSet<MemberId>],
    own: MemberId,
    counted_from: &BTreeMap<MemberId, Instant>,
) -> Option<Instant> {
    let now = Instant::now();
    let of_set = |set: &BTreeSet<MemberId>| {
        let own = set.contains(&own).then_some(now);
        let others = set.iter().filter_map(|id| counted_from.get(id).copied());
        let mut from: Vec<_> = others.chain(own).collect();
        from.sort_unstable_by(|left, right| right.cmp(left));
        from.get(set.len() / 2).copied()
    };
    voters.iter().map(of_set).min().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_oldest_promise_of_the_newest_majority() {
        let now = Instant::now();
        let ago = |ms| now.checked_sub(Duration::from_millis(ms)).expect("the machine has run for longer");
        let promised = BTreeMap::from([(2, ago(20)), (3, ago(50)), (4, ago(10))]);
        let from = |sets: &[&[MemberId]]| {
            let sets: Vec<BTreeSet<_>> = sets.iter().map(|set| set.iter().copied().collect()).collect();
            promised_from(&sets, 1, &promised)
        };
        assert_eq!(from(&[&[1, 2, 3]]), Some(ago(20)));
        assert_eq!(from(&[&[1, 2, 3, 4, 5]]), Some(ago(20)));
        assert_eq!(from(&[&[2, 3, 4]]), Some(ago(20)), "a leader that is no voter does not count");
        assert_eq!(from(&[&[1, 2, 3, 4]]), Some(ago(20)));
        assert_eq!(from(&[&[1, 5, 6]]), None);
        assert_eq!(from(&[&[1, 2, 3], &[1, 3, 5]]), Some(ago(50)), "of both sets while they change");
        assert_eq!(from(&[&[1, 2, 3], &[1, 5, 6]]), None);
        assert!(from(&[&[1]]) >= Some(now));
        assert_eq!(from(&[]), None);
    }
}
