//! The consensus library's types, bound to ours.
//!
//! One leader per term (standard Raft leader ids), so that a term alone names a leadership: the fence of a
//! transaction compares terms and nothing else.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use state_machine::Outcome;

/// A control-plane replica's id in the consensus group. Never reused.
pub type MemberId = u64;

/// Where a member is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// The replica's name, for people.
    pub name: String,
    /// `host:port` at which the other members reach it.
    pub address: String,
    /// Where the other members find it, as etcd has it; may be empty where only `address` is used.
    pub peer_urls: Vec<String>,
    /// Where clients find it; published by the member itself.
    pub client_urls: Vec<String>,
    /// The member has taken part: it has a log, and starting it without one would make it forget its votes.
    pub started: bool,
    /// A learner that becomes a voter by itself as soon as it has caught up.
    pub joining: bool,
}

impl Member {
    /// A member known by name and address alone.
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        Self { name: name.into(), address: address.into(), ..Self::default() }
    }
}

/// One or several commands as they lie in the log: each encoded once, by whoever proposed it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry gave: one outcome for each of its commands.
#[derive(Debug, Clone)]
pub(crate) struct Applied(pub(crate) Vec<Outcome>);

#[cfg(not(feature = "simulation"))]
type EventLoop = openraft::TokioRuntime;
#[cfg(feature = "simulation")]
type EventLoop = crate::simulation::SeededRuntime;

openraft::declare_raft_types!(
    /// The one instantiation of the consensus library.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = MemberId,
        Node = Member,
        LeaderId = leader_id_std::LeaderId<u64, MemberId>,
        AsyncRuntime = EventLoop,
);

pub(crate) type CommittedLeaderId =
    <leader_id_std::LeaderId<u64, MemberId> as openraft::vote::RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::Vote<leader_id_std::LeaderId<u64, MemberId>>;
pub(crate) type Payload = openraft::EntryPayload<Proposal, MemberId, Member>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<MemberId, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, MemberId, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, MemberId, Member>;
pub(crate) type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachineShell>;

/// A log id from its two numbers.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}
