//! The clock of store leases: the leader's alone.
//!
//! Which leases exist, and how long they live, is replicated; *when* they run out is known to the leader only,
//! in memory. It revokes what has run out through the log, fenced by its term, so that a deposed leader's
//! clock deletes nothing. A new leader gives every lease its whole time, or what was left at the last checkpoint,
//! and one election timeout on top: a lease may live longer over a change of leaders, never shorter.
//! Keeping a lease alive is a linearizable act: the leader has a majority confirm it first.
//!
//! With nothing to do it costs nothing: one timer for the lease that ends next, one for checkpoints.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use proto::raft as wire;
use state_machine::{ApplyError, Command, Fence, LeaseRemaining, LeaseState, Outcome};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Error;
use crate::mutants::{self, Mutant};
use crate::store::Store;

/// Leases revoked at the same time; their entries share a write to the log.
const REVOKES_AT_ONCE_MAX: usize = 256;
/// Between two such batches when more have run out: about 5,000 a second at most.
const REVOKE_PAUSE: Duration = Duration::from_millis(50);
/// Until a revocation that failed is tried again.
const REVOKE_RETRY: Duration = Duration::from_millis(500);
/// Leases in one checkpoint entry.
const CHECKPOINT_LEASES_MAX: usize = 1000;
/// Until the leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// One question to the leader.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Revoked leases that may still be on the clock before it is swept, at least.
const STALE_LEASES_MIN: usize = 1024;

/// What the leader says of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseTime {
    /// As granted.
    pub(crate) ttl_seconds: i64,
    /// Left.
    pub(crate) remaining: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Tracked {
    ttl_seconds: i64,
    ends: Instant,
}

/// The times of all leases, under one term.
#[derive(Debug)]
struct Clock {
    term: u64,
    leases: HashMap<i64, Tracked>,
    queue: BTreeSet<(Instant, i64)>,
    /// Run out; their revocations are on the way.
    ending: HashSet<i64>,
    /// Leases revoked since the last sweep, which may still be in `leases`.
    stale: usize,
}

impl Clock {
    fn new(term: u64) -> Self {
        Self { term, leases: HashMap::new(), queue: BTreeSet::new(), ending: HashSet::new(), stale: 0 }
    }

    fn set(&mut self, id: i64, ttl_seconds: i64, left: Duration) {
        // A time to live beyond what an instant can say is as good as for ever.
        let now = Instant::now();
        let ends = now.checked_add(left).unwrap_or(now + Duration::from_secs(60 * 60 * 24 * 365 * 100));
        if let Some(before) = self.leases.insert(id, Tracked { ttl_seconds, ends }) {
            self.queue.remove(&(before.ends, id));
        }
        self.ending.remove(&id);
        self.queue.insert((ends, id));
    }

    fn forget(&mut self, id: i64) {
        if let Some(before) = self.leases.remove(&id) {
            self.queue.remove(&(before.ends, id));
        }
        self.ending.remove(&id);
    }

    /// Takes out what has run out, to be revoked.
    fn take_ended(&mut self, now: Instant) -> Vec<i64> {
        let mut ended = Vec::new();
        while ended.len() < REVOKES_AT_ONCE_MAX
            && let Some(&(ends, id)) = self.queue.first()
            && ends <= now
        {
            self.queue.pop_first();
            self.ending.insert(id);
            ended.push(id);
        }
        ended
    }
}

/// How an attempt to begin a lease's time anew ended.
enum Renewal {
    Renewed(LeaseState),
    Gone,
    /// It has run out; whether it is revoked is being decided.
    Ending,
    NotLeading,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    /// While this member leads.
    clock: Mutex<Option<Clock>>,
    /// The runner has something to look at.
    work: Notify,
    /// A lease was revoked, or this member leads no more.
    revoked: Notify,
}

fn seconds(ttl_seconds: i64) -> Duration {
    let whole = Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0));
    if mutants::is(Mutant::EndLeasesEarly) { whole / 2 } else { whole }
}

