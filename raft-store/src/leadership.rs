//! Who leads, as one member knows it: taken from consensus, told to everybody here who asks or waits.

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;

use crate::raft::MemberId;
use crate::store::Store;

/// Who leads, as this member knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The raft term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<MemberId>,
    /// This member leads and has applied everything of earlier terms.
    pub is_self: bool,
}

/// Publishes who leads whenever that changes. What changes with every entry is looked at only until a new leader
/// has applied its term's first one.
pub(crate) async fn follow(store: Store, publish: watch::Sender<Leadership>) {
    let (mut seldom, mut often) = (store.raft().server_metrics(), store.raft().metrics());
    loop {
        let (mut now, leads) = {
            let metrics = seldom.borrow_watched();
            let members = metrics.membership_config.membership().nodes();
            let addresses = members.map(|(id, member)| (*id, member.address.clone()));
            store.connector().set_addresses(addresses.collect());
            let term = metrics.vote.leader_id().term;
            let leader = metrics.current_leader;
            (Leadership { term, leader, is_self: false }, metrics.state == openraft::ServerState::Leader)
        };
        let applied_term = often.borrow_watched().last_applied.map(|id| id.leader_id.term);
        now.is_self = leads && applied_term == Some(now.term);
        publish.send_if_modified(|before| {
            if now.leader.is_some() && now.leader != before.leader {
                store.counters().count_leader();
            }
            std::mem::replace(before, now) != now
        });
        let changed = tokio::select! {
            () = store.stopping() => return,
            changed = seldom.changed() => changed,
            changed = often.changed(), if leads && !now.is_self => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
