//! The scheduler's core: which node a pod goes to, and when to try again.
//!
//! Owns the queue of pods that wait, the cache of nodes with what is taken on each, the framework of rules
//! and one scheduling cycle. It is pure: no clock, no network, no task; time is passed in and equal calls
//! give equal decisions. It does not bind: its shell (`control::scheduling`) feeds it from watches,
//! performs its decisions through the registry and reports how each ended.
//!
//! ```text
//!  pod seen ──► active ──► scheduling cycle ──► decision ──► assumed ──► bound (confirmed by the watch)
//!                 ▲              │ fits nowhere                 │ bind failed
//!                 │              ▼                              ▼
//!              back-off ◄── unschedulable ◄── cluster event    forget, back-off
//! ```

mod cache;
mod cluster_event;
mod core;
mod cycle;
mod framework;
mod node_info;
mod pod_info;
mod queue;
mod resources;
mod selector;
mod snapshot;
mod taints;

pub mod plugins;

pub use crate::cache::{AssumeError, Cache};
pub use crate::cluster_event::ClusterEvent;
pub use crate::core::{Outcome, Scheduler, SchedulerConfig};
pub use crate::cycle::{Cycle, Decision, FitError};
pub use crate::framework::{Filter, Framework, Reason, Rejection, SCORE_MAX, Score};
pub use crate::node_info::NodeInfo;
pub use crate::pod_info::{HostPort, InvalidPod, PodInfo, PodVolumes};
pub use crate::queue::{Queue, QueueCounts, QueueLimits};
pub use crate::resources::{InvalidQuantity, Resources};
pub use crate::selector::{InvalidSelector, NodeTerm};
pub use crate::snapshot::Snapshot;
pub use crate::taints::{Effect, Taint, Toleration};
