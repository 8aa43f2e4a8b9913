//! The control loops of the leader.
//!
//! Each loop is level-triggered and idempotent: it compares what is with what should be and writes the
//! difference through the registry, fenced by its epoch. Loops never call each other; they meet in objects.
//! All of them begin with an epoch and end with it.

mod children;
mod cluster_roles;
mod deployment;
mod event_ttl;
pub(crate) mod garbage_collector;
mod namespace;
mod namespace_defaults;
mod node_lease;
pub mod node_lifecycle;
mod pod_gc;
mod replica_set;
mod taint_eviction;
pub(crate) mod volume_binding;
mod work_queue;

#[cfg(test)]
mod tests;

use std::time::Duration;

use api::{Kind, Status};
use tokio_util::sync::CancellationToken;

use crate::grpc::node_sessions::NodeSessions;
use crate::heartbeats::Heartbeats;
use crate::leader::{Epoch, EpochReceiver, while_leading};
use crate::object_store::SharedStore;
use crate::reflector::Reflector;
use crate::registry::{EventRecorder, Registry, WriteOptions};

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
    /// Every ReplicaSet.
    pub replica_sets: Reflector<SharedStore>,
    /// Every Deployment.
    pub deployments: Reflector<SharedStore>,
    /// Every kind whose objects may own or be owned.
    pub everything: Vec<Reflector<SharedStore>>,
    /// Every ClusterRole.
    pub cluster_roles: Reflector<SharedStore>,
    /// When nodes were last heard of.
    pub heartbeats: Heartbeats,
    /// Sessions of the nodes.
    pub sessions: NodeSessions,
    /// The certificate by which pods know the API, PEM.
    pub ca_pem: String,
    /// Settings.
    pub timings: Timings,
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
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            node_monitor_grace: Duration::from_secs(3),
            node_lease_renewal: Duration::from_secs(10),
            eviction_after: Duration::from_secs(300),
            orphan_after: Duration::from_secs(10),
            event_ttl: Duration::from_secs(60 * 60),
        }
    }
}

/// Runs every loop whenever this replica leads, until cancelled.
pub async fn run(context: Context, epochs: EpochReceiver, cancel: CancellationToken) {
    while_leading(epochs, cancel, |epoch, stop| {
        let context = context.clone();
        async move {
            let loops = async {
                tokio::join!(
                    namespace::bootstrap(&context),
                    namespace::run(&context, epoch),
                    cluster_roles::run(&context, epoch),
                    garbage_collector::run(&context, epoch),
                    replica_set::run(&context, epoch),
                    deployment::run(&context, epoch),
                    namespace_defaults::run(&context, epoch),
                    node_lifecycle::run(&context, epoch),
                    node_lease::run(&context, epoch),
                    taint_eviction::run(&context, epoch),
                    pod_gc::run(&context, epoch),
                    volume_binding::run(&context, epoch),
                    event_ttl::run(&context, epoch),
                )
            };
            stop.run_until_cancelled(loops).await;
        }
    })
    .await;
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
