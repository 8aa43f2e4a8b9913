//! The node's sessions with the control plane: one to every replica, all the time.
//!
//! ```text
//! dial ─► Hello ─► Role ─┬─ follower: heartbeats up, streams asked for
//!   ▲                    └─ leader of the newest epoch: pods and routes down; statuses and events up
//!   └── back-off ◄── any error
//! ```
//! Follows whoever leads under the newest epoch that any replica has named; what an older leader says about
//! pods is not heard. A new leader is told everything once more. Losing every replica changes nothing for
//! the pods: it only means that nobody is told.

mod ends;
mod leadership;
pub(crate) mod outbox;
mod replica;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::ingress::Entrance;
use crate::network::BridgeNetwork;
use crate::network::cluster::ClusterNetwork;
use crate::network::held::HeldAddresses;
use crate::objects::Objects;
use crate::pods::dispatcher::Command;
use crate::resource_usage::Newest;
use crate::streaming::Sources;
use crate::tokens::Tokens;
use crate::{Config, Error, TlsFiles};

pub(crate) use leadership::Leadership;
use outbox::Outbox;

/// The name in every replica's certificate; addresses need no name service.
pub(crate) const CONTROL_NAME: &str = "barque-control";

/// What every session works with.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) tls: ClientTlsConfig,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) leadership: Leadership,
    pub(crate) network: Arc<BridgeNetwork>,
    pub(crate) held: Arc<HeldAddresses>,
    pub(crate) entrance: Arc<Entrance>,
    pub(crate) cluster: Arc<ClusterNetwork>,
    pub(crate) objects: Arc<Objects>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) pods: mpsc::Sender<Command>,
    pub(crate) streams: Sources,
    /// What the node and its pods use.
    pub(crate) usage: watch::Receiver<Newest>,
    /// The Node object for Hello, made anew on each dial.
    pub(crate) node_json: Box<dyn Fn() -> Bytes + Send + Sync>,
    heartbeats: AtomicU64,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            config,
            tls,
            outbox,
            network,
            held,
            entrance,
            cluster,
            objects,
            tokens,
            pods,
            streams,
            usage,
            node_json,
        } = parts;
        let leadership = Leadership::default();
        Self {
            config,
            tls,
            outbox,
            leadership,
            network,
            held,
            entrance,
            cluster,
            objects,
            tokens,
            pods,
            streams,
            usage,
            node_json,
            heartbeats: AtomicU64::new(0),
        }
    }

    fn next_heartbeat(&self) -> u64 {
        self.heartbeats.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What [`Shared`] is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) tls: ClientTlsConfig,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) network: Arc<BridgeNetwork>,
    pub(crate) held: Arc<HeldAddresses>,
    pub(crate) entrance: Arc<Entrance>,
    pub(crate) cluster: Arc<ClusterNetwork>,
    pub(crate) objects: Arc<Objects>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) pods: mpsc::Sender<Command>,
    pub(crate) streams: Sources,
    pub(crate) usage: watch::Receiver<Newest>,
    pub(crate) node_json: Box<dyn Fn() -> Bytes + Send + Sync>,
}

/// Starts a session task per replica.
pub(crate) fn spawn(shared: Arc<Shared>, tracker: &TaskTracker, shutdown: &CancellationToken) {
    for address in shared.config.control_addresses.clone() {
        let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = replica::keep_session(shared, address) => {}
            }
        });
    }
}

/// Reads the node's certificate into the client's TLS set-up.
pub(crate) fn client_tls(files: &TlsFiles) -> Result<ClientTlsConfig, Error> {
    let read = |path: &std::path::Path| std::fs::read(path).map_err(Error::io("read", path));
    let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
    let ca = Certificate::from_pem(read(&files.ca)?);
    Ok(ClientTlsConfig::new().domain_name(CONTROL_NAME).ca_certificate(ca).identity(identity))
}
