//! How a group comes to be, and how a member comes back to it.
//!
//! A member takes part (votes, acknowledges, campaigns) only after it was *admitted* here, so that one whose
//! directory was lost or exchanged never breaks a promise that it gave before:
//!
//! - With a log, it asks the others what they know of it. Whoever has an acknowledgement of this member that
//!   its log does not hold proves that an older directory was put back: the member refuses to start. When a
//!   leader, confirmed by a majority, does not have it on the list, it was removed and refuses too. When nobody
//!   leads, it takes part.
//! - Without a log, while nobody has more than the first membership, it forms the group: once a majority (with
//!   itself) answers, it writes the initial membership. All members write the same, so it does not matter who
//!   is first.
//! - Without a log, when the group is at work, a confirmed leader must say that this member never started.
//!   Otherwise its disk was wiped: it may have voted or acknowledged what it no longer knows, and refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use proto::raft as wire;
use tokio::time::Instant;

use crate::raft::types::log_id;
use crate::raft::{Member, MemberId};
use crate::store::Store;

const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines in the log that say what is being waited for.
const REPORT_EVERY: u32 = 100;
/// A member without a leader for so long asks whether it was removed.
const LEADERLESS: Duration = Duration::from_secs(2);
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// What a round of probes found.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) answers: Vec<wire::ProbeResponse>,
    silent: Vec<String>,
}

impl Round {
    /// Whether one of them leads for certain.
    pub(crate) fn has_leader(&self) -> bool {
        self.answers.iter().any(|answer| answer.leads)
    }
}

/// Whether this member may take part.
enum Admission {
    Admitted,
    /// Ask again.
    Wait,
    Refused(String),
}

/// Admits this member, or has it stop; forms the group if there is none.
pub(crate) async fn run(store: Store) {
    store.wait_out_promises().await;
    let led = led_last(&store);
    for attempt in 0_u32.. {
        let others = others(&store);
        let round = probe_all(&store, &others, PROBE_TIMEOUT).await;
        let admission = match refusal(&store, &round) {
            Some(reason) => Admission::Refused(reason),
            None if store.has_log() => Admission::Admitted,
            None => without_log(&store, &others, &round).await,
        };
        match admission {
            Admission::Admitted => {
                store.admit();
                if led && !round.has_leader() {
                    // It fails only when consensus has ended, which others notice.
                    let _ = store.raft().trigger().elect(true).await;
                }
                return stay(store).await;
            }
            Admission::Refused(reason) => return store.refuse(reason),
            Admission::Wait => {}
        }
        if attempt % REPORT_EVERY == 0 {
            tracing::info!(
                members = others.len() + 1,
                answered = round.answers.len(),
                silent = %round.silent.join(", "),
                "waiting for a majority of the members, or for their leader"
            );
        }
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(PROBE_PAUSE) => {}
        }
    }
}

/// Every member but this one: by the newest list, or by the one it was started with.
fn others(store: &Store) -> BTreeMap<MemberId, Member> {
    let mut others: BTreeMap<MemberId, Member> =
        store.newest_members().into_iter().map(|status| (status.id, status.member)).collect();
    if others.is_empty() {
        others = store.config().initial_members.clone();
    }
    others.remove(&store.member_id());
    others
}

/// Asks other members what they know; who does not answer within this time is silent.
pub(crate) async fn probe_all(store: &Store, others: &BTreeMap<MemberId, Member>, within: Duration) -> Round {
    let probes = others.iter().map(|(id, member)| probe(store, *id, member, within));
    let mut round = Round::default();
    for (answer, member) in join_all(probes).await.into_iter().zip(others.values()) {
        match answer {
            Ok(answer) => round.answers.push(answer),
            Err(reason) => round.silent.push(format!("{} at {} ({reason})", member.name, member.address)),
        }
    }
    round
}

async fn probe(
    store: &Store,
    id: MemberId,
    member: &Member,
    within: Duration,
) -> Result<wire::ProbeResponse, String> {
    let mut client = store.connector().client(id, &member.address).map_err(|error| error.to_string())?;
    let request = wire::ProbeRequest { cluster_id: store.cluster_id(), member_id: store.member_id() };
    match tokio::time::timeout(within, client.probe(request)).await {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            if response.member_id == id { Ok(response) } else { Err("another member answers there".into()) }
        }
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer".into()),
    }
}

