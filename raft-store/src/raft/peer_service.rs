//! Answers to the other members.
//!
//! Translates `barque.raft.v1` into calls of the consensus library and back. Who may call is decided before
//! a request reaches this service (client certificates of members only).

use std::pin::Pin;

use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, Stream};
use openraft::raft::TransferLeaderRequest;
use proto::raft as wire;
use proto::raft::raft_peer_server::{RaftPeer, RaftPeerServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::codec::{self, DecodeError};
use super::peer_client::MESSAGE_BYTES_MAX;
use super::snapshot_transfer;
use crate::store::Store;

/// Forwarded commands of one member that wait for their outcome at the same time.
const FORWARDED_IN_FLIGHT_MAX: usize = 4096;

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

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RaftPeer for PeerService {
    type AppendEntriesStream = ResponseStream<wire::AppendEntriesResponse>;
    type ProposeStream = ResponseStream<wire::ProposeResponse>;

    async fn append_entries(
        &self,
        request: Request<Streaming<wire::AppendEntriesRequest>>,
    ) -> Result<Response<Self::AppendEntriesStream>, Status> {
        // A request that cannot be read ends the input: the leader sees the stream end and starts again.
        let input = tokio_stream::StreamExt::map_while(request.into_inner(), |request| {
            let request = request.map_err(|status| tracing::debug!(%status, "append stream ended")).ok()?;
            codec::append_from_wire(request)
                .map_err(|error| tracing::warn!(%error, "unreadable append request"))
                .ok()
        });
        let results = self.store.raft().stream_append(input);
        let output = results.map(|result| match result {
            Ok(result) => Ok(codec::append_result_to_wire(&result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        Ok(Response::new(Box::pin(output)))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        let request = request.into_inner();
        let vote = codec::vote_request_from_wire(&request).map_err(invalid)?;
        let raft = self.store.raft();
        let response = if request.pre_vote { raft.pre_vote(vote).await } else { raft.vote(vote).await };
        Ok(Response::new(codec::vote_response_to_wire(&response.map_err(stopped)?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::InstallSnapshotRequest>>,
    ) -> Result<Response<wire::InstallSnapshotResponse>, Status> {
        let directory = self.store.snapshot_directory();
        let (vote, snapshot) = snapshot_transfer::receive(request.into_inner(), directory).await?;
        let response = self.store.raft().install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(wire::InstallSnapshotResponse { vote: Some(codec::vote_to_wire(&response.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let from = codec::vote_from_wire(request.from_leader.as_ref()).map_err(invalid)?;
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
        let (tx, rx) = mpsc::channel(FORWARDED_IN_FLIGHT_MAX);
        let store = self.store.clone();
        self.store.tasks().spawn(answer_proposals(store, request.into_inner(), tx));
        Ok(Response::new(ReceiverStream::new(rx).map(Ok).boxed()))
    }

    async fn read_index(
        &self,
        _: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        Ok(Response::new(self.store.read_index_for_peer().await))
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
        let theirs = request.into_inner().cluster_id;
        if theirs != self.store.cluster_id() {
            let ours = self.store.cluster_id();
            return Err(Status::failed_precondition(format!(
                "this member belongs to cluster {ours}, not to {theirs}: check the token and the addresses"
            )));
        }
        Ok(Response::new(wire::ProbeResponse {
            member_id: self.store.member_id(),
            has_log: self.store.has_log(),
        }))
    }
}

/// Proposes what a follower forwards, answering each command as its outcome is known.
async fn answer_proposals(
    store: Store,
    mut requests: Streaming<wire::ProposeRequest>,
    responses: mpsc::Sender<wire::ProposeResponse>,
) {
    let mut waiting = FuturesUnordered::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        tokio::select! {
            () = store.stopping() => return,
            request = requests.next(), if open && waiting.len() < FORWARDED_IN_FLIGHT_MAX => match request {
                Some(Ok(request)) => {
                    let store = &store;
                    waiting.push(
                        store
                            .propose_for_peer(request.command)
                            .map(move |result| wire::ProposeResponse { sequence: request.sequence, result: Some(result) }),
                    );
                }
                Some(Err(_)) | None => open = false,
            },
            Some(response) = waiting.next() => {
                if responses.send(response).await.is_err() {
                    // The follower has gone; what it proposed goes on without an answer.
                    open = false;
                }
            }
        }
    }
}
