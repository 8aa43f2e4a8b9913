//! A leader whose process is dead is followed at once, not after its lease.
//!
//! A process that dies takes its connections along: the stream over which its entries came breaks, and nobody
//! listens at its address. Then it certainly leads no more, and there is no reason to sit its lease out. (A machine that
//! is gone or cut off refuses nothing; it is waited for as always.)
//!
//! Only the lease is skipped. The votes are those of any election (Raft paper, section 5.2), asked for as in a
//! transfer of the leadership (Raft thesis, section 3.10), and reads do not depend on the lease; where they do
//! (`lease_reads`), what was promised to the leader is waited for. So a wrong guess costs a term, never an answer. The followers
//! agree on who asks: of those with the longest log the one with the smallest id; if nothing comes of it, because that one noticed
//! nothing yet or an answer was lost, the next. They do not know how long an election takes, with the disks and the network
//! that they have: each waits longer than the one before, so that two that split the votes do not do so again and again. If none
//! succeeds, the usual timeouts decide.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use proto::raft as wire;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bootstrap;
use crate::raft::MemberId;
use crate::raft::types::{Vote, log_id};
use crate::store::Store;

/// Whoever does not refuse a connection within this time may be alive.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);
/// The other followers answer within this time, or are not waited for.
const COMPARE_WITHIN: Duration = Duration::from_millis(50);

/// So often it is tried, and for as long as nobody campaigns by the usual timeouts…
const ATTEMPTS_MIN: u32 = 6;
/// …with this pause at first, in which an election takes place, or a dying process lets go of its last sockets.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(60);
/// After so many attempts the pause is twice as long.
const PAUSE_DOUBLES_AFTER: u32 = 2;

/// Told when a stream of entries breaks.
#[derive(Debug, Clone, Default)]
pub(crate) struct BrokenStreams(Arc<Notify>);

/// Kept beside a stream of entries; it tells when it is dropped and the stream was not ended by its leader.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    broken: BrokenStreams,
    ended: Arc<AtomicBool>,
}

impl BrokenStreams {
    /// The guard of a stream, and what its end is to be noted in.
    pub(crate) fn guard(&self) -> (StreamGuard, Arc<AtomicBool>) {
        let ended = Arc::new(AtomicBool::new(false));
        (StreamGuard { broken: self.clone(), ended: Arc::clone(&ended) }, ended)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if !self.ended.load(Ordering::Relaxed) {
            self.broken.0.notify_one();
        }
    }
}

/// At each follower: looks after a broken stream whether its leader is dead.
pub(crate) async fn run(store: Store) {
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = store.broken_streams().0.notified() => {}
        }
        let followed = own_vote(&store);
        let (began, patience) = (Instant::now(), store.config().election_timeout_min);
        let mut dead = None;
        let mut pause = ATTEMPT_PAUSE;
        for attempt in 0.. {
            if attempt >= ATTEMPTS_MIN && began.elapsed() + pause > patience {
                break;
            }
            if dead.is_none() {
                dead = dead_leader(&store).await;
            }
            if let Some(dead) = dead {
                succeed(&store, dead, attempt).await;
            }
            tokio::select! {
                () = store.stopping() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let now = own_vote(&store);
            if now.committed && now != followed {
                break;
            }
            if (attempt + 1) % PAUSE_DOUBLES_AFTER == 0 {
                pause *= 2;
            }
        }
    }
}

fn own_vote(store: &Store) -> Vote {
    store.raft().metrics().borrow_watched().vote
}

/// The leader that this member follows, if its process is gone.
async fn dead_leader(store: &Store) -> Option<MemberId> {
    let leader = store.leadership().leader.filter(|leader| *leader != store.member_id())?;
    let address = store.newest_members().into_iter().find(|member| member.id == leader)?.member.address;
    let refused = tokio::time::timeout(REFUSED_WITHIN, store.connector().refuses(&address)).await;
    refused.unwrap_or(false).then_some(leader)
}

/// Campaigns, if this is the follower whose turn it is.
async fn succeed(store: &Store, dead: MemberId, attempt: u32) {
    let vote = own_vote(store);
    let last = store.last_log_id();
    let voters = store.newest_members().into_iter().filter(|member| member.voter);
    let mut others: BTreeMap<_, _> = voters.map(|status| (status.id, status.member)).collect();
    others.remove(&dead);
    let is_voter = others.remove(&store.member_id()).is_some();
    // Whoever has another's request for its vote granted leaves it to that one.
    if !is_voter || ![dead, store.member_id()].contains(&vote.leader_id.voted_for) {
        return;
    }
    let round = bootstrap::probe_all(store, &others, COMPARE_WITHIN).await;
    let log = |answer: &wire::ProbeResponse| log_id(answer.last_log_term, answer.last_log_index);
    let logs = round.answers.iter().map(|answer| (answer.member_id, answer.has_log.then(|| log(answer))));
    let logs: BTreeMap<_, _> = logs.collect();
    let longer = logs.values().any(|theirs| *theirs > last);
    // Who says nothing may have the same log.
    let before = others.keys().filter(|id| **id < store.member_id());
    let before = before.filter(|id| logs.get(id).is_none_or(|theirs| *theirs == last)).count();
    if longer || round.has_leader() || attempt as usize % (others.len() + 1) != before {
        return;
    }
    tracing::info!(leader = %format!("{dead:x}"), attempt, "the leader's process is gone; asking for its office");
    let waiting = Instant::now();
    let _early = store.may_elect_early().await;
    if store.leader_silence().is_some_and(|silence| silence < waiting.elapsed()) {
        tracing::info!("the leader lives after all; it only refuses connections");
        return;
    }
    // It granted its vote to another one meanwhile.
    if own_vote(store) != vote {
        return;
    }
    let raft = store.raft();
    // Both are given up if another leader was heard of meanwhile, and fail only when consensus has ended.
    let _ = if vote.leader_id.voted_for == dead {
        let request = TransferLeaderRequest::new(vote, store.member_id(), last);
        raft.handle_transfer_leader(request).await.map(drop)
    } else {
        // A vote for itself has no lease left that a transfer would have to skip, neither here nor at those who split the
        // votes; and consensus would wait for entries of that term before it took a transfer (openraft 0.10).
        raft.trigger().elect(false).await
    };
}
