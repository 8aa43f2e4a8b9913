//! One member's numbers, for people, metrics and the services.

use openraft::async_runtime::watch::WatchReceiver;

use crate::leadership::Leadership;
use crate::raft::types::LogId;
use crate::raft::{Member, MemberId};
use crate::store::Store;

/// A member's role, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Leader,
    /// Follows a leader.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Replicates without a vote.
    Learner,
}

/// A snapshot of one member's numbers.
#[derive(Debug, Clone)]
pub struct Status {
    /// The member's role.
    pub role: Role,
    /// Who leads, and the term.
    pub leadership: Leadership,
    /// Index of the newest entry in the log.
    pub last_log_index: u64,
    /// Newest index known to be committed.
    pub committed_index: u64,
    /// Newest index applied.
    pub applied_index: u64,
    /// Newest index dropped from the log.
    pub purged_index: u64,
    /// Applied index of the newest checkpoint on disk.
    pub checkpoint_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// Hash of the applied state.
    pub state_hash: u64,
    /// The members, with whether each has a vote and, at the leader, how far it is.
    pub members: Vec<MemberStatus>,
}

/// One member as another sees it.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// Its id.
    pub id: MemberId,
    /// Its name and address.
    pub member: Member,
    /// Whether it has a vote.
    pub voter: bool,
    /// At the leader: the newest entry known to be on that member's disk.
    pub matched_index: Option<u64>,
}

impl Store {
    /// This member's numbers.
    pub fn status(&self) -> Status {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<MemberId> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, member)| MemberStatus {
            id: *id,
            member: member.clone(),
            voter: voters.contains(id),
            matched_index: match &metrics.replication {
                Some(progress) => progress.get(id).and_then(|matched| matched.as_ref()).map(|id| id.index),
                None => None,
            },
        });
        let members = members.collect();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let state = self.shared().read();
        Status {
            role: match metrics.state {
                openraft::ServerState::Leader => Role::Leader,
                openraft::ServerState::Candidate => Role::Candidate,
                openraft::ServerState::Learner => Role::Learner,
                _ => Role::Follower,
            },
            leadership: self.leadership(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(&metrics.local_committed),
            applied_index: index(&state.last_applied),
            purged_index: index(&metrics.purged),
            checkpoint_index: self.shared().checkpoint_index(),
            revision: state.machine.revision(),
            state_hash: state.machine.state_hash(),
            members,
        }
    }
}
