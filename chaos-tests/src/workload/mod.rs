//! What runs against a cluster while it is broken, and records what it asked and was told.
//!
//! Over the Kubernetes API: [`creates`], and those of whole clusters ([`platform`]). Over etcd's protocol: the others, run by
//! [`run`]. Each is a number of clients that follow any member and go to the next when one fails; none ever sends a request
//! twice. What each records is what the checker of the same name reads.

pub mod append;
pub mod bank;
pub mod creates;
pub mod hash;
pub mod lease;
pub mod lock;
mod pace;
pub mod platform;
pub mod put_get;
pub mod register;
mod session;
pub mod set;
mod voice;
pub mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::history::Recorder;
pub use session::{Failure, Session};

/// Clients of one workload that may run.
pub const CLIENTS_MAX: usize = 256;
/// Process numbers set apart for each client: one is used up by each call without an answer.
const PROCESSES: i64 = 1_000_000;

/// Which workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Reads, writes, compare-and-set of single keys.
    Register,
    /// Transactions over append lists.
    Append,
    /// Elements are added, all are read.
    Set,
    /// Money goes from account to account.
    Bank,
    /// Puts, deletes and reads, with their revisions.
    PutGet,
    /// Puts, and watchers that begin again where they broke off.
    Watch,
    /// Leases are granted, kept alive and left to end.
    Lease,
    /// Locks with fencing tokens.
    Lock,
    /// Elections; their leaders hold what locks' holders hold.
    Election,
    /// Pods are made and deleted.
    Pods,
    /// Deployments are scaled and rolled out.
    Deployment,
    /// Pods of StatefulSets are deleted, and come again under their names.
    StatefulSet,
    /// Jobs are begun and followed to their end.
    Job,
    /// Groups of pods that are of use only together.
    Gang,
}

/// Those of whole clusters.
pub const CLUSTER_KINDS: [Kind; 5] = [Kind::Pods, Kind::Deployment, Kind::StatefulSet, Kind::Job, Kind::Gang];

/// Those of a store alone.
pub const KINDS: [Kind; 9] = [
    Kind::Register,
    Kind::Append,
    Kind::Set,
    Kind::Bank,
    Kind::PutGet,
    Kind::Watch,
    Kind::Lease,
    Kind::Lock,
    Kind::Election,
];

impl Kind {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Append => "append",
            Self::Set => "set",
            Self::Bank => "bank",
            Self::PutGet => "put-get",
            Self::Watch => "watch",
            Self::Lease => "lease",
            Self::Lock => "lock",
            Self::Election => "election",
            Self::Pods => "pods",
            Self::Deployment => "deployment",
            Self::StatefulSet => "stateful-set",
            Self::Job => "job",
            Self::Gang => "gang",
        }
    }

    /// Whether it needs nodes beside the store.
    pub fn needs_nodes(self) -> bool {
        CLUSTER_KINDS.contains(&self)
    }

    /// How much longer than others it may do nothing after healing: whoever held something when a fault came holds it
    /// until a lease ends, which a new leader begins anew.
    pub fn held_up(self) -> Duration {
        match self {
            Self::Lock | Self::Election => Duration::from_secs(lock::TTL_SECONDS.unsigned_abs()),
            _ => Duration::ZERO,
        }
    }
}

/// How a workload is to be run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Which.
    pub kind: Kind,
    /// How many clients.
    #[serde(default = "default_clients")]
    pub clients: usize,
    /// How many operations a second each client asks at most.
    #[serde(default = "default_rate")]
    pub rate: f64,
}

fn default_clients() -> usize {
    4
}

fn default_rate() -> f64 {
    100.0
}

/// What all clients of a run need.
#[derive(Clone)]
pub struct Target {
    /// Where members are found.
    pub endpoints: Vec<SocketAddr>,
    /// Makes a connection, opened on first use and again after it broke; nothing may be sent twice.
    pub channel: fn(SocketAddr) -> Channel,
    /// The longest wait for an answer.
    pub timeout: Duration,
    /// Where everything is recorded.
    pub recorder: Recorder,
    /// When to end.
    pub stop: CancellationToken,
    /// Chooses what is asked.
    pub seed: u64,
}

/// Starts the clients of a plan. `number` tells plans apart; each kind has keys of its own.
pub fn run(plan: &Plan, number: usize, target: &Target, tasks: &TaskTracker) {
    let clients = plan.clients.clamp(1, CLIENTS_MAX);
    for client in 0..clients {
        let index = number * CLIENTS_MAX + client;
        let pause = Duration::from_secs_f64(1.0 / plan.rate.clamp(0.01, 1e6));
        let session = Session::new(target, index, index as i64 * PROCESSES, pause);
        match plan.kind {
            Kind::Register => tasks.spawn(register::work(session)),
            Kind::Append => tasks.spawn(append::work(session)),
            Kind::Set => tasks.spawn(set::work(session, client)),
            Kind::Bank => tasks.spawn(bank::work(session)),
            Kind::PutGet => tasks.spawn(put_get::work(session)),
            Kind::Watch if client % 2 == 1 => tasks.spawn(watch::work(session)),
            Kind::Watch => tasks.spawn(put_get::write(session)),
            Kind::Lease => tasks.spawn(lease::work(session)),
            Kind::Lock => tasks.spawn(lock::work(session, lock::Door::Lock)),
            Kind::Election => tasks.spawn(lock::work(session, lock::Door::Election)),
            // An experiment that has one of these has a whole cluster.
            Kind::Pods | Kind::Deployment | Kind::StatefulSet | Kind::Job | Kind::Gang => {
                continue;
            }
        };
    }
}
