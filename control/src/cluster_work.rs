//! Everything that a replica does beside answering requests: reflectors, leadership, scheduling, controllers,
//! node sessions.
//!
//! Owns the order in which these begin and what each is given. Nothing here outlives the token it was
//! started with.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Access;
use crate::auth::service_account::ServiceAccounts;
use crate::controllers::{self, Timings};
use crate::grpc::node_sessions::{self, NodeSessions};
use crate::heartbeats::Heartbeats;
use crate::leader::{EpochReceiver, publish_epochs};
use crate::object_store::{Error, ObjectStore, SharedStore};
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
    /// Decides who may do what.
    pub access: Access,
}

/// This replica's copies of the kinds that its work looks at.
#[derive(Debug, Clone)]
struct Copies {
    pods: Reflector<SharedStore>,
    nodes: Reflector<SharedStore>,
    namespaces: Reflector<SharedStore>,
    config_maps: Reflector<SharedStore>,
    secrets: Reflector<SharedStore>,
    claims: Reflector<SharedStore>,
    volumes: Reflector<SharedStore>,
    classes: Reflector<SharedStore>,
    replica_sets: Reflector<SharedStore>,
    deployments: Reflector<SharedStore>,
    /// The other kinds whose objects may own or be owned.
    others: Vec<Reflector<SharedStore>>,
}

impl Copies {
    fn start(store: &SharedStore, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let reflect = |group: &str, kind: &str, index_by: IndexBy| {
            let kind = api::kinds::by_kind(group, "v1", kind).expect("the table of kinds has these");
            let reflector = Reflector::new(store.clone(), kind, index_by);
            tasks.spawn(reflector.clone().run(cancel.clone()));
            reflector
        };
        Self {
            pods: reflect("", "Pod", pod_node),
            nodes: reflect("", "Node", no_index),
            namespaces: reflect("", "Namespace", no_index),
            config_maps: reflect("", "ConfigMap", no_index),
            secrets: reflect("", "Secret", no_index),
            claims: reflect("", "PersistentVolumeClaim", no_index),
            volumes: reflect("", "PersistentVolume", no_index),
            classes: reflect("storage.k8s.io", "StorageClass", no_index),
            replica_sets: reflect("apps", "ReplicaSet", no_index),
            deployments: reflect("apps", "Deployment", no_index),
            others: vec![
                reflect("", "ServiceAccount", no_index),
                reflect("coordination.k8s.io", "Lease", no_index),
            ],
        }
    }

    /// Brings what decisions rest on up to date. ConfigMaps and Secrets are only watched for changes: their
    /// contents are read from the store.
    async fn sync(self) -> Result<(), Error> {
        let Self { pods, nodes, namespaces, claims, volumes, classes, replica_sets, deployments, .. } = &self;
        let all = [pods, nodes, namespaces, claims, volumes, classes, replica_sets, deployments];
        futures_util::future::try_join_all(all.map(Reflector::sync)).await.map(|_| ())
    }

    /// All of them.
    fn all(&self) -> Vec<Reflector<SharedStore>> {
        let named = [
            &self.pods,
            &self.nodes,
            &self.namespaces,
            &self.config_maps,
            &self.secrets,
            &self.claims,
            &self.volumes,
            &self.classes,
            &self.replica_sets,
            &self.deployments,
        ];
        named.into_iter().chain(&self.others).cloned().collect()
    }

    /// Those that pods refer to.
    fn referenced(&self) -> Vec<Reflector<SharedStore>> {
        [&self.config_maps, &self.secrets, &self.claims, &self.volumes].map(Reflector::clone).to_vec()
    }
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
        let copies = Copies::start(store, tasks, cancel);
        let Copies { pods, nodes, namespaces, claims, volumes, .. } = copies.clone();
        let access = Access::start(store, tasks, cancel);
        let (publisher, epochs) = watch::channel(None);
        let sync = {
            let copies = copies.clone();
            move || copies.clone().sync()
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
            objects: copies.referenced(),
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
                classes: copies.classes.clone(),
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
            replica_sets: copies.replica_sets.clone(),
            deployments: copies.deployments.clone(),
            everything: copies.all().into_iter().chain(access.reflectors().map(Reflector::clone)).collect(),
            cluster_roles: access.cluster_roles().clone(),
            heartbeats: heartbeats.clone(),
            sessions: sessions.clone(),
            ca_pem,
            timings: settings.timings,
        };
        tasks.spawn(controllers::run(context, epochs.clone(), cancel.clone()));
        Self { sessions, heartbeats, epochs, events, accounts, access }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_store::memory::MemoryStore;

    #[tokio::test]
    async fn every_kind_but_events_is_followed_for_its_owners() {
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let store = SharedStore::new(MemoryStore::new());
        let copies = Copies::start(&store, &tasks, &cancel);
        let access = Access::start(&store, &tasks, &cancel);
        let followed = copies.all().into_iter().chain(access.reflectors().map(Reflector::clone));
        let mut followed: Vec<&str> = followed.map(|reflector| reflector.kind().kind).collect();
        followed.sort_unstable();
        let kinds = api::kinds().iter().filter(|kind| !kind.virtual_only && kind.kind != "Event");
        let mut kinds: Vec<&str> = kinds.map(|kind| kind.kind).collect();
        kinds.sort_unstable();
        assert_eq!(followed, kinds);
        cancel.cancel();
    }
}
