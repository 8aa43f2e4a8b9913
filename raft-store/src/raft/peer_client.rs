//! Calls to the other members: replication, votes, snapshots.
//!
//! Owns the connections. Heartbeats, replication and snapshots each have a connection of their own, so
//! that a heartbeat never waits behind entries or a slow disk. Connections are made on first use and again
//! after a failure; nothing here retries, the consensus library does.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use proto::raft as wire;
use proto::raft::raft_peer_client::RaftPeerClient;
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::codec;
use super::snapshot_send::{Courier, Transfer};
use super::snapshot_transfer::{Snapshot, SnapshotData};
use super::types::{Member, MemberId, TypeConfig, Vote};
use crate::config::Config;
use crate::store::Store;

/// Largest message that a member takes from a peer: one request's worth of entries, or one huge one.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How members prove who they are to each other, in PEM.
#[derive(Clone)]
pub struct PeerTls {
    /// The authority that signed every member's certificate.
    pub ca_pem: String,
    /// This member's certificate chain.
    pub certificate_pem: String,
    /// This member's private key.
    pub private_key_pem: String,
    /// The name that every member's certificate carries, whatever its address; `None`: a certificate names
    /// the host of its member's address.
    pub server_name: Option<String>,
}

/// An address or a certificate with which no connection can be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a connection to {address}: {source}")]
pub struct ConnectError {
    /// The peer's address.
    pub address: String,
    /// What is wrong with it or with the certificates.
    pub source: tonic::transport::Error,
}

/// A client of the peer service.
pub(crate) type PeerClient = RaftPeerClient<InterceptedService<Channel, Introduction>>;

/// Header with the cluster's id.
pub(crate) const CLUSTER_HEADER: &str = "barque-cluster-id";
/// Header with the id of the member that a call is meant for.
pub(crate) const TARGET_HEADER: &str = "barque-target-id";

/// Says in each call which cluster it belongs to and whom it is for, so that a wrong address is noticed.
#[derive(Clone)]
pub(crate) struct Introduction {
    cluster: MetadataValue<Ascii>,
    target: MetadataValue<Ascii>,
}

impl Interceptor for Introduction {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CLUSTER_HEADER, self.cluster.clone());
        request.metadata_mut().insert(TARGET_HEADER, self.target.clone());
        Ok(request)
    }
}

/// A client, whose it is and where that is.
type CachedClient = (MemberId, String, PeerClient);

/// How connections that are made now prove who they are.
struct Tls {
    pem: Option<PeerTls>,
    /// Counts the changes.
    generation: u64,
}

/// Makes connections to members.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: Arc<RwLock<Tls>>,
    cluster: MetadataValue<Ascii>,
    /// Newest addresses, which may change while a member is connected to.
    addresses: Arc<RwLock<BTreeMap<MemberId, String>>>,
    /// The last client handed out by `cached_client`.
    cached: Arc<Mutex<Option<CachedClient>>>,
    #[cfg(feature = "simulation")]
    network: Option<crate::simulation::Network>,
}

impl Connector {
    /// With `None` members talk in clear text: for tests on a loopback address only.
    pub(crate) fn new(tls: Option<PeerTls>, cluster_id: &str) -> Self {
        let cluster = cluster_id.parse().expect("hexadecimal digits make a header");
        let tls = Arc::new(RwLock::new(Tls { pem: tls, generation: 0 }));
        Self {
            tls,
            cluster,
            addresses: Arc::default(),
            cached: Arc::default(),
            #[cfg(feature = "simulation")]
            network: None,
        }
    }

    /// A member's own.
    pub(crate) fn of(config: &Config) -> Self {
        let connector = Self::new(config.peer_tls.clone(), &config.cluster_id_text());
        #[cfg(feature = "simulation")]
        if let Some(simulation) = &config.simulation {
            return Self { network: Some(simulation.network), ..connector };
        }
        connector
    }

