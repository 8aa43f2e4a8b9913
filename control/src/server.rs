//! A control-plane replica put together: what starts in which order, and what stops in which.
//!
//! ```text
//! start: configuration ─► authority, certificate ─► port bound ─► store ─► registry ─► work ─► port served
//! stop:  signal ─► streams end, port drains ─► work ends ─► leadership handed over ─► store closed
//! ```
//!
//! Promises that nothing is served before it can be answered, that a replica whose storage fails ends with an
//! error instead of going on half, and that everything started here has ended when [`run`] returns.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use exposition::Exposition;
use raft_store::{Member, MemberId, OpenError, PeerTls, Role, Store};
use ring::digest;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::audit::{Audit, AuditError};
use crate::auth::tokens::{StaticTokens, StaticTokensError};
use crate::auth::{BARQUE_MEMBERS, Identity, SYSTEM_MASTERS, SYSTEM_NODES};
use crate::cluster_work::{ClusterWork, Settings};
use crate::config::{AdmissionPlugin, Config, ConfigError};
use crate::controllers::Timings;
use crate::encryption::agreement::{Disagreement, agree};
use crate::encryption::{EncryptionError, Sealing, rewrite};
use crate::flow_control::FlowControl;
use crate::grpc::cluster::{
    Cluster, MemberSnapshot, StoreStatus, StoreStatusSnapshot, TransferError, TransferFuture,
};
use crate::grpc::{self, OPEN_SERVICES};
use crate::leader::EpochReceiver;
use crate::object_store::SharedStore;
use crate::object_store::raft::RaftObjectStore;
use crate::object_store::sealed::SealedStore;
use crate::pki::{self, Authority, ControlToken, Credentials, MemberIdentity};
use crate::pod_cidr::PodRange;
use crate::port::{Port, Services};
use crate::registry::{Registry, ServiceRanges};
use crate::rest::{Parts, Rest, Security};

