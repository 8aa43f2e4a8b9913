//! The control loops of the leader.
//!
//! Each loop is level-triggered and idempotent: it compares what is with what should be and writes the
//! difference through the registry, fenced by its epoch. Loops never call each other; they meet in objects.
//! All of them begin with an epoch and end with it.

mod bootstrap_signer;
mod certificates;
mod children;
mod cluster_roles;
mod cron_job;
mod custom_resources;
mod daemon_set;
mod deleting;
mod deployment;
mod disruption;
mod endpoints;
mod ephemeral_volumes;
mod event_ttl;
mod flow_control;
mod garbage_collector;
mod horizontal_pod_autoscaler;
mod ingress;
mod job;
mod kubernetes_service;
pub(crate) mod load_balancer;
mod namespace;
mod namespace_defaults;
mod node_lease;
pub mod node_lifecycle;
mod owners;
mod pod_gc;
mod priority_classes;
mod replica_set;
mod resource_quota;
mod revisions;
mod stateful_set;
mod taint_eviction;
mod token_cleaner;
mod token_secrets;
pub(crate) mod volume_binding;
mod work_queue;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{Kind, Status};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::cron_job::CronJobs;
use self::daemon_set::DaemonSets;
use self::deployment::Deployments;
use self::disruption::Budgets;
use self::endpoints::Services;
use self::horizontal_pod_autoscaler::Autoscalers;
use self::job::Jobs;
pub use self::load_balancer::AddressRange;
use self::replica_set::Replicas;
use self::stateful_set::StatefulSets;
use crate::auth::Access;
use crate::auth::service_account::ServiceAccounts;
use crate::grpc::node_sessions::NodeSessions;
use crate::heartbeats::Heartbeats;
use crate::leader::{Epoch, EpochReceiver, while_leading};
use crate::object_store::SharedStore;
use crate::pki::Authority;
use crate::reflector::Reflector;
use crate::registry::{EventRecorder, Registry, WriteOptions};
use crate::usage::Usage;

/// Most writes of one loop at once.
const WRITES_MAX: usize = 16;

/// What the loops work with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Performs the writes.
    pub registry: Registry,
    /// Takes Events in.
    pub events: EventRecorder,
    /// Every pod, indexed by node.
    pub pods: Reflector<SharedStore>,
    /// Every node.
    pub nodes: Reflector<SharedStore>,
    /// Every namespace.
    pub namespaces: Reflector<SharedStore>,
    /// Every PersistentVolumeClaim.
    pub claims: Reflector<SharedStore>,
    /// Every PersistentVolume.
    pub volumes: Reflector<SharedStore>,
    /// Every kind whose objects may own or be owned.
    pub everything: Vec<Reflector<SharedStore>>,
    /// The same of custom kinds, as they come and go; `None` until they were looked at first.
    pub custom: watch::Receiver<Option<Vec<Reflector<SharedStore>>>>,
    /// Every ClusterRole.
    pub cluster_roles: Reflector<SharedStore>,
    /// Where the masters are reached.
    pub masters: Vec<SocketAddr>,
    /// When nodes were last heard of.
    pub heartbeats: Heartbeats,
    /// Sessions of the nodes.
    pub sessions: NodeSessions,
    /// What nodes and pods use.
    pub usage: Usage,
    /// Who may do what.
    pub access: Access,
    /// Makes the tokens of service accounts.
    pub accounts: ServiceAccounts,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// The certificate by which pods know the API, PEM.
    pub ca_pem: String,
    /// What Services of type `LoadBalancer` get.
    pub balancer_addresses: Vec<AddressRange>,
    /// Settings.
    pub timings: Timings,
}

impl Context {
    /// Every object of a kind.
    fn every(&self, group: &str, kind: &str) -> &Reflector<SharedStore> {
        let found = self.everything.iter().find(|of| of.kind().kind == kind && of.kind().group == group);
        found.expect("every kind but events is followed")
    }
}

