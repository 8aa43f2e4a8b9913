//! Between the consensus library's types and `barque.raft.v1`.
//!
//! The wire form of an entry is also its form in the write-ahead log.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse,
};
use prost::Message;
use proto::raft as wire;

use super::types::{
    Entry, LogId, Member, MemberId, Membership, Payload, Proposal, SnapshotMeta, StoredMembership,
    TypeConfig, Vote, log_id,
};

/// A message from outside that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf, or not this message.
    #[error("not a valid message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field that must be there is not.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A membership that no group can have.
    #[error("the membership is not valid: {0}")]
    Membership(String),
}

pub(crate) fn log_id_to_wire(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn log_id_from_wire(id: &wire::LogId) -> LogId {
    log_id(id.term, id.index)
}

fn optional_log_id_to_wire(id: Option<&LogId>) -> Option<wire::LogId> {
    id.map(log_id_to_wire)
}

fn optional_log_id_from_wire(id: Option<&wire::LogId>) -> Option<LogId> {
    id.map(log_id_from_wire)
}

pub(crate) fn vote_to_wire(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, member_id: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_wire(vote: Option<&wire::Vote>) -> Result<Vote, DecodeError> {
    let vote = vote.ok_or(DecodeError::Missing("vote"))?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, vote.member_id)
    } else {
        Vote::new(vote.term, vote.member_id)
    })
}

pub(crate) fn membership_to_wire(membership: &Membership) -> wire::Membership {
    wire::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| wire::VoterSet { member_ids: voters.iter().copied().collect() })
            .collect(),
        members: membership.nodes().map(|(id, member)| member_to_wire(*id, member)).collect(),
    }
}

pub(crate) fn member_to_wire(id: MemberId, member: &Member) -> wire::Member {
    wire::Member {
        id,
        name: member.name.clone(),
        address: member.address.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        started: member.started,
        joining: member.joining,
    }
}

pub(crate) fn member_from_wire(member: &wire::Member) -> (MemberId, Member) {
    let content = Member {
        name: member.name.clone(),
        address: member.address.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        started: member.started,
        joining: member.joining,
    };
    (member.id, content)
}

pub(crate) fn membership_from_wire(membership: &wire::Membership) -> Result<Membership, DecodeError> {
    let configs: Vec<BTreeSet<MemberId>> =
        membership.configs.iter().map(|set| set.member_ids.iter().copied().collect()).collect();
    let members = membership.members.iter().map(member_from_wire);
    Membership::new(configs, members.collect::<std::collections::BTreeMap<_, _>>())
        .map_err(|e| DecodeError::Membership(e.to_string()))
}

