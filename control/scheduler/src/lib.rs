//! The scheduler's core: which node a pod goes to, and when to try again.
//!
//! Owns the queue of pods that wait, the cache of nodes with what is taken on each, the framework of rules
//! and one scheduling cycle. It is pure: no clock, no network, no task; time is passed in and equal calls
//! give equal decisions. It does not bind: its shell (`control::scheduling`) feeds it from watches,
//! performs its decisions through the registry and reports how each ended.
//!
//! ```text
//!  pod seen ──► active ──► scheduling cycle ──► decision ──► assumed ──► bound (confirmed by the watch)
//!    │ gated      ▲              │ fits nowhere                 │ bind failed
//!    ▼            │              ▼                              ▼
//!  held back   back-off ◄── unschedulable ◄── cluster event    forget, back-off
//!                                └──► displace pods of lower priority, keep their room
//! ```

mod cache;
mod cluster_event;
mod core;
mod cycle;
mod explain;
mod fit_error;
mod framework;
mod gang;
mod index;
mod interner;
mod labels;
mod node_info;
mod outcome;
mod pod_class;
mod pod_info;
mod preemption;
mod queue;
mod random;
mod resources;
mod selector;
mod snapshot;
mod taints;
mod topology;

pub mod plugins;

pub use crate::cache::{AssumeError, Cache, Placed};
pub use crate::cluster_event::{Change, ClusterEvent};
pub use crate::core::{Scheduler, SchedulerConfig};
pub use crate::cycle::{Cycle, Decision, Examined};
pub use crate::explain::{RECORDED_NODES_MAX, RECORDS_MAX, Record};
pub use crate::fit_error::{Displacing, FitError};
pub use crate::framework::{
    Bind, Binder, ConfigError, Configuration, Filter, FilterState, Framework, Group, PLUGINS_MAX, Permission,
    Permit, Plugin, Point, PostBind, PostFilter, PreBind, PreEnqueue, PreFilter, PreFiltered, PreScore,
    PreemptionArgs, ProfileConfig, QueueSort, Reason, Recount, Registry, Rejection, Reserve, SCORE_MAX,
    Score, ScoreState, WeightedPlugins,
};
pub use crate::labels::{AffinityTerm, LabelSet, Namespaces, PodSelector};
pub use crate::node_info::{LabelCount, NodeInfo, NodeObject};
pub use crate::outcome::Outcome;
pub use crate::pod_class::{PodClass, SpreadConstraint};
pub use crate::pod_info::{
    GroupMember, HostPort, InvalidPod, POD_GROUP_LABEL, POD_GROUP_MIN_ANNOTATION, PodInfo, PodVolumes,
};
pub use crate::preemption::{Budget, Displacement};
pub use crate::queue::{GroupKey, Queue, QueueCounts, QueueLimits};
pub use crate::resources::{InvalidQuantity, Resources};
pub use crate::selector::{InvalidSelector, NodeTerm};
pub use crate::snapshot::Snapshot;
pub use crate::taints::{Effect, Taint, Toleration};