/// Why this member must not take part, if anybody can prove that.
fn refusal(store: &Store, round: &Round) -> Option<String> {
    let id = format!("{:x}", store.member_id());
    let removed = round.answers.iter().any(|answer| answer.leads && !answer.is_member);
    if removed {
        return Some(format!(
            "the member {id} has been permanently removed from the cluster, or was never added to it. Add a member \
             with `barque member add`, and start it with an empty directory and the id it gets"
        ));
    }
    let last = store.last_log_id();
    let Some(last) = last.filter(|_| store.has_log()) else {
        let wiped = round.answers.iter().any(|answer| answer.started || answer.acknowledged_index > 0);
        return wiped.then(|| {
            format!(
                "the others know the member {id} with a log, and its directory is empty: what it had promised to \
                 them is lost, so it must not vote under this id again. Run `barque member remove {id}`, then \
                 `barque member add`, and start it with the new id (--initial-cluster-state existing)"
            )
        });
    };
    let newest =
        round.answers.iter().map(|answer| log_id(answer.acknowledged_term, answer.acknowledged_index));
    let newest = newest.max().filter(|acknowledged| *acknowledged > last)?;
    Some(format!(
        "the log of member {id} ends at index {}, but it has acknowledged index {} to its leader: an older copy of \
         its directory was put back, or its disk lost writes. Put the newest directory back; or run `barque member \
         remove {id}` and `barque member add`, and start it with an empty directory",
        last.index, newest.index
    ))
}

async fn without_log(store: &Store, others: &BTreeMap<MemberId, Member>, round: &Round) -> Admission {
    if round.has_leader() {
        tracing::info!("the group exists already; its leader sends what it has");
        return Admission::Admitted;
    }
    if store.config().join || round.answers.iter().any(|answer| answer.established) {
        return Admission::Wait;
    }
    let members = others.len() + 1;
    let majority = members / 2 + 1;
    if round.answers.len() + 1 < majority {
        return Admission::Wait;
    }
    if round.answers.iter().any(|answer| answer.has_log) {
        tracing::info!("another member has formed the group; waiting for its leader");
        return Admission::Admitted;
    }
    store.admit();
    let members = store.config().initial_members.clone();
    match store.raft().initialize(members.clone()).await {
        Ok(()) => tracing::info!(members = members.len(), "formed a new group"),
        // The leader of a group formed by another member was faster.
        Err(error) => tracing::info!(%error, "did not form a group"),
    }
    Admission::Admitted
}

/// Whether this member led, or meant to, when it went: then it has no rival to wait for, unless somebody leads by now.
///
/// It campaigns like everybody else all the same. openraft could take a leadership up again where a restart broke
/// it off; but such a leader writes no entry to learn what was committed before, and would answer reads without
/// it (Raft paper, section 8).
fn led_last(store: &Store) -> bool {
    store.has_log() && store.raft().metrics().borrow_watched().vote.leader_id.voted_for == store.member_id()
}

/// Notices when this member is removed.
async fn stay(store: Store) {
    let mut on_the_list = false;
    let started = Instant::now();
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(LOOK_PAUSE) => {}
        }
        let listed = store.members().iter().any(|member| member.id == store.member_id());
        if on_the_list && !listed {
            return store.refuse(format!(
                "the member {:x} has been permanently removed from the cluster",
                store.member_id()
            ));
        }
        on_the_list |= listed;
        let silence = store.leader_silence().unwrap_or_else(|| started.elapsed());
        if !store.leadership().is_self && silence > LEADERLESS {
            // The leader does not tell a member that it has removed.
            let round = probe_all(&store, &others(&store), PROBE_TIMEOUT).await;
            if round.answers.iter().any(|answer| answer.leads && !answer.is_member)
                && let Some(reason) = refusal(&store, &round)
            {
                return store.refuse(reason);
            }
        }
    }
}
