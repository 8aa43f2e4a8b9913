//! How a group comes to be.
//!
//! Every member is started with the same list of members, in any order. A member that holds no log asks
//! the others: once a majority (with itself) answers and all of them are blank too, it writes the initial
//! membership; all members write the same, so it does not matter who is first. If any of them already holds
//! a log, the group exists, and this member waits for its leader to send what it lacks.

use std::time::Duration;

use proto::raft as wire;

use crate::raft::{Member, MemberId};
use crate::store::Store;

const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines in the log that say what is being waited for.
const REPORT_EVERY: u32 = 100;

/// What a probe of another member found.
enum Probed {
    Blank,
    HasLog,
    NoAnswer(String),
}

/// Forms the group if it does not exist. Ends as soon as this member is part of one.
pub(crate) async fn run(store: Store) {
    if store.has_log() {
        return;
    }
    let members = store.config().initial_members.clone();
    let majority = members.len() / 2 + 1;
    for attempt in 0_u32.. {
        let mut blank = 1;
        let mut silent = Vec::new();
        for (id, member) in members.iter().filter(|(id, _)| **id != store.member_id()) {
            match probe(&store, *id, member).await {
                Probed::Blank => blank += 1,
                Probed::HasLog => {
                    tracing::info!(member = %member.name, "the group exists already; waiting for its leader");
                    return;
                }
                Probed::NoAnswer(reason) => silent.push(format!("{} ({reason})", member.name)),
            }
        }
        if blank >= majority {
            match store.raft().initialize(members.clone()).await {
                Ok(()) => tracing::info!(members = members.len(), "formed a new group"),
                // The leader of a group formed by another member was faster.
                Err(error) => tracing::info!(%error, "did not form a group"),
            }
            return;
        }
        if attempt % REPORT_EVERY == 0 {
            tracing::info!(
                missing = %silent.join(", "),
                "waiting for {} more of {} members to form the group", majority - blank, members.len()
            );
        }
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(PROBE_PAUSE) => {}
        }
        if store.has_log() {
            return;
        }
    }
}

async fn probe(store: &Store, id: MemberId, member: &Member) -> Probed {
    let mut client = match store.connector().client(&member.address) {
        Ok(client) => client,
        Err(error) => return Probed::NoAnswer(error.to_string()),
    };
    let request = wire::ProbeRequest { cluster_id: store.cluster_id() };
    match tokio::time::timeout(PROBE_TIMEOUT, client.probe(request)).await {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            if response.member_id != id {
                Probed::NoAnswer(format!("{} is the address of another member", member.address))
            } else if response.has_log {
                Probed::HasLog
            } else {
                Probed::Blank
            }
        }
        Ok(Err(status)) => Probed::NoAnswer(status.message().to_owned()),
        Err(_) => Probed::NoAnswer("no answer".into()),
    }
}