    /// Whether somebody at that address says that nobody listens.
    pub(crate) async fn refuses(&self, address: &str) -> bool {
        #[cfg(feature = "simulation")]
        if let Some(network) = &self.network {
            return (network.refuses)(address).await;
        }
        let connected = TcpStream::connect(address).await;
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// New connections prove themselves so from now on; those that there are stay.
    fn set_tls(&self, tls: PeerTls) {
        {
            let mut current = self.tls.write().expect("no code panics while it holds this lock");
            *current = Tls { pem: Some(tls), generation: current.generation + 1 };
        }
        *self.cached.lock().expect("no code panics while it holds this lock") = None;
    }

    /// Changes when certificates do: whoever keeps a client makes a new one then.
    pub(crate) fn generation(&self) -> u64 {
        self.tls.read().expect("no code panics while it holds this lock").generation
    }

    /// Remembers where members are; connections follow.
    pub(crate) fn set_addresses(&self, addresses: BTreeMap<MemberId, String>) {
        *self.addresses.write().expect("no code panics while it holds this lock") = addresses;
    }

    fn address_of(&self, member: MemberId) -> Option<String> {
        self.addresses.read().expect("no code panics while it holds this lock").get(&member).cloned()
    }

    /// A connection that is opened on first use and reopened after a failure.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, ConnectError> {
        #[cfg(feature = "simulation")]
        if let Some(network) = &self.network {
            return Ok((network.channel)(address));
        }
        let context = |source| ConnectError { address: address.to_owned(), source };
        let tls = self.tls.read().expect("no code panics while it holds this lock").pem.clone();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(context)?;
        if let Some(tls) = &tls {
            let mut config = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(&tls.ca_pem))
                .identity(Identity::from_pem(&tls.certificate_pem, &tls.private_key_pem));
            if let Some(name) = &tls.server_name {
                config = config.domain_name(name);
            }
            endpoint = endpoint.tls_config(config).map_err(context)?;
        }
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy())
    }

    /// A client for single questions to the leader, kept until somebody else leads.
    pub(crate) fn cached_client(&self, member: MemberId, address: &str) -> Result<PeerClient, ConnectError> {
        let mut cached = self.cached.lock().expect("no code panics while it holds this lock");
        if let Some((id, at, client)) = &*cached
            && *id == member
            && at == address
        {
            return Ok(client.clone());
        }
        let client = self.client(member, address)?;
        *cached = Some((member, address.to_owned(), client.clone()));
        Ok(client)
    }

    pub(crate) fn client(&self, member: MemberId, address: &str) -> Result<PeerClient, ConnectError> {
        let introduction =
            Introduction { cluster: self.cluster.clone(), target: MetadataValue::from(member) };
        Ok(RaftPeerClient::with_interceptor(self.channel(address)?, introduction)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

impl Store {
    /// Uses other certificates towards the other members, for new connections; those that there are stay.
    pub fn set_peer_tls(&self, tls: PeerTls) {
        self.connector().set_tls(tls);
    }
}

/// Makes one [`PeerNetwork`] for each purpose that the consensus library asks for.
pub(crate) struct NetworkFactory {
    pub(crate) id: MemberId,
    pub(crate) connector: Connector,
    pub(crate) courier: Courier,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: MemberId, member: &Member) -> PeerNetwork {
        let address = self.connector.address_of(target).unwrap_or_else(|| member.address.clone());
        let generation = self.connector.generation();
        let client = self.connector.client(target, &address);
        let (connector, courier) = (self.connector.clone(), self.courier.clone());
        PeerNetwork { id: self.id, target, connector, courier, address, generation, client }
    }
}

/// One connection to one member.
pub(crate) struct PeerNetwork {
    id: MemberId,
    target: MemberId,
    connector: Connector,
    courier: Courier,
    address: String,
    generation: u64,
    client: Result<PeerClient, ConnectError>,
}

impl PeerNetwork {
    fn client(&mut self) -> Result<PeerClient, RPCError<TypeConfig>> {
        let address = self.connector.address_of(self.target).unwrap_or_else(|| self.address.clone());
        let generation = self.connector.generation();
        if address != self.address || generation != self.generation {
            self.client = self.connector.client(self.target, &address);
            (self.address, self.generation) = (address, generation);
        }
        match &self.client {
            Ok(client) => Ok(client.clone()),
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(error))),
        }
    }

    /// Runs a call within the time that the library allows for it.
    async fn within<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let timeout = option.hard_ttl();
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => Err(rpc_error(&status)),
            Err(_) => Err(RPCError::Timeout(Timeout { action, id: self.id, target: self.target, timeout })),
        }
    }

    async fn ask_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let request = codec::vote_request_to_wire(&request, pre_vote);
        let response = self.within(RPCTypes::Vote, &option, client.vote(request)).await?.into_inner();
        codec::vote_response_from_wire(&response).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }
}

/// The library pauses between attempts only if it is asked for the first request, which does not happen
/// while there is no connection; so the pause is here.
async fn pause() {
    tokio::time::sleep(RECONNECT_PAUSE).await;
}

/// A peer that cannot be reached is left alone for a moment; any other failure may be retried at once.
fn rpc_error(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
            RPCError::Unreachable(Unreachable::new(status))
        }
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let input = futures_util::stream::iter([request]);
        let mut output = self.stream_append(input, option).await?;
        match output.next().await {
            Some(result) => Ok(result?.into()),
            None => Err(RPCError::Network(NetworkError::from_string("the peer closed the stream"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let mut client = self.client()?;
            let requests = input.map(|request| codec::append_to_wire(&request));
            let opened = client.append_entries(requests);
            let responses = match self.within(RPCTypes::AppendEntries, &option, opened).await {
                Ok(responses) => responses.into_inner(),
                Err(error) => {
                    pause().await;
                    return Err(error);
                }
            };
            let results = responses.then(|response| async {
                match response {
                    Ok(response) => codec::append_result_from_wire(response)
                        .map_err(|e| RPCError::Network(NetworkError::new(&e))),
                    Err(status) => {
                        pause().await;
                        Err(rpc_error(&status))
                    }
                }
            });
            Ok(results.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, false, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, true, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let client = self.client()?;
        let transfer = Transfer::begin(vote, snapshot.meta, snapshot.snapshot);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            delivered = self.courier.deliver(client, transfer) => {
                delivered.map(SnapshotResponse::new).map_err(|status| rpc_error(&status).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let request = wire::TransferLeaderRequest {
            from_leader: Some(codec::vote_to_wire(request.from_leader())),
            to_member_id: *request.to_node_id(),
            last_log_id: request.last_log_id().map(codec::log_id_to_wire),
        };
        self.within(RPCTypes::TransferLeader, &option, client.transfer_leader(request)).await?;
        Ok(Ok(()))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RECONNECT_PAUSE)))
    }
}
