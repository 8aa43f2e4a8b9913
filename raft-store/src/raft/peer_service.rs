//! Answers to the other members.
//!
//! Translates `barque.raft.v1` into calls of the consensus library and back. Who may call is decided before
//! a request reaches this service (client certificates of members only).

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::StreamExt;
use openraft::raft::TransferLeaderRequest;
use proto::raft as wire;
use proto::raft::raft_peer_server::{RaftPeer, RaftPeerServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::codec::{self, DecodeError};
use super::membership::ChangeError;
use super::peer_client::{CLUSTER_HEADER, MESSAGE_BYTES_MAX, TARGET_HEADER};
use super::types::MemberId;
use crate::etcd::cluster;
use crate::forward;
use crate::store::Store;

/// Messages with answers to one member that wait to be sent.
const ANSWER_MESSAGES_MAX: usize = 64;

/// How long a leader may take to have its leadership confirmed before it answers a probe.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(300);

/// The service that the replica's server mounts.
pub type PeerServer = RaftPeerServer<PeerService>;

/// See the module.
#[derive(Clone)]
pub struct PeerService {
    store: Store,
}

impl PeerService {
    pub(crate) fn server(store: Store) -> PeerServer {
        RaftPeerServer::new(Self { store })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn invalid(error: DecodeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this member is stopping: {error}"))
}

impl PeerService {
    /// Whether a call is meant for this member of this cluster. An address that leads elsewhere must not
    /// answer in another's name.
    fn meant_for_us<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let ours = self.store.cluster_id();
        let theirs = header(CLUSTER_HEADER).unwrap_or("none");
        if theirs != ours {
            return Err(Status::failed_precondition(format!(
                "this member belongs to cluster {ours}, not to {theirs}: check the token and the addresses"
            )));
        }
        let target = header(TARGET_HEADER).and_then(|text| text.parse::<u64>().ok());
        if target != Some(self.store.member_id()) {
            let own = self.store.member_id();
            return Err(Status::failed_precondition(format!("this is the address of the member {own:x}")));
        }
        Ok(())
    }

    /// As `meant_for_us`; and this member takes part.
    fn taking_part<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.meant_for_us(request)?;
        match self.store.takes_part() {
            true => Ok(()),
            false => Err(Status::unavailable("this member does not take part yet")),
        }
    }

    /// What this member knows of another one.
    async fn describe_asker(&self, asker: MemberId) -> wire::ProbeResponse {
        let store = &self.store;
        let leads = store.leadership().is_self
            && matches!(
                tokio::time::timeout(CONFIRM_TIMEOUT, store.read_index_for_peer()).await,
                Ok(wire::ReadIndexResponse { result: Some(wire::read_index_response::Result::LogIndex(_)) })
            );
        let known = store.newest_members().into_iter().find(|member| member.id == asker);
        let acknowledged = store.acknowledged_by(asker);
        let last = store.last_log_id();
        wire::ProbeResponse {
            member_id: store.member_id(),
            has_log: store.has_log(),
            established: last.is_some_and(|last| last.index > 0),
            leads,
            is_member: known.is_some(),
            started: known.is_some_and(|member| member.member.started),
            acknowledged_index: acknowledged.map_or(0, |id| id.index),
            acknowledged_term: acknowledged.map_or(0, |id| id.leader_id.term),
            last_log_index: last.map_or(0, |id| id.index),
            last_log_term: last.map_or(0, |id| id.leader_id.term),
        }
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RaftPeer for PeerService {
    type AppendEntriesStream = ResponseStream<wire::AppendEntriesResponse>;
    type ProposeStream = ResponseStream<wire::ProposeResponse>;

    async fn append_entries(
        &self,
        request: Request<Streaming<wire::AppendEntriesRequest>>,
    ) -> Result<Response<Self::AppendEntriesStream>, Status> {
        self.taking_part(&request)?;
        let store = self.store.clone();
        let (guard, ended) = store.broken_streams().guard();
        let end = futures_util::stream::poll_fn(move |_| {
            ended.store(true, Ordering::Relaxed);
            Poll::Ready(None)
        });
        // A request that cannot be read ends the input: the leader sees the stream end and starts again.
        let input = tokio_stream::StreamExt::map_while(request.into_inner().chain(end), move |request| {
            let request = request.map_err(|status| tracing::debug!(%status, "append stream ended")).ok()?;
            store.heard_leader();
            if store.log_is_full_for(&request) {
                tracing::warn!("this member's disk is full: it takes no entries until there is space");
                return None;
            }
            codec::append_from_wire(request)
                .map_err(|error| tracing::warn!(%error, "unreadable append request"))
                .ok()
        });
        let results = self.store.raft().stream_append(input);
        let output = results.map(move |result| {
            let _while_this_lives = &guard;
            match result {
                Ok(result) => Ok(codec::append_result_to_wire(&result)),
                Err(fatal) => Err(stopped(fatal)),
            }
        });
        Ok(Response::new(Box::pin(output)))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        self.taking_part(&request)?;
        let request = request.into_inner();
        let vote = codec::vote_request_from_wire(&request).map_err(invalid)?;
        // An early candidate waits for what this member has promised its leader; others are refused by consensus.
        let _early = match request.leadership_transfer {
            true => Some(self.store.may_elect_early().await),
            false => None,
        };
        let raft = self.store.raft();
        let response = if request.pre_vote { raft.pre_vote(vote).await } else { raft.vote(vote).await };
        Ok(Response::new(codec::vote_response_to_wire(&response.map_err(stopped)?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::InstallSnapshotRequest>>,
    ) -> Result<Response<wire::InstallSnapshotResponse>, Status> {
        self.taking_part(&request)?;
        let incoming = &self.store.shared().incoming;
        let (vote, snapshot) = incoming.receive(request.into_inner()).await?;
        let response = self.store.raft().install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(wire::InstallSnapshotResponse { vote: Some(codec::vote_to_wire(&response.vote)) }))
    }

    async fn snapshot_progress(
        &self,
        request: Request<wire::SnapshotProgressRequest>,
    ) -> Result<Response<wire::SnapshotProgressResponse>, Status> {
        self.taking_part(&request)?;
        self.store.shared().incoming.progress(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        self.taking_part(&request)?;
        let request = request.into_inner();
        let from = codec::vote_from_wire(request.from_leader.as_ref()).map_err(invalid)?;
        self.store.release_lease(from).await;
        let last = request.last_log_id.as_ref().map(codec::log_id_from_wire);
        let request = TransferLeaderRequest::new(from, request.to_member_id, last);
        self.store
            .raft()
            .handle_transfer_leader(request)
            .await
            .map_err(stopped)?
            .map_err(|refused| Status::failed_precondition(refused.to_string()))?;
        Ok(Response::new(wire::TransferLeaderResponse {}))
    }

    async fn propose(
        &self,
        request: Request<Streaming<wire::ProposeRequest>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        self.taking_part(&request)?;
        let (tx, rx) = mpsc::channel(ANSWER_MESSAGES_MAX);
        let store = self.store.clone();
        self.store.tasks().spawn(forward::answer_proposals(store, request.into_inner(), tx));
        Ok(Response::new(ReceiverStream::new(rx).map(Ok).boxed()))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        self.taking_part(&request)?;
        Ok(Response::new(self.store.read_index_for_peer().await))
    }

    async fn promise_lease(
        &self,
        request: Request<wire::PromiseLeaseRequest>,
    ) -> Result<Response<wire::PromiseLeaseResponse>, Status> {
        self.taking_part(&request)?;
        let vote = codec::vote_from_wire(request.into_inner().vote.as_ref()).map_err(invalid)?;
        Ok(Response::new(self.store.promise_lease(vote).await))
    }

    async fn lease_time(
        &self,
        request: Request<wire::LeaseTimeRequest>,
    ) -> Result<Response<wire::LeaseTimeResponse>, Status> {
        Ok(Response::new(self.store.lease_time_for_peer(request.into_inner()).await))
    }

    async fn probe(
        &self,
        request: Request<wire::ProbeRequest>,
    ) -> Result<Response<wire::ProbeResponse>, Status> {
        self.meant_for_us(&request)?;
        Ok(Response::new(self.describe_asker(request.into_inner().member_id).await))
    }

    async fn change_members(
        &self,
        request: Request<wire::ChangeMembersRequest>,
    ) -> Result<Response<wire::ChangeMembersResponse>, Status> {
        self.taking_part(&request)?;
        let change = cluster::change_from_wire(request.into_inner());
        let change = change.ok_or_else(|| Status::invalid_argument("the change is missing"))?;
        use wire::change_members_response::Result as R;
        let result = match self.store.change_members(change).await {
            Ok(member_id) => R::Changed(wire::Changed { member_id }),
            Err(ChangeError::NotLeader) => {
                R::NotLeader(wire::NotLeader { leader_id: self.store.leadership().leader.unwrap_or(0) })
            }
            Err(error) => return Err(cluster::of_change_error(&error)),
        };
        Ok(Response::new(wire::ChangeMembersResponse { result: Some(result) }))
    }

    async fn describe(
        &self,
        _: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        let members = self.store.newest_members();
        let members = members.iter().map(|status| codec::member_to_wire(status.id, &status.member));
        Ok(Response::new(wire::DescribeResponse {
            cluster_id: self.store.cluster_id(),
            members: members.collect(),
        }))
    }

    async fn state_hash(
        &self,
        request: Request<wire::StateHashRequest>,
    ) -> Result<Response<wire::StateHashResponse>, Status> {
        self.taking_part(&request)?;
        let hash = self.store.hash_at(request.into_inner().revision).await;
        hash.map(Response::new).map_err(Status::failed_precondition)
    }
}
