//! Node sessions: the one connection between a node agent and each replica.
//!
//! Owns every session at this replica, what is told to nodes (their pods and routes, by the leader), what
//! nodes tell (statuses, Events, heartbeats) and the streams asked of them. A session belongs to the node
//! that the client certificate names. Promises: a node hears of pods only from a leader whose copies hold
//! everything that earlier leaders wrote, because what is not in a `PodSet` gets terminated; a node hears
//! only of objects that its pods refer to (see `objects`), of those that the cluster's network is made of
//! (see `network`), and of certificates if it takes requests from outside (see `entrances`); what a node says is acknowledged when it is
//! stored; a slow node delays nobody.
//!
//! ```text
//!  pods ──► router ──► mailbox (per session, newest wins) ──► node
//!  nodes ─► routes ──►    ▲ acks
//!  ConfigMaps, .. ───►    │
//!                         └── inbox (batches) ◄── statuses, ends, Events ◄── node
//!  rest ──► open ──► mailbox ──► node ──► Stream call ◄──► reader (logs, exec, attach, port-forward)
//! ```

mod entrances;
mod inbox;
mod local_volumes;
mod mailbox;
mod mirrors;
mod network;
mod objects;
mod register;
mod session;
mod streams;
mod tokens;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use proto::node::node_sessions_server::{NodeSessions as Service, NodeSessionsServer};
use proto::node::{FromNode, PeerRoute, StreamFrame, ToNode};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::entrances::is_labelled;
use self::mailbox::Mailbox;
pub(crate) use self::network::NETWORK_KINDS;
use self::streams::StreamTable;
use super::identity;
use crate::auth::service_account::ServiceAccounts;
use crate::controllers::load_balancer::Holders;
use crate::heartbeats::Heartbeats;
use crate::leader::{Epoch, EpochReceiver};
use crate::object_store::SharedStore;
use crate::pod_cidr::PodRange;
use crate::reflector::{Delta, Feed, Reflector, pod_node, uid};
use crate::registry::{EventRecorder, Object, Registry};
use crate::usage::Usage;

/// Largest message from a node: a pod's status or a node's with all its images.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long changes of nodes are gathered before the routes are told again.
const ROUTES_DELAY: Duration = Duration::from_millis(20);

/// What node sessions need.
#[derive(Debug, Clone)]
pub struct Dependencies {
    /// This member's name.
    pub member_name: String,
    /// Where nodes get their pod addresses from.
    pub range: PodRange,
    /// Performs the writes.
    pub registry: Registry,
    /// Takes Events in.
    pub events: EventRecorder,
    /// Makes the tokens that pods get.
    pub accounts: ServiceAccounts,
    /// Every pod, indexed by node.
    pub pods: Reflector<SharedStore>,
    /// Every node.
    pub nodes: Reflector<SharedStore>,
    /// The objects that pods refer to, one reflector per kind.
    pub objects: Vec<Reflector<SharedStore>>,
    /// The objects that the cluster's network is made of, one reflector per kind.
    pub network: Vec<Reflector<SharedStore>>,
    /// Says when this replica may act.
    pub epochs: EpochReceiver,
    /// Where heartbeats go.
    pub heartbeats: Heartbeats,
    /// Where goes what nodes and pods use.
    pub usage: Usage,
    /// Sessions run in here.
    pub tasks: TaskTracker,
    /// Ends every session.
    pub cancel: CancellationToken,
}

struct Inner {
    member_name: String,
    range: PodRange,
    registry: Registry,
    events: EventRecorder,
    accounts: ServiceAccounts,
    pods: Reflector<SharedStore>,
    nodes: Reflector<SharedStore>,
    objects: Vec<Reflector<SharedStore>>,
    network: Vec<Reflector<SharedStore>>,
    epochs: EpochReceiver,
    heartbeats: Heartbeats,
    usage: Usage,
    tasks: TaskTracker,
    cancel: CancellationToken,
    /// Held while a range of pod addresses is chosen and written.
    allocation: tokio::sync::Mutex<()>,
    streams: StreamTable,
    mailboxes: Mutex<HashMap<String, Arc<Mailbox>>>,
    routes: Mutex<BTreeMap<String, PeerRoute>>,
    /// The nodes that take requests from outside.
    entrances: Mutex<BTreeSet<String>>,
    /// Which nodes hold which addresses of Services, once it is decided under the present epoch.
    holders: Mutex<Option<(Epoch, Holders)>>,
}

/// Every session at this replica; clones share them.
#[derive(Clone)]
pub struct NodeSessions {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for NodeSessions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("NodeSessions")
            .field("sessions", &self.mailboxes().len())
            .finish_non_exhaustive()
    }
}

