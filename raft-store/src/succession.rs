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
//! nothing yet or an answer was lost, the next. If none succeeds, the usual timeouts decide.

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

/// So often it is tried…
const ATTEMPTS: usize = 6;
/// …with this pause, in which an election takes place, or a dying process lets go of its last sockets.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(60);

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
        let followed = vote(&store);
        let mut dead = None;
        for attempt in 0..ATTEMPTS {
            if dead.is_none() {
                dead = dead_leader(&store).await;
            }
            if let Some(dead) = dead {
                succeed(&store, dead, attempt).await;
            }
            tokio::time::sleep(ATTEMPT_PAUSE).await;
            let now = vote(&store);
            if now.committed && now != followed {
                break;
            }
        }
    }
}

fn vote(store: &Store) -> Vote {
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
async fn succeed(store: &Store, dead: MemberId, attempt: usize) {
    let vote = vote(store);
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
    let logs = || {
        let log = |answer: &wire::ProbeResponse| log_id(answer.last_log_term, answer.last_log_index);
        round.answers.iter().map(move |answer| (answer.has_log.then(|| log(answer)), answer.member_id))
    };
    let longer = logs().any(|(theirs, _)| theirs > last);
    let before = logs().filter(|(theirs, id)| *theirs == last && *id < store.member_id()).count();
    if longer || round.has_leader() || attempt % (others.len() + 1) != before {
        return;
    }
    tracing::info!(leader = %format!("{dead:x}"), "the leader's process is gone; asking for its office");
    let waiting = Instant::now();
    let _early = store.may_elect_early().await;
    if store.leader_silence().is_some_and(|silence| silence < waiting.elapsed()) {
        tracing::info!("the leader lives after all; it only refuses connections");
        return;
    }
    // It is given up if another leader was heard of meanwhile. It fails only when consensus has ended.
    let _ =
        store.raft().handle_transfer_leader(TransferLeaderRequest::new(vote, store.member_id(), last)).await;
}