/// How long the loops wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// How long a node may be silent before it counts as unreachable.
    pub node_monitor_grace: Duration,
    /// How often the `Lease` of a node that is heard of is renewed.
    pub node_lease_renewal: Duration,
    /// How long a pod that does not say otherwise stays on a node that is not ready or unreachable.
    pub eviction_after: Duration,
    /// How long a node must be gone before its pods are removed.
    pub orphan_after: Duration,
    /// How long an Event is kept.
    pub event_ttl: Duration,
    /// How often autoscalers look.
    pub autoscaler_sync: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            node_monitor_grace: Duration::from_secs(3),
            node_lease_renewal: Duration::from_secs(10),
            eviction_after: Duration::from_secs(300),
            orphan_after: Duration::from_secs(10),
            event_ttl: Duration::from_secs(60 * 60),
            autoscaler_sync: Duration::from_secs(15),
        }
    }
}

/// Runs every loop whenever this replica leads, until cancelled.
pub async fn run(context: Context, epochs: EpochReceiver, cancel: CancellationToken) {
    while_leading(epochs, cancel, |epoch, stop| {
        let context = context.clone();
        async move {
            let loops = async {
                // Each has its state on the heap: together they would be large for a stack.
                tokio::join!(
                    Box::pin(namespace::bootstrap(&context)),
                    Box::pin(namespace::run(&context, epoch)),
                    Box::pin(cluster_roles::run(&context, epoch)),
                    Box::pin(certificates::run(&context, epoch)),
                    Box::pin(custom_resources::run(&context, epoch)),
                    Box::pin(priority_classes::bootstrap(&context, epoch)),
                    Box::pin(flow_control::run(&context, epoch)),
                    Box::pin(garbage_collector::run(&context, epoch)),
                    Box::pin(resource_quota::run(&context, epoch)),
                    Box::pin(owners::run(&context, epoch, Replicas::Set)),
                    Box::pin(owners::run(&context, epoch, Replicas::Controller)),
                    Box::pin(owners::run(&context, epoch, Deployments)),
                    Box::pin(owners::run(&context, epoch, StatefulSets)),
                    Box::pin(owners::run(&context, epoch, DaemonSets)),
                    Box::pin(owners::run(&context, epoch, Jobs)),
                    Box::pin(owners::run(&context, epoch, CronJobs)),
                    Box::pin(kubernetes_service::run(&context, epoch)),
                    Box::pin(owners::run(&context, epoch, Services)),
                    Box::pin(load_balancer::run(&context, epoch)),
                    Box::pin(ingress::run(&context, epoch)),
                    Box::pin(endpoints::forget(&context, epoch)),
                    Box::pin(owners::run(&context, epoch, Budgets)),
                    Box::pin(owners::run(&context, epoch, Autoscalers::default())),
                    Box::pin(namespace_defaults::run(&context, epoch)),
                    Box::pin(node_lifecycle::run(&context, epoch)),
                    Box::pin(node_lease::run(&context, epoch)),
                    Box::pin(taint_eviction::run(&context, epoch)),
                    Box::pin(pod_gc::run(&context, epoch)),
                    Box::pin(ephemeral_volumes::run(&context, epoch)),
                    Box::pin(volume_binding::run(&context, epoch)),
                    Box::pin(event_ttl::run(&context, epoch)),
                    Box::pin(token_cleaner::run(&context, epoch)),
                    Box::pin(bootstrap_signer::run(&context, epoch)),
                    Box::pin(token_secrets::run(&context, epoch)),
                )
            };
            stop.run_until_cancelled(loops).await;
        }
    })
    .await;
}

/// The turns of a loop that looks every so often; one that took long makes the next ones late.
fn ticks(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn options(epoch: Epoch) -> WriteOptions {
    WriteOptions { fence: epoch.fence(), ..WriteOptions::default() }
}

/// A moment as conditions carry it.
fn whole_seconds(at: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn core_kind(kind: &str) -> &'static Kind {
    api::kinds::by_kind("", "v1", kind).expect("the table of kinds has the core kinds")
}

/// Somebody else was faster, or the object changed: the next look decides anew.
fn settled(written: Result<(), Status>) -> Result<(), Status> {
    match written {
        Err(status) if matches!(status.reason(), "NotFound" | "Conflict") => Ok(()),
        written => written,
    }
}