impl Lessor {
    fn lock(&self) -> MutexGuard<'_, Option<Clock>> {
        self.clock.lock().expect("no code panics while it holds the clock's lock")
    }

    /// Takes note of what a command did. Called under the state's lock, in the order of the log.
    pub(crate) fn note(&self, outcome: &Outcome) {
        match outcome {
            Outcome::LeaseGranted { id, ttl_seconds, .. } => {
                let mut clock = self.lock();
                let Some(clock) = clock.as_mut() else { return };
                clock.set(*id, *ttl_seconds, seconds(*ttl_seconds));
                if clock.queue.first().is_some_and(|(_, first)| first == id) {
                    self.work.notify_one();
                }
            }
            Outcome::LeaseRevoked { .. } => {
                if let Some(clock) = self.lock().as_mut() {
                    clock.stale += 1;
                    if clock.stale > STALE_LEASES_MIN && clock.stale > clock.leases.len() / 2 {
                        self.work.notify_one();
                    }
                }
                self.revoked.notify_waiters();
            }
            _ => {}
        }
    }

    /// Begins to keep time: every lease has its whole time, or what was left of it, and `extra`.
    fn promote(&self, store: &Store, term: u64) {
        let shared = store.shared();
        let state = shared.read();
        let extra = store.config().election_timeout_max;
        let mut clock = Clock::new(term);
        for lease in state.machine.leases() {
            let left = match lease.remaining_ttl_seconds {
                0 => lease.ttl_seconds,
                left => left,
            };
            clock.set(lease.id, lease.ttl_seconds, seconds(left) + extra);
        }
        *self.lock() = Some(clock);
    }

    fn demote(&self) {
        *self.lock() = None;
        self.revoked.notify_waiters();
    }

    fn renew(&self, store: &Store, id: i64) -> Renewal {
        let shared = store.shared();
        let state = shared.read();
        let Some((lease, _)) = state.machine.lease(id) else { return Renewal::Gone };
        let mut clock = self.lock();
        let Some(clock) = clock.as_mut() else { return Renewal::NotLeading };
        let ended = clock.leases.get(&id).is_some_and(|tracked| tracked.ends <= Instant::now());
        if ended || clock.ending.contains(&id) {
            return Renewal::Ending;
        }
        clock.set(id, lease.ttl_seconds, seconds(lease.ttl_seconds));
        Renewal::Renewed(lease)
    }

    /// What is left of a lease.
    fn time(&self, store: &Store, id: i64) -> Result<Option<LeaseTime>, NotLeading> {
        let shared = store.shared();
        let state = shared.read();
        let Some((lease, _)) = state.machine.lease(id) else { return Ok(None) };
        let clock = self.lock();
        let tracked = clock.as_ref().ok_or(NotLeading)?.leases.get(&id);
        let remaining =
            tracked.map_or(Duration::ZERO, |lease| lease.ends.saturating_duration_since(Instant::now()));
        Ok(Some(LeaseTime { ttl_seconds: lease.ttl_seconds, remaining }))
    }

    /// Takes leases off the clock that are gone.
    fn sweep(&self, store: &Store) {
        let shared = store.shared();
        let state = shared.read();
        if let Some(clock) = self.lock().as_mut()
            && clock.stale > STALE_LEASES_MIN
            && clock.stale > clock.leases.len() / 2
        {
            let gone: Vec<i64> =
                clock.leases.keys().copied().filter(|id| state.machine.lease(*id).is_none()).collect();
            gone.into_iter().for_each(|id| clock.forget(id));
            clock.stale = 0;
        }
    }
}

struct NotLeading;

/// How a question to the leader ended without an answer.
enum Unanswered {
    NotLeading,
    Failed(String),
}

impl Store {
    /// Begins the time of a lease anew and says what it has then; `None` if it is gone.
    pub(crate) async fn lease_renew(&self, id: i64) -> Result<Option<LeaseTime>, Error> {
        self.ask_lease_time(id, true).await
    }

    /// What is left of a lease; `None` if it is gone.
    pub(crate) async fn lease_time(&self, id: i64) -> Result<Option<LeaseTime>, Error> {
        self.ask_lease_time(id, false).await
    }

