//! Everything that a replica does beside answering requests: reflectors, leadership, scheduling, controllers,
//! node sessions.
//!
//! Owns the order in which these begin and what each is given. Nothing here outlives the token it was
//! started with.

use std::net::SocketAddr;
use std::sync::Arc;

use api::Kind;
use api::kinds::{EXTENSIONS_GROUP, RBAC_GROUP};
use exposition::Exposition;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Access;
use crate::auth::nodes::NodeCopies;
use crate::auth::service_account::ServiceAccounts;
use crate::controllers::{self, AddressRange, Timings};
use crate::custom_copies;
use crate::grpc::node_sessions::{self, NodeSessions};
use crate::heartbeats::Heartbeats;
use crate::leader::{EpochReceiver, publish_epochs};
use crate::object_store::{Error, ObjectStore, SharedStore};
use crate::pki::Authority;
use crate::pod_cidr::PodRange;
use crate::reflector::{IndexBy, Reflector, no_index, pod_node};
use crate::registry::{EventRecorder, Registry};
use crate::scheduling::{self, Explainer};
use crate::usage::Usage;

/// What the replica's work needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This member's name.
    pub member_name: String,
    /// Where nodes get their pod addresses from.
    pub range: PodRange,
    /// Signs what service accounts get.
    pub authority: Arc<Authority>,
    /// Where the masters are reached.
    pub masters: Vec<SocketAddr>,
    /// What Services of type `LoadBalancer` get.
    pub balancer_addresses: Vec<AddressRange>,
    /// How long controllers wait for what.
    pub timings: Timings,
    /// Profiles and waits of the scheduler.
    pub scheduler: Arc<scheduler::Configuration>,
}

/// The running work, and what others need of it.
#[derive(Debug, Clone)]
pub struct ClusterWork {
    /// The node sessions: a gRPC service, and where logs come from.
    pub sessions: NodeSessions,
    /// When nodes were last heard of, for the cluster's status.
    pub heartbeats: Heartbeats,
    /// What nodes and pods use, as this replica was told.
    pub usage: Usage,
    /// Under which epoch this replica acts.
    pub epochs: EpochReceiver,
    /// Takes Events in.
    pub events: EventRecorder,
    /// Makes and checks the tokens of service accounts.
    pub accounts: ServiceAccounts,
    /// Decides who may do what.
    pub access: Access,
    /// Asks the scheduler why.
    pub explainer: Explainer,
    /// What the scheduler counts.
    pub scheduling: Arc<scheduling::Metrics>,
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
    /// The other kinds whose objects may own or be owned.
    others: Vec<Reflector<SharedStore>>,
}

impl Copies {
    fn start(store: &SharedStore, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let reflect = |kind: &'static Kind, index_by: IndexBy| {
            let reflector = Reflector::new(store.clone(), kind, index_by);
            tasks.spawn(reflector.clone().run(cancel.clone()));
            reflector
        };
        let of = |group: &str, kind: &str| {
            api::kinds::by_kind(group, "v1", kind).expect("the table of kinds has these")
        };
        let named = Self {
            pods: reflect(of("", "Pod"), pod_node),
            nodes: reflect(of("", "Node"), no_index),
            namespaces: reflect(of("", "Namespace"), no_index),
            config_maps: reflect(of("", "ConfigMap"), no_index),
            secrets: reflect(of("", "Secret"), no_index),
            claims: reflect(of("", "PersistentVolumeClaim"), no_index),
            volumes: reflect(of("", "PersistentVolume"), no_index),
            classes: reflect(of("storage.k8s.io", "StorageClass"), no_index),
            others: Vec::new(),
        };
        let known: Vec<&Kind> = named.all().iter().map(Reflector::kind).collect();
        // Roles are followed by what decides who may do what, definitions of kinds by the registry.
        let is_other = |kind: &&Kind| {
            !kind.virtual_only
                && kind.kind != "Event"
                && kind.stored_as.is_none()
                && ![RBAC_GROUP, EXTENSIONS_GROUP].contains(&kind.group)
                && !known.contains(kind)
        };
        let others = api::kinds().iter().filter(is_other).map(|kind| reflect(kind, no_index)).collect();
        Self { others, ..named }
    }

    /// All of them, and those that others keep.
    fn everything(&self, access: &Access, registry: &Registry) -> Vec<Reflector<SharedStore>> {
        let roles = access.reflectors().map(Reflector::clone);
        self.all().into_iter().chain(roles).chain([registry.kinds().definitions().clone()]).collect()
    }

    /// Brings what decisions rest on up to date. ConfigMaps and Secrets are only watched for changes: their
    /// contents are read from the store.
    async fn sync(self) -> Result<(), Error> {
        let Self { pods, nodes, namespaces, claims, volumes, classes, .. } = &self;
        let all = [pods, nodes, namespaces, claims, volumes, classes].into_iter().chain(&self.others);
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
        ];
        named.into_iter().chain(&self.others).cloned().collect()
    }

    /// Those that the cluster's network is made of: every node hears of all of them.
    fn network(&self) -> Vec<Reflector<SharedStore>> {
        let of_network =
            |copy: &&Reflector<SharedStore>| node_sessions::NETWORK_KINDS.contains(&copy.kind().kind);
        let all = self.all();
        all.iter().filter(of_network).cloned().collect()
    }

    /// Those that pods refer to.
    fn referenced(&self) -> Vec<Reflector<SharedStore>> {
        [&self.config_maps, &self.secrets, &self.claims, &self.volumes].map(Reflector::clone).to_vec()
    }
}

