//! Workloads of whole clusters: pods, and what keeps pods.
//!
//! Clients ask any master over the Kubernetes API, go to the next when one fails, and never send a request twice. Beside them two
//! observers look on for as long as a run lasts: one follows every pod through the API, version by version (`observer`),
//! one asks the kernel which of them really run (`instances`). At the end each client waits until what it asked for
//! is there, then removes it and waits until it is gone; both are operations of the history.

mod deployment;
mod gang;
mod instances;
mod jobs;
mod observer;
mod pods;
mod session;
mod stateful_set;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CLIENTS_MAX, Kind, PROCESSES, Plan};
use crate::client::Client;
use crate::history::Recorder;
pub use instances::{Instance, Instances};
use session::Session;

/// The label by which a client finds its own.
const LABEL: &str = "chaos";
/// The label that names a pod's group.
const GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";
/// What containers are told of themselves, so that their processes can be told apart.
const CLUSTER: &str = "CHAOS_CLUSTER";
const IDENTITY: &str = "CHAOS_IDENTITY";
const UID: &str = "CHAOS_UID";
const NODE: &str = "CHAOS_NODE";

/// What all clients of a run need.
#[derive(Clone)]
pub struct Target {
    /// The administrator's.
    pub client: Arc<Client>,
    /// Where masters serve.
    pub servers: Vec<SocketAddr>,
    /// Where everything is made.
    pub namespace: String,
    /// Tells this cluster's containers from all others; empty: they are no processes of this machine.
    pub cluster: String,
    /// The longest wait for an answer.
    pub timeout: Duration,
    /// The longest wait at the end until what was asked for is there, and until it is gone.
    pub converge: Duration,
    /// Where everything is recorded.
    pub recorder: Recorder,
    /// When clients end.
    pub stop: CancellationToken,
    /// When observers end.
    pub look_no_more: CancellationToken,
    /// Chooses what is asked.
    pub seed: u64,
}

/// Starts the clients of a plan among `clients`, and its observers among `observers`.
pub fn run(plan: &Plan, number: usize, target: &Target, clients: &TaskTracker, observers: &TaskTracker) {
    observers.spawn(observer::work(target.clone(), target.client.another(), observer(number, 1)));
    if !target.cluster.is_empty() {
        observers.spawn(instances::work(target.clone(), number));
    }
    for client in 0..plan.clients.clamp(1, CLIENTS_MAX - 2) {
        let index = number * CLIENTS_MAX + client;
        let pause = Duration::from_secs_f64(1.0 / plan.rate.clamp(0.01, 1e6));
        let session = Session::new(target, index, index as i64 * PROCESSES, pause);
        match plan.kind {
            Kind::Deployment => clients.spawn(deployment::work(session)),
            Kind::StatefulSet => clients.spawn(stateful_set::work(session)),
            Kind::Job => clients.spawn(jobs::work(session)),
            Kind::Gang => clients.spawn(gang::work(session)),
            _ => clients.spawn(pods::work(session)),
        };
    }
}

/// An observer's name in the history: observers have the last ones of a plan.
fn observer(plan: usize, number: usize) -> i64 {
    (plan * CLIENTS_MAX + CLIENTS_MAX - number) as i64 * PROCESSES
}

/// What every pod is made of: metadata and spec. It leaves a node a second after that fell silent.
fn template(session: &Session) -> Value {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let leaves = |taint: &str| {
        json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute",
               "tolerationSeconds": 1})
    };
    json!({
        "metadata": {"labels": {LABEL: session.label()}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "tolerations": [leaves("unreachable"), leaves("not-ready")],
            "containers": [{
                "name": "main",
                "image": "barque/hello:1.0",
                "env": [
                    {"name": CLUSTER, "value": session.cluster()},
                    field(IDENTITY, "metadata.name"),
                    field(UID, "metadata.uid"),
                    field(NODE, "spec.nodeName"),
                ],
                "resources": {"requests": {"cpu": "150m"}},
            }],
        },
    })
}