    async fn ask_lease_time(&self, id: i64, renew: bool) -> Result<Option<LeaseTime>, Error> {
        let deadline = Instant::now() + self.config().propose_timeout;
        loop {
            let asked = match self.leadership().leader {
                Some(leader) if leader == self.member_id() => self.lease_time_here(id, renew).await,
                Some(leader) => self.lease_time_at(leader, id, renew).await,
                None => Err(Unanswered::Failed("no leader is known".into())),
            };
            let reason = match asked {
                Ok(time) => return Ok(time),
                Err(Unanswered::NotLeading) => "the member asked does not lead".to_owned(),
                Err(Unanswered::Failed(reason)) => reason,
            };
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(Error::Unavailable { reason });
            }
            tokio::select! {
                () = self.stopping() => return Err(Error::Stopped { reason: "it is shutting down".into() }),
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
    }

    async fn lease_time_here(&self, id: i64, renew: bool) -> Result<Option<LeaseTime>, Unanswered> {
        // A majority confirms that this member leads, and it has applied what they know.
        self.linearize().await.map_err(|error| Unanswered::Failed(error.to_string()))?;
        let shared = self.shared();
        let lessor = &shared.lessor;
        if !renew {
            return lessor.time(self, id).map_err(|NotLeading| Unanswered::NotLeading);
        }
        loop {
            let mut revoked = std::pin::pin!(lessor.revoked.notified());
            // Before looking, so that no revocation falls between.
            revoked.as_mut().enable();
            match lessor.renew(self, id) {
                Renewal::Gone => return Ok(None),
                Renewal::NotLeading => return Err(Unanswered::NotLeading),
                Renewal::Renewed(lease) => {
                    if lease.remaining_ttl_seconds != 0 {
                        self.forget_checkpoint(id).await?;
                    }
                    let ttl_seconds = lease.ttl_seconds;
                    return Ok(Some(LeaseTime { ttl_seconds, remaining: seconds(ttl_seconds) }));
                }
                Renewal::Ending => {
                    let patience = self.config().propose_timeout;
                    if tokio::time::timeout(patience, revoked).await.is_err() {
                        return Err(Unanswered::Failed(
                            "the lease has run out, but is not revoked yet".into(),
                        ));
                    }
                }
            }
        }
    }

    /// A lease that was kept alive has its whole time, for the next leader too.
    async fn forget_checkpoint(&self, id: i64) -> Result<(), Unanswered> {
        let remaining = vec![LeaseRemaining { id, remaining_ttl_seconds: 0 }];
        let fence = Some(Fence { term: self.leadership().term });
        match self.propose(&Command::LeaseCheckpoint { fence, remaining }).await {
            Ok(Outcome::LeaseCheckpointed) => Ok(()),
            Ok(_) => Err(Unanswered::NotLeading),
            Err(error) => Err(Unanswered::Failed(error.to_string())),
        }
    }

    async fn lease_time_at(
        &self,
        leader: crate::raft::MemberId,
        id: i64,
        renew: bool,
    ) -> Result<Option<LeaseTime>, Unanswered> {
        use wire::lease_time_response::Result as R;
        let mut client = self.leader_client(leader).map_err(Unanswered::Failed)?;
        let asked = client.lease_time(wire::LeaseTimeRequest { lease_id: id, renew });
        let patience = QUESTION_TIMEOUT.max(self.config().propose_timeout);
        let answer = tokio::time::timeout(patience, asked)
            .await
            .map_err(|_| Unanswered::Failed("the leader did not answer".into()))?
            .map_err(|status| Unanswered::Failed(status.to_string()))?;
        match answer.into_inner().result {
            Some(R::Time(time)) => Ok(Some(LeaseTime {
                ttl_seconds: time.granted_ttl_seconds,
                remaining: Duration::from_millis(time.remaining_ms),
            })),
            Some(R::Gone(_)) => Ok(None),
            Some(R::NotLeader(_)) => Err(Unanswered::NotLeading),
            Some(R::Unavailable(reason)) => Err(Unanswered::Failed(reason)),
            None => Err(Unanswered::Failed("the leader's answer says nothing".into())),
        }
    }

    /// The answer to another member's question.
    pub(crate) async fn lease_time_for_peer(&self, asked: wire::LeaseTimeRequest) -> wire::LeaseTimeResponse {
        use wire::lease_time_response::Result as R;
        let answer = if self.leadership().is_self {
            self.lease_time_here(asked.lease_id, asked.renew).await
        } else {
            Err(Unanswered::NotLeading)
        };
        let result = match answer {
            Ok(Some(time)) => R::Time(wire::LeaseTime {
                granted_ttl_seconds: time.ttl_seconds,
                remaining_ms: u64::try_from(time.remaining.as_millis()).unwrap_or(u64::MAX),
            }),
            Ok(None) => R::Gone(true),
            Err(Unanswered::NotLeading) => {
                R::NotLeader(wire::NotLeader { leader_id: self.leadership().leader.unwrap_or(0) })
            }
            Err(Unanswered::Failed(reason)) => R::Unavailable(reason),
        };
        wire::LeaseTimeResponse { result: Some(result) }
    }
}

/// Keeps time while this member leads, until the store stops.
pub(crate) async fn run(store: Store) {
    let shared = store.shared();
    let mut leadership = store.watch_leadership();
    loop {
        let term = tokio::select! {
            () = store.stopping() => return,
            now = leadership.wait_for(|now| now.is_self) => match now {
                Ok(now) => now.term,
                Err(_) => return,
            },
        };
        shared.lessor.promote(&store, term);
        let keeps_time = keep_time(&store, term);
        let is_over = tokio::select! {
            () = store.stopping() => true,
            // Nobody says any more who leads when consensus has ended, as it does when the disk fails.
            changed = leadership.wait_for(|now| !now.is_self || now.term != term) => changed.is_err(),
            () = keeps_time => false,
        };
        shared.lessor.demote();
        if is_over {
            return;
        }
    }
}

async fn keep_time(store: &Store, term: u64) {
    let shared = store.shared();
    let lessor = &shared.lessor;
    let period = store.config().lease_checkpoint_interval;
    let mut checkpoints = tokio::time::interval_at(Instant::now() + period, period);
    loop {
        let next = lessor.lock().as_ref().and_then(|clock| clock.queue.first().map(|(ends, _)| *ends));
        let ends = async {
            match next {
                Some(ends) => tokio::time::sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ends => revoke_ended(store, term).await,
            _ = checkpoints.tick() => checkpoint(store, term, period).await,
            () = lessor.work.notified() => lessor.sweep(store),
        }
    }
}

/// Revokes what has run out, a batch.
async fn revoke_ended(store: &Store, term: u64) {
    let shared = store.shared();
    let ended = match shared.lessor.lock().as_mut() {
        Some(clock) if clock.term == term => clock.take_ended(Instant::now()),
        _ => return,
    };
    let all = ended.len();
    let revocations = ended.into_iter().map(|id| async move {
        let command = Command::LeaseRevoke { id, fence: Some(Fence { term }) };
        (id, store.propose(&command).await)
    });
    let mut failed = 0;
    for (id, result) in join_all(revocations).await {
        let revoked = match &result {
            Ok(Outcome::LeaseRevoked { .. } | Outcome::Rejected(ApplyError::LeaseNotFound { .. })) => true,
            Ok(_) | Err(_) => false,
        };
        if let Some(clock) = shared.lessor.lock().as_mut() {
            if revoked {
                clock.forget(id);
            } else if let Some(tracked) = clock.leases.get_mut(&id) {
                // Still `ending`: it has run out, whatever becomes of this attempt.
                tracked.ends = Instant::now() + REVOKE_RETRY;
                let retry = (tracked.ends, id);
                clock.queue.insert(retry);
                failed += 1;
            }
        }
    }
    if failed > 0 {
        tracing::warn!(leases = failed, "could not revoke leases that have run out; trying again");
    }
    if all == REVOKES_AT_ONCE_MAX {
        tokio::time::sleep(REVOKE_PAUSE).await;
    }
}

/// Notes in the log what is left of leases that live longer than the period.
async fn checkpoint(store: &Store, term: u64, period: Duration) {
    let shared = store.shared();
    let now = Instant::now();
    let mut remaining: Vec<LeaseRemaining> = match shared.lessor.lock().as_ref() {
        Some(clock) => clock
            .leases
            .iter()
            .filter(|(id, lease)| seconds(lease.ttl_seconds) > period && !clock.ending.contains(id))
            .map(|(id, lease)| {
                let left = lease.ends.saturating_duration_since(now).as_secs().max(1);
                let left = i64::try_from(left).unwrap_or(i64::MAX).min(lease.ttl_seconds);
                LeaseRemaining { id: *id, remaining_ttl_seconds: left }
            })
            .collect(),
        None => return,
    };
    remaining.sort_unstable_by_key(|lease| lease.id);
    for batch in remaining.chunks(CHECKPOINT_LEASES_MAX) {
        let fence = Some(Fence { term });
        let command = Command::LeaseCheckpoint { fence, remaining: batch.to_vec() };
        if let Err(error) = store.propose(&command).await {
            tracing::warn!(%error, "leases' remaining times were not noted; a new leader would give them more");
            return;
        }
    }
}