/// The name that every member's certificate carries, whatever its address.
const MEMBER_SERVER_NAME: &str = "barque-control";
/// How long a hand-over of leadership may take before it counts as failed.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a replica did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Token, keys or certificates.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The port is taken, or the address is not this machine's.
    #[error(
        "cannot listen on {address}: {source}; is another process using the port? \
         `listenAddress` in the configuration names it"
    )]
    Listen {
        /// As configured.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory.
    #[error("cannot make the directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of static tokens.
    #[error(transparent)]
    StaticTokens(#[from] StaticTokensError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The encryption configuration.
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    /// Other members could not read what this one would write, or the other way round.
    #[error(transparent)]
    Disagreement(#[from] Disagreement),
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Consensus has stopped while the replica was running, for example because the disk failed.
    #[error("the store has failed and this replica cannot go on: {reason}")]
    StoreFailed {
        /// What happened.
        reason: String,
    },
}

/// Runs a replica until `shutdown` is cancelled, then stops it in order.
///
/// # Errors
/// When it cannot start, or when its store fails while it runs.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    run_telling(config, watch::Sender::new(false), shutdown).await
}

/// The same; `leads` says all the while whether this replica leads and can act as the leader.
///
/// # Errors
/// As [`run`].
pub async fn run_telling(
    config: Config,
    leads: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    config.validate()?;
    let scheduler = Arc::new(config.scheduler()?);
    let data_dir = &config.data_dir;
    std::fs::create_dir_all(data_dir)
        .map_err(|source| Error::Directory { path: data_dir.clone(), source })?;
    let security = security(&config)?;
    let sealing = Arc::new(
        config.encryption_config_file.as_deref().map(Sealing::read).transpose()?.unwrap_or_default(),
    );
    let audit = security.audit.clone();
    let token: ControlToken = pki::read_token(&config.token_file)?;
    let authority = Arc::new(Authority::from_token(&token)?);
    let credentials = member_credentials(&config, &authority)?;
    let tls = Arc::new(pki::server_config(&credentials, &authority)?);
    let (_tls_publisher, tls) = watch::channel(tls);
    let port =
        Port::bind(config.listen_address, tls, config.limits.connections_max, config.limits.drain_timeout)
            .await
            .map_err(|source| Error::Listen { address: config.listen_address, source })?;
    tracing::info!(member = %config.name, address = %config.listen_address, "starting");

    let store = Store::open(store_config(&config, &authority, credentials)).await?;
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let (agreed, disagreed) = agreement(&config, &store, &sealing, (&tasks, &stop));
    let parts = Above { authority, scheduler, security, sealing, agreed, leads };
    let services = assemble(&config, &store, parts, &tasks, &stop);
    let served = tokio::spawn(port.serve(services, stop.clone()));

    let failure = tokio::select! {
        () = shutdown.cancelled() => None,
        reason = store.failed() => Some(Error::StoreFailed { reason }),
        Ok(disagreement) = disagreed => Some(disagreement.into()),
    };
    tracing::info!(member = %config.name, "stopping");
    stop.cancel();
    // Its own drain has a deadline.
    let _ = served.await;
    tasks.close();
    tasks.wait().await;
    store.shutdown().await;
    if let Some(audit) = audit {
        // It waits for the disk; that it panics, it reports itself.
        let _ = tokio::task::spawn_blocking(move || audit.close()).await;
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What the work above the store is given.
struct Above {
    authority: Arc<Authority>,
    scheduler: Arc<scheduler::Configuration>,
    security: Security,
    sealing: Arc<Sealing>,
    agreed: watch::Receiver<bool>,
    leads: watch::Sender<bool>,
}

/// Has the members' encryption compared; gives whether they agree, and that they do not.
fn agreement(
    config: &Config,
    store: &Store,
    sealing: &Arc<Sealing>,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) -> (watch::Receiver<bool>, oneshot::Receiver<Disagreement>) {
    let (agrees, agreed) = watch::channel(false);
    let (disagrees, disagreed) = oneshot::channel();
    let (store, sealing, stop) = (RaftObjectStore::new(store.clone()), sealing.clone(), stop.clone());
    let (member, members) = (config.name.clone(), config.initial_members.keys().cloned().collect::<Vec<_>>());
    tasks.spawn(async move {
        match stop.run_until_cancelled(agree(&store, &sealing, &member, &members)).await {
            Some(Ok(())) => {
                agrees.send_replace(true);
                // Dropped, the other half would say that nothing will ever be said.
                stop.cancelled().await;
            }
            // Whoever waits for it is gone only when the replica stops anyway.
            Some(Err(disagreement)) => drop(disagrees.send(disagreement)),
            None => {}
        }
    });
    (agreed, disagreed)
}

/// What the configuration says about who may get in.
fn security(config: &Config) -> Result<Security, Error> {
    let static_tokens = config.token_auth_file.as_deref().map(StaticTokens::read).transpose()?;
    let audit = config.audit.as_ref().map(Audit::open).transpose()?;
    Ok(Security {
        static_tokens: Arc::new(static_tokens.unwrap_or_default()),
        allows_anonymous: config.anonymous_auth,
        audit: audit.map(Arc::new),
        requests_max: config.limits.requests_in_flight_max,
    })
}

/// Starts everything above a store that somebody else has opened, except the port: the caller serves what is returned
/// ([`crate::port::converse`]). What lies in the store is not encrypted.
///
/// # Errors
/// When the configuration names files that cannot be used.
pub fn start_above(
    config: &Config,
    store: &Store,
    authority: Arc<Authority>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Services, Error> {
    let parts = Above {
        authority,
        scheduler: Arc::new(config.scheduler()?),
        security: security(config)?,
        sealing: Arc::default(),
        agreed: watch::Sender::new(true).subscribe(),
        leads: watch::Sender::new(false),
    };
    Ok(assemble(config, store, parts, tasks, stop))
}

/// Starts everything above the store; gives what is to be served.
fn assemble(
    config: &Config,
    store: &Store,
    Above { authority, scheduler, security, sealing, agreed, leads }: Above,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Services {
    let below = RaftObjectStore::new(store.clone());
    let objects = SharedStore::new(SealedStore::new(below.clone(), sealing.clone(), agreed));
    let ranges =
        ServiceRanges { addresses: config.service_cidr, node_ports: config.service_node_port_range.clone() };
    let registry = Registry::with_ranges(objects.clone(), ranges, tasks.clone(), stop.clone());
    if config.disable_admission_plugins.contains(&AdmissionPlugin::TaintNodesByCondition) {
        registry.leave_new_nodes();
    }
    let settings = Settings {
        member_name: config.name.clone(),
        range: PodRange::new(config.pod_cidr, config.node_prefix),
        authority: authority.clone(),
        masters: config.initial_members.values().copied().collect(),
        balancer_addresses: config.load_balancer.addresses.clone(),
        timings: Timings {
            node_monitor_grace: config.node_grace_period,
            event_ttl: config.event_ttl,
            autoscaler_sync: config.horizontal_pod_autoscaler_sync_period,
            ..Timings::default()
        },
        scheduler,
    };
    let work = ClusterWork::start(&objects, &registry, settings, tasks, stop);
    tasks.spawn(rewrite::run(SharedStore::new(below), sealing, work.epochs.clone(), stop.clone()));
    tasks.spawn(tell_leading(work.epochs.clone(), leads, stop.clone()));
    let numbers = Arc::new(Numbers { store: store.clone() });
    let cluster = Cluster::new(config.name.clone(), numbers, authority, work.heartbeats.clone())
        .with_explainer(work.explainer.clone());
    let mut routes = Routes::builder();
    routes
        .add_service(store.peer_service())
        .add_service(work.sessions.service())
        .add_service(cluster.service());
    let expose = {
        let (store, work) = (store.clone(), work.clone());
        move |out: &mut Exposition| {
            work.expose(out);
            store.expose_metrics(out);
            out.process();
        }
    };
    let rest = Arc::new(Rest::new(Parts {
        registry,
        access: work.access.clone(),
        reads: Arc::new(work.sessions.clone()),
        pod_streams: Arc::new(work.sessions.clone()),
        accounts: work.accounts.clone(),
        usage: work.usage.clone(),
        flow_control: FlowControl::start(&objects, tasks, stop),
        advertised: config.advertised().to_string(),
        security,
        expose: Arc::new(expose),
        stop: stop.clone(),
    }));
    grpc::add_open_services(&mut routes, rest.clone(), &objects, tasks, stop);
    Services { rest, grpc: routes.routes(), gate }
}

/// Says whether this replica leads, until stopped; last that it does not.
async fn tell_leading(mut epochs: EpochReceiver, leads: watch::Sender<bool>, stop: CancellationToken) {
    let following = async {
        loop {
            let now = epochs.borrow_and_update().is_some();
            leads.send_if_modified(|leads| std::mem::replace(leads, now) != now);
            if epochs.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(following).await;
    leads.send_replace(false);
}

/// Who may call which gRPC service. Services check further where a caller may only speak for itself.
fn gate(identity: &Identity, path: &str) -> Result<(), tonic::Status> {
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let allowed = match service {
        "barque.raft.v1.RaftPeer" => identity.in_group(BARQUE_MEMBERS),
        "barque.node.v1.NodeSessions" => identity.in_group(SYSTEM_NODES),
        "barque.control.v1.Cluster" => {
            path.ends_with("/JoinNode")
                || identity.in_group(SYSTEM_MASTERS)
                || identity.in_group(BARQUE_MEMBERS)
        }
        open if OPEN_SERVICES.contains(&open) => true,
        _ => return Err(tonic::Status::unimplemented(format!("there is no service {service:?} here"))),
    };
    if allowed {
        return Ok(());
    }
    if identity.is_anonymous() {
        return Err(tonic::Status::unauthenticated("a client certificate of this cluster is needed"));
    }
    Err(tonic::Status::permission_denied(format!("{:?} may not call {path}", identity.user)))
}

fn member_credentials(config: &Config, authority: &Authority) -> Result<Credentials, Error> {
    let own = [config.listen_address.ip(), config.advertised().ip()];
    let addresses: Vec<IpAddr> = own.into_iter().chain(config.virtual_address.map(IpAddr::V4)).collect();
    let member = MemberIdentity { name: config.name.clone(), addresses };
    let directory = config.data_dir.join("pki");
    Ok(pki::load_or_issue_member(&directory, authority, &member, SystemTime::now())?)
}

fn store_config(config: &Config, authority: &Authority, credentials: Credentials) -> raft_store::Config {
    let members = config.initial_members.iter().map(|(name, address)| {
        let member = Member::new(name, address.to_string());
        (member_id(authority, name), member)
    });
    let mut cluster_id = [0; 16];
    cluster_id.copy_from_slice(&authority.sha256()[..16]);
    let id = member_id(authority, &config.name);
    let mut store = raft_store::Config::new(cluster_id, id, members.collect(), store_dir(&config.data_dir));
    store.heartbeat_interval = config.raft.heartbeat_interval;
    store.election_timeout_min = config.raft.election_timeout_min;
    store.election_timeout_max = config.raft.election_timeout_max;
    store.peer_tls = Some(PeerTls {
        ca_pem: credentials.ca_pem,
        certificate_pem: credentials.certificate_pem,
        private_key_pem: credentials.key_pem,
        server_name: Some(MEMBER_SERVER_NAME.to_owned()),
    });
    store
}

fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// A member's id: the same at every member, derived from the cluster and the name.
fn member_id(authority: &Authority, name: &str) -> MemberId {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(authority.sha256());
    context.update(name.as_bytes());
    let hash = context.finish();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_ref()[..8]);
    // Never 0, which stands for "nobody" on the wire.
    MemberId::from_be_bytes(bytes).max(1)
}

/// The store's numbers for the cluster service.
struct Numbers {
    store: Store,
}

impl StoreStatus for Numbers {
    fn status(&self) -> StoreStatusSnapshot {
        let status = self.store.status();
        let members = status.members.into_iter().map(|member| MemberSnapshot {
            id: member.id,
            name: member.member.name,
            address: member.member.address,
            voter: member.voter,
            matched_index: member.matched_index.unwrap_or(0),
        });
        StoreStatusSnapshot {
            member_id: self.store.member_id(),
            role: match status.role {
                Role::Leader => "leader",
                Role::Follower => "follower",
                Role::Candidate => "candidate",
                Role::Learner => "learner",
            }
            .to_owned(),
            term: status.leadership.term,
            leader_id: status.leadership.leader.unwrap_or(0),
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            purged_index: status.purged_index,
            checkpoint_index: status.checkpoint_index,
            revision: status.revision,
            state_hash: status.state_hash,
            members: members.collect(),
        }
    }

    fn transfer_leader(&self, to: u64) -> TransferFuture<'_> {
        Box::pin(async move {
            let status = self.store.status();
            if !status.leadership.is_self {
                let leader_id = status.leadership.leader.unwrap_or(0);
                return Err(TransferError::NotLeader { leader_id });
            }
            if !status.members.iter().any(|member| member.id == to && member.voter) {
                return Err(TransferError::NoSuchVoter { member_id: to });
            }
            let failed = |reason: String| TransferError::Failed { reason };
            self.store.transfer_leader(to).await.map_err(|error| failed(error.to_string()))?;
            let mut leadership = self.store.watch_leadership();
            let arrived = leadership.wait_for(|leadership| leadership.leader == Some(to));
            match tokio::time::timeout(TRANSFER_TIMEOUT, arrived).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(failed("this replica is stopping".to_owned())),
                Err(_) => Err(failed(format!("member {to} did not take over within {TRANSFER_TIMEOUT:?}"))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_group(group: &str) -> Identity {
        Identity { user: "somebody".to_owned(), groups: vec![group.to_owned()], ..Identity::default() }
    }

    #[test]
    fn each_grpc_service_is_for_its_own_callers() {
        let raft = "/barque.raft.v1.RaftPeer/Vote";
        let session = "/barque.node.v1.NodeSessions/Session";
        let status = "/barque.control.v1.Cluster/Status";
        let join = "/barque.control.v1.Cluster/JoinNode";
        let (member, node, master) =
            (of_group(BARQUE_MEMBERS), of_group(SYSTEM_NODES), of_group(SYSTEM_MASTERS));
        for (identity, path, allowed) in [
            (&member, raft, true),
            (&node, raft, false),
            (&master, raft, false),
            (&node, session, true),
            (&member, session, false),
            (&master, status, true),
            (&node, status, false),
            (&Identity::anonymous(), join, true),
            (&Identity::anonymous(), raft, false),
            (&Identity::anonymous(), status, false),
            (&Identity::anonymous(), "/grpc.health.v1.Health/Check", true),
            // A token may say who it is; the objects' own door decides.
            (&Identity::anonymous(), "/barque.objects.v1.Objects/Get", true),
            (&master, "/no.such.Service/Call", false),
        ] {
            assert_eq!(gate(identity, path).is_ok(), allowed, "{} {path}", identity.user);
        }
    }
}