impl NodeSessions {
    /// No sessions yet. [`NodeSessions::route`] has to run.
    pub fn new(dependencies: Dependencies) -> Self {
        let Dependencies {
            member_name,
            range,
            registry,
            events,
            accounts,
            pods,
            nodes,
            objects,
            network,
            epochs,
            heartbeats,
            usage,
            tasks,
            cancel,
        } = dependencies;
        let inner = Inner {
            member_name,
            range,
            registry,
            events,
            accounts,
            pods,
            nodes,
            objects,
            network,
            epochs,
            heartbeats,
            usage,
            tasks,
            cancel,
            allocation: tokio::sync::Mutex::default(),
            streams: StreamTable::default(),
            mailboxes: Mutex::default(),
            routes: Mutex::default(),
            entrances: Mutex::default(),
            holders: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The gRPC service. The server in front of it puts the caller's `Identity` into each request.
    pub fn service(&self) -> NodeSessionsServer<Self> {
        NodeSessionsServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Tells sessions of changes, until cancelled.
    pub async fn route(self) {
        let cancel = self.inner.cancel.clone();
        let work = async {
            tokio::join!(self.route_pods(), self.route_nodes(), self.route_objects(), self.route_network())
        };
        cancel.run_until_cancelled(work).await;
    }

    /// Asks a node to send its whole state once more, if it has a session here.
    pub fn resync(&self, node: &str) {
        if let Some(mailbox) = self.mailbox(node) {
            mailbox.resync();
        }
    }

    /// Nodes hold these addresses of Services from now on, by the word of this epoch.
    pub(crate) fn set_holders(&self, epoch: Epoch, holders: Holders) {
        let now = Some((epoch, holders));
        let before = std::mem::replace(&mut *self.held(), now.clone());
        if before != now {
            for mailbox in self.mailboxes().values() {
                mailbox.network();
            }
        }
    }

    /// Which nodes hold which addresses of Services; `None`: it is not decided yet under this epoch.
    pub(crate) fn holders(&self, epoch: Epoch) -> Option<Holders> {
        self.held().as_ref().filter(|(of, _)| *of == epoch).map(|(_, holders)| holders.clone())
    }

    fn held(&self) -> MutexGuard<'_, Option<(Epoch, Holders)>> {
        self.inner.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn route_pods(&self) {
        let mut feed = Feed::new(self.inner.pods.clone());
        loop {
            let (Delta::Applied(pod) | Delta::Deleted(pod)) = feed.next().await;
            if let Some(mailbox) = pod_node(&pod).and_then(|node| self.mailbox(&node)) {
                mailbox.pod(uid(&pod), pod.namespace(), pod.name());
            }
        }
    }

    async fn route_nodes(&self) {
        let mut feed = Feed::new(self.inner.nodes.clone());
        loop {
            let mut changed = self.note_route(&feed.next().await);
            tokio::time::sleep(ROUTES_DELAY).await;
            while let Some(delta) = feed.try_next() {
                changed |= self.note_route(&delta);
            }
            if changed {
                let mailboxes: Vec<_> = self.mailboxes().values().cloned().collect();
                for mailbox in mailboxes {
                    mailbox.network();
                }
            }
        }
    }

    /// Takes a node's route over; says whether any changed.
    fn note_route(&self, delta: &Delta) -> bool {
        self.note_entrance(delta);
        let mut routes = self.routes();
        match delta {
            Delta::Deleted(node) => routes.remove(node.name()).is_some(),
            Delta::Applied(node) => match route(node) {
                None => routes.remove(node.name()).is_some(),
                Some(route) if routes.get(node.name()) == Some(&route) => false,
                Some(route) => {
                    routes.insert(node.name().to_owned(), route);
                    true
                }
            },
        }
    }

    /// How many nodes have a session here.
    pub fn connected(&self) -> usize {
        self.mailboxes().len()
    }

    fn mailbox(&self, node: &str) -> Option<Arc<Mailbox>> {
        self.mailboxes().get(node).cloned()
    }

    fn mailboxes(&self) -> MutexGuard<'_, HashMap<String, Arc<Mailbox>>> {
        self.inner.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<String, PeerRoute>> {
        self.inner.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a node's pods are reached, once it has a range and an address.
fn route(node: &Object) -> Option<PeerRoute> {
    let node = node.decode::<k8s_openapi::api::core::v1::Node>().ok()?;
    let pod_cidr = node.spec?.pod_cidr.filter(|range| !range.is_empty())?;
    let addresses = node.status?.addresses.unwrap_or_default();
    let via = addresses.into_iter().find(|address| address.type_ == "InternalIP")?.address;
    Some(PeerRoute { node_name: node.metadata.name?, pod_cidr, via })
}

/// The node that makes the call.
fn calling_node<T>(request: &Request<T>) -> Result<String, Status> {
    let identity = identity(request);
    identity.node_name().map(str::to_owned).ok_or_else(|| {
        Status::permission_denied(format!("{:?} is no node: a node's certificate is needed", identity.user))
    })
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Service for NodeSessions {
    type SessionStream = Outgoing<ToNode>;
    type StreamStream = Outgoing<StreamFrame>;

    async fn session(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = calling_node(&request)?;
        let outgoing = self.begin(node, request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn stream(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let node = calling_node(&request)?;
        let frames = request.into_inner();
        let sessions = self.clone();
        let (down, answers) = mpsc::channel(streams::FRAMES_MAX);
        // A task of its own: one direction that is full must not hold up the other. It ends with the node's
        // frames or with the reader, and the answer with it, which is what the node waits for.
        tokio::spawn(async move {
            if let Err(status) = sessions.serve_stream(node, frames, &down).await {
                let _gone = down.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
