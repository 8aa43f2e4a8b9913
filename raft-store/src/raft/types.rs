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
    /// `host:port` of its one TLS port; the host is an IP address.
    pub address: String,
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

openraft::declare_raft_types!(
    /// The one instantiation of the consensus library.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = MemberId,
        Node = Member,
        LeaderId = leader_id_std::LeaderId<u64, MemberId>,
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
