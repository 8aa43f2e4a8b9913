//! Everything that a replica does beside answering requests: reflectors, leadership, scheduling, controllers,
//! node sessions.
//!
//! Owns the order in which these begin and what each is given. Nothing here outlives the token it was
//! started with.

use std::sync::Arc;

use api::references::ReferenceKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::service_account::ServiceAccounts;
use crate::controllers::{self, Timings};
use crate::grpc::node_sessions::{self, NodeSessions};
use crate::heartbeats::Heartbeats;
use crate::leader::{EpochReceiver, publish_epochs};
use crate::object_store::{ObjectStore, SharedStore};
use crate::pki::Authority;
use crate::pod_cidr::PodRange;
use crate::reflector::{IndexBy, Reflector, no_index, pod_node};
use crate::registry::{EventRecorder, Registry};
use crate::scheduling;

/// What the replica's work needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This member's name.
    pub member_name: String,
    /// Where nodes get their pod addresses from.
    pub range: PodRange,
    /// Signs what service accounts get.
    pub authority: Arc<Authority>,
    /// How long controllers wait for what.
    pub timings: Timings,
}

/// The running work, and what others need of it.
#[derive(Debug, Clone)]
pub struct ClusterWork {
    /// The node sessions: a gRPC service, and where logs come from.
    pub sessions: NodeSessions,
    /// When nodes were last heard of, for the cluster's status.
    pub heartbeats: Heartbeats,
    /// Under which epoch this replica acts.
    pub epochs: EpochReceiver,
    /// Takes Events in.
    pub events: EventRecorder,
    /// Makes and checks the tokens of service accounts.
    pub accounts: ServiceAccounts,
}

impl ClusterWork {
    /// Starts all of it in `tasks`; it ends when `cancel` is cancelled.
    pub fn start(
        store: &SharedStore,
        registry: &Registry,
        settings: Settings,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Self {
        let reflect = |kind: &str, index_by: IndexBy| {
            let kind = api::kinds::by_kind("", "v1", kind).expect("the table of kinds has the core kinds");
            let reflector = Reflector::new(store.clone(), kind, index_by);
            tasks.spawn(reflector.clone().run(cancel.clone()));
            reflector
        };
        let pods = reflect("Pod", pod_node);
        let nodes = reflect("Node", no_index);
        let namespaces = reflect("Namespace", no_index);
        let objects = ReferenceKind::ALL.map(|kind| (kind, reflect(kind.name(), no_index)));
        let of_kind = |wanted: ReferenceKind| {
            let found = objects.iter().find(|(kind, _)| *kind == wanted);
            found.map(|(_, reflector)| reflector.clone()).expect("every kind is reflected")
        };
        let claims = of_kind(ReferenceKind::PersistentVolumeClaim);
        let volumes = of_kind(ReferenceKind::PersistentVolume);
        let class = api::kinds::by_kind("storage.k8s.io", "v1", "StorageClass");
        let class = class.expect("the table of kinds has StorageClass");
        let classes = Reflector::new(store.clone(), class, no_index);
        tasks.spawn(classes.clone().run(cancel.clone()));
        let (publisher, epochs) = watch::channel(None);
        let sync = {
            let all = [&pods, &nodes, &namespaces, &claims, &volumes, &classes].map(Reflector::clone);
            move || {
                let all = all.clone();
                async move {
                    futures_util::future::try_join_all(all.iter().map(Reflector::sync)).await.map(|_| ())
                }
            }
        };
        tasks.spawn(publish_epochs(store.leadership(), publisher, sync, cancel.clone()));

        let (events, writing) = EventRecorder::new(registry.clone(), cancel.clone());
        tasks.spawn(writing);
        let heartbeats = Heartbeats::default();
        let ca_pem = settings.authority.certificate_pem().to_owned();
        let accounts = ServiceAccounts::new(registry.clone(), settings.authority);
        let sessions = NodeSessions::new(node_sessions::Dependencies {
            member_name: settings.member_name,
            range: settings.range,
            registry: registry.clone(),
            events: events.clone(),
            accounts: accounts.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
            objects: objects.into_iter().map(|(_, reflector)| reflector).collect(),
            epochs: epochs.clone(),
            heartbeats: heartbeats.clone(),
            tasks: tasks.clone(),
            cancel: cancel.clone(),
        });
        tasks.spawn(sessions.clone().route());
        let scheduling = scheduling::Dependencies {
            registry: registry.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
            storage: scheduling::Storage {
                claims: claims.clone(),
                volumes: volumes.clone(),
                classes: classes.clone(),
            },
            events: events.clone(),
            epochs: epochs.clone(),
        };
        tasks.spawn(scheduling::run(scheduling, cancel.clone()));
        let context = controllers::Context {
            registry: registry.clone(),
            events: events.clone(),
            pods,
            nodes,
            namespaces,
            claims,
            volumes,
            heartbeats: heartbeats.clone(),
            sessions: sessions.clone(),
            ca_pem,
            timings: settings.timings,
        };
        tasks.spawn(controllers::run(context, epochs.clone(), cancel.clone()));
        Self { sessions, heartbeats, epochs, events, accounts }
    }
}