impl ClusterWork {
    /// What `/metrics` tells of the work: whether this replica leads, what nodes it speaks with, what it schedules.
    pub fn expose(&self, out: &mut Exposition) {
        let leads = u8::from(self.epochs.borrow().is_some());
        let name = "leader_election_master_status";
        out.head(name, "1 where the component acts, 0 where it stands by.", "gauge");
        for component in ["kube-controller-manager", "kube-scheduler"] {
            out.sample(name, &format!("name=\"{component}\""), leads);
        }
        let help = "Nodes that have a session with this replica.";
        out.gauge("barque_node_sessions", help, self.sessions.connected());
        self.scheduling.expose(out);
    }

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
        let node_copies = NodeCopies { pods: pods.clone(), claims: claims.clone() };
        let access = Access::start(store, tasks, cancel).with_nodes(node_copies);
        let (publisher, epochs) = watch::channel(None);
        let sync = {
            let copies = copies.clone();
            move || copies.clone().sync()
        };
        tasks.spawn(publish_epochs(store.leadership(), publisher, sync, cancel.clone()));

        let (events, writing) = EventRecorder::new(registry.clone(), cancel.clone());
        tasks.spawn(writing);
        let (heartbeats, usage) = (Heartbeats::default(), Usage::default());
        let ca_pem = settings.authority.certificate_pem().to_owned();
        let authority = settings.authority.clone();
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
            network: copies.network(),
            epochs: epochs.clone(),
            heartbeats: heartbeats.clone(),
            usage: usage.clone(),
            tasks: tasks.clone(),
            cancel: cancel.clone(),
        });
        tasks.spawn(sessions.clone().route());
        let (explainer, questions) = Explainer::new();
        let metrics = Arc::<scheduling::Metrics>::default();
        let budgets = copies.all().into_iter().find(|copy| copy.kind().kind == "PodDisruptionBudget");
        let custom = custom_copies::start(store, registry, tasks, cancel);
        let scheduling = scheduling::Dependencies {
            registry: registry.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
            namespaces: namespaces.clone(),
            budgets,
            custom: custom.clone(),
            configuration: settings.scheduler,
            questions,
            metrics: metrics.clone(),
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
            everything: copies.everything(&access, registry),
            custom,
            cluster_roles: access.cluster_roles().clone(),
            masters: settings.masters,
            heartbeats: heartbeats.clone(),
            sessions: sessions.clone(),
            usage: usage.clone(),
            access: access.clone(),
            accounts: accounts.clone(),
            authority,
            ca_pem,
            balancer_addresses: settings.balancer_addresses,
            timings: settings.timings,
        };
        tasks.spawn(controllers::run(context, epochs.clone(), cancel.clone()));
        Self { sessions, heartbeats, usage, epochs, events, accounts, access, explainer, scheduling: metrics }
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
        // The registry follows the definitions of custom kinds for itself.
        let kinds = api::kinds()
            .iter()
            .filter(|kind| !kind.virtual_only && !matches!(kind.kind, "Event" | "CustomResourceDefinition"))
            .filter(|kind| kind.stored_as.is_none());
        let mut kinds: Vec<&str> = kinds.map(|kind| kind.kind).collect();
        kinds.sort_unstable();
        assert_eq!(followed, kinds);
        cancel.cancel();
    }
}