pub(crate) fn entry_to_wire(entry: &Entry) -> wire::Entry {
    let payload = match &entry.payload {
        Payload::Blank => wire::entry::Payload::Blank(true),
        Payload::Normal(proposal) => wire::entry::Payload::Command(proposal.0.clone()),
        Payload::Membership(membership) => wire::entry::Payload::Membership(membership_to_wire(membership)),
    };
    wire::Entry { log_id: Some(log_id_to_wire(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry_from_wire(entry: wire::Entry) -> Result<Entry, DecodeError> {
    let log_id = entry.log_id.as_ref().map(log_id_from_wire).ok_or(DecodeError::Missing("log_id"))?;
    let payload = match entry.payload.ok_or(DecodeError::Missing("payload"))? {
        wire::entry::Payload::Blank(_) => Payload::Blank,
        // A copy: the value lives on in the state, and must not keep the whole frame it came in alive.
        wire::entry::Payload::Command(command) => Payload::Normal(Proposal(Bytes::copy_from_slice(&command))),
        wire::entry::Payload::Membership(membership) => {
            Payload::Membership(membership_from_wire(&membership)?)
        }
    };
    Ok(Entry { log_id, payload })
}

/// The bytes of an entry's payload in the write-ahead log; index and term stand in the record itself.
pub(crate) fn entry_to_record(entry: &Entry) -> Bytes {
    let mut wire = entry_to_wire(entry);
    wire.log_id = None;
    Bytes::from(wire.encode_to_vec())
}

pub(crate) fn entry_from_record(term: u64, index: u64, record: Bytes) -> Result<Entry, DecodeError> {
    let mut wire = wire::Entry::decode(record)?;
    wire.log_id = Some(wire::LogId { term, index });
    entry_from_wire(wire)
}

pub(crate) fn vote_to_record(vote: &Vote) -> Bytes {
    Bytes::from(vote_to_wire(vote).encode_to_vec())
}

pub(crate) fn vote_from_record(record: Bytes) -> Result<Vote, DecodeError> {
    vote_from_wire(Some(&wire::Vote::decode(record)?))
}

pub(crate) fn log_id_to_record(id: &LogId) -> Bytes {
    Bytes::from(log_id_to_wire(id).encode_to_vec())
}

pub(crate) fn log_id_from_record(record: Bytes) -> Result<LogId, DecodeError> {
    Ok(log_id_from_wire(&wire::LogId::decode(record)?))
}

/// What the checkpoint keeps beside the state: the newest applied log id and the membership.
pub(crate) fn meta_to_record(meta: &SnapshotMeta) -> Bytes {
    Bytes::from(header_to_wire(None, meta).encode_to_vec())
}

pub(crate) fn meta_from_record(record: Bytes) -> Result<SnapshotMeta, DecodeError> {
    meta_from_wire(&wire::SnapshotHeader::decode(record)?)
}

pub(crate) fn header_to_wire(vote: Option<&Vote>, meta: &SnapshotMeta) -> wire::SnapshotHeader {
    wire::SnapshotHeader {
        vote: vote.map(vote_to_wire),
        last_log_id: optional_log_id_to_wire(meta.last_log_id.as_ref()),
        membership_log_id: optional_log_id_to_wire(meta.last_membership.log_id().as_ref()),
        membership: Some(membership_to_wire(meta.last_membership.membership())),
        ..wire::SnapshotHeader::default()
    }
}

pub(crate) fn meta_from_wire(header: &wire::SnapshotHeader) -> Result<SnapshotMeta, DecodeError> {
    let membership = header.membership.as_ref().ok_or(DecodeError::Missing("membership"))?;
    let membership = match membership.configs.is_empty() {
        true => Membership::default(),
        false => membership_from_wire(membership)?,
    };
    Ok(SnapshotMeta {
        last_log_id: optional_log_id_from_wire(header.last_log_id.as_ref()),
        last_membership: StoredMembership::new(
            optional_log_id_from_wire(header.membership_log_id.as_ref()),
            membership,
        ),
    })
}

pub(crate) fn append_to_wire(request: &AppendEntriesRequest<TypeConfig>) -> wire::AppendEntriesRequest {
    wire::AppendEntriesRequest {
        vote: Some(vote_to_wire(&request.vote)),
        prev_log_id: optional_log_id_to_wire(request.prev_log_id.as_ref()),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        leader_commit: optional_log_id_to_wire(request.leader_commit.as_ref()),
    }
}

pub(crate) fn append_from_wire(
    request: wire::AppendEntriesRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, DecodeError> {
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(request.vote.as_ref())?,
        prev_log_id: optional_log_id_from_wire(request.prev_log_id.as_ref()),
        entries: request.entries.into_iter().map(entry_from_wire).collect::<Result<_, _>>()?,
        leader_commit: optional_log_id_from_wire(request.leader_commit.as_ref()),
    })
}

pub(crate) fn append_result_to_wire(result: &StreamAppendResult<TypeConfig>) -> wire::AppendEntriesResponse {
    use wire::append_entries_response::Result as R;
    let result = match result {
        Ok(matched) => R::Matched(wire::Matched { log_id: optional_log_id_to_wire(matched.as_ref()) }),
        Err(StreamAppendError::Conflict(id)) => R::Conflict(log_id_to_wire(id)),
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(vote_to_wire(vote)),
    };
    wire::AppendEntriesResponse { result: Some(result) }
}

pub(crate) fn append_result_from_wire(
    response: wire::AppendEntriesResponse,
) -> Result<StreamAppendResult<TypeConfig>, DecodeError> {
    use wire::append_entries_response::Result as R;
    Ok(match response.result.ok_or(DecodeError::Missing("result"))? {
        R::Matched(matched) => Ok(optional_log_id_from_wire(matched.log_id.as_ref())),
        R::Conflict(id) => Err(StreamAppendError::Conflict(log_id_from_wire(&id))),
        R::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from_wire(Some(&vote))?)),
    })
}

pub(crate) fn vote_request_to_wire(request: &VoteRequest<TypeConfig>, pre_vote: bool) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_to_wire(&request.vote)),
        last_log_id: optional_log_id_to_wire(request.last_log_id.as_ref()),
        pre_vote,
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from_wire(
    request: &wire::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, DecodeError> {
    Ok(VoteRequest {
        vote: vote_from_wire(request.vote.as_ref())?,
        last_log_id: optional_log_id_from_wire(request.last_log_id.as_ref()),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(crate) fn vote_response_to_wire(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_to_wire(&response.vote)),
        vote_granted: response.vote_granted,
        last_log_id: optional_log_id_to_wire(response.last_log_id.as_ref()),
    }
}

pub(crate) fn vote_response_from_wire(
    response: &wire::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, DecodeError> {
    Ok(VoteResponse {
        vote: vote_from_wire(response.vote.as_ref())?,
        vote_granted: response.vote_granted,
        last_log_id: optional_log_id_from_wire(response.last_log_id.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let member = |name: &str| Member {
            peer_urls: vec!["http://127.0.0.1:1".into()],
            client_urls: vec!["http://127.0.0.1:2".into(), "http://127.0.0.1:3".into()],
            started: true,
            joining: name == "b",
            ..Member::new(name, "127.0.0.1:1")
        };
        Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            std::collections::BTreeMap::from([(1, member("a")), (2, member("b")), (3, member("c"))]),
        )
        .expect("valid")
    }

    #[test]
    fn entries_come_back_from_their_records() {
        for payload in [
            Payload::Blank,
            Payload::Normal(Proposal(Bytes::from_static(b"command"))),
            Payload::Membership(membership()),
        ] {
            let entry = Entry { log_id: log_id(3, 9), payload };
            let back = entry_from_record(3, 9, entry_to_record(&entry)).expect("decodes");
            assert_eq!(entry, back);
        }
    }

    #[test]
    fn votes_and_meta_come_back() {
        for vote in [Vote::new(4, 2), Vote::new_committed(5, 3)] {
            assert_eq!(vote, vote_from_record(vote_to_record(&vote)).expect("decodes"));
        }
        for meta in [
            SnapshotMeta::default(),
            SnapshotMeta {
                last_log_id: Some(log_id(1, 7)),
                last_membership: StoredMembership::new(Some(log_id(1, 0)), membership()),
            },
        ] {
            assert_eq!(meta, meta_from_record(meta_to_record(&meta)).expect("decodes"));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let err = append_from_wire(wire::AppendEntriesRequest::default()).expect_err("no vote");
        assert_eq!(err, DecodeError::Missing("vote"));
        let err = entry_from_wire(wire::Entry::default()).expect_err("no log id");
        assert_eq!(err, DecodeError::Missing("log_id"));
    }
}
