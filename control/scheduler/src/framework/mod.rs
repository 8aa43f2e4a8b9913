//! The framework: the points at which plugins take part in scheduling a pod, and which plugins stand where.
//!
//! | point | asks | answers |
//! |---|---|---|
//! | [`PreEnqueue`] | may the pod be tried at all? | a reason to hold it back |
//! | [`QueueSort`] | who goes first? | a sort key |
//! | [`PreFilter`] | what do you know of pods like this? | nodes to look at, a [`FilterState`] |
//! | [`Filter`], [`FilterState`] | does the node take the pod? | reasons why not |
//! | [`PostFilter`] | it fits nowhere: what now? | a node where pods have to go |
//! | [`PreScore`] | what do you know of pods like this? | a [`ScoreState`] |
//! | [`Score`], [`ScoreState`] | how good is the node? | 0 to [`SCORE_MAX`] |
//! | [`Reserve`] | the pod goes there | an objection; undone if it does not go there after all |
//! | [`Permit`] | now? | yes, no, or wait |
//! | [`PreBind`], [`Bind`], [`PostBind`] | it is about to be bound, who binds, it is bound | |
//!
//! What a rule says must follow from the pod's class and labels and from the nodes alone: equal pods share
//! what was found out for one of them. A [`Filter`] or [`Score`] looks at one node. A rule that looks at
//! several keeps a state, told of every node that changed, and puts each node into words of its own, the
//! *facets*: nodes with equal facets are equal to it, and are judged together.

mod config;
mod profile;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

pub use self::config::{ConfigError, Configuration, ProfileConfig, Registry};
pub use self::profile::{Framework, Point, WeightedPlugins};
use crate::cluster_event::{Change, ClusterEvent};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

/// The best score that a rule may give a node.
pub const SCORE_MAX: i64 = 100;

/// Most plugins that a profile holds: one bit each in the queue's note of who rejected a pod.
pub const PLUGINS_MAX: usize = 64;

/// Why a node does not take a pod, in the words that users know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A fixed text.
    Text(&'static str),
    /// Too little of a resource is free.
    Insufficient(Cow<'static, str>),
    /// A text about this pod, the same on whichever node.
    Pod(String),
    /// The first taint that the pod does not tolerate.
    UntoleratedTaint {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Pod(problem) => f.write_str(problem),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Self::UntoleratedTaint { key, value } => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
        }
    }
}

/// A filter's no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Every reason that this filter found.
    pub reasons: Vec<Reason>,
    /// Whether removing pods from the node could turn the no into a yes.
    pub resolvable: bool,
}

impl Rejection {
    /// A no that stands whatever pods are removed.
    pub fn unresolvable(reason: Reason) -> Self {
        Self { reasons: vec![reason], resolvable: false }
    }

    /// A no that could be lifted by removing pods.
    pub fn resolvable(reason: Reason) -> Self {
        Self { reasons: vec![reason], resolvable: true }
    }
}

/// A plugin: a name and the points at which it takes part.
pub trait Plugin: fmt::Debug + Send + Sync {
    /// The name by which configurations call it.
    fn name(&self) -> &'static str;

    /// The changes that can lift a rejection of this plugin, beside a new node, which always can.
    fn helped_by(&self) -> &'static [Change] {
        &[]
    }

    /// The queueing hint: whether a change of [`Self::helped_by`] can make this pod fit.
    fn hint(&self, _pod: &PodInfo, _event: &ClusterEvent<'_>) -> bool {
        true
    }

    /// Holds pods back before they are tried.
    fn pre_enqueue(&self) -> Option<&dyn PreEnqueue> {
        None
    }
    /// Orders the queue.
    fn queue_sort(&self) -> Option<&dyn QueueSort> {
        None
    }
    /// Looks at the cluster before nodes are filtered.
    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        None
    }
    /// Filters nodes one by one.
    fn filter(&self) -> Option<&dyn Filter> {
        None
    }
    /// Acts when no node passed.
    fn post_filter(&self) -> Option<&dyn PostFilter> {
        None
    }
    /// Looks at the cluster before nodes are ranked.
    fn pre_score(&self) -> Option<&dyn PreScore> {
        None
    }
    /// Ranks nodes one by one.
    fn score(&self) -> Option<&dyn Score> {
        None
    }
    /// Hears where the pod goes.
    fn reserve(&self) -> Option<&dyn Reserve> {
        None
    }
    /// Lets the pod go there, or wait.
    fn permit(&self) -> Option<&dyn Permit> {
        None
    }
    /// Has something to do before the binding.
    fn pre_bind(&self) -> Option<&dyn PreBind> {
        None
    }
    /// Says who binds.
    fn bind(&self) -> Option<&dyn Bind> {
        None
    }
    /// Hears of the binding.
    fn post_bind(&self) -> Option<&dyn PostBind> {
        None
    }
}

/// Whether a pod may be tried.
pub trait PreEnqueue {
    /// `Err`: why the pod is held back.
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), String>;
}

/// The order of pods that are ready.
pub trait QueueSort {
    /// Smaller goes first; equal ones in the order of their arrival.
    fn key(&self, pod: &PodInfo, since: Duration) -> (i64, Duration);
}

/// What a rule found out about a pod before any node was looked at.
#[derive(Debug, Default)]
pub struct PreFiltered {
    /// Only these nodes, by name, can take the pod.
    pub nodes: Option<Vec<String>>,
    /// The rule's state, if it looks at several nodes.
    pub state: Option<Box<dyn FilterState>>,
}

/// Prepares a rule for pods like this one.
pub trait PreFilter {
    /// `Err`: the pod can run nowhere.
    fn pre_filter(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Result<PreFiltered, Rejection>;
}

/// A rule that a node must pass and that looks at nothing else.
pub trait Filter {
    /// Whether the rule says anything about this pod; when not, it is skipped for every node.
    fn applies(&self, _pod: &PodInfo) -> bool {
        true
    }

    /// Whether the node may take the pod.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;
}

/// What counting a node again meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recount {
    /// The facets of nodes that did not change stand.
    Kept,
    /// Every node's facets have to be asked for anew.
    Reshaped,
}

/// What a filter rule knows about the cluster on behalf of equal pods.
pub trait FilterState: fmt::Debug + Send {
    /// Counts a node, again if it was counted before: its pods or its object changed.
    fn recount(&mut self, at: usize, node: &NodeInfo, cluster: Snapshot<'_>) -> Recount;

    /// Appends the node's facets, always as many.
    fn facets(&self, at: usize, node: &NodeInfo, facets: &mut Vec<i64>);

    /// Whether nodes with these facets may take the pod.
    fn filter(&self, facets: &[i64]) -> Result<(), Rejection>;
}

/// Nodes that passed every filter and that the state cannot tell apart.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// What they have in common.
    pub facets: &'a [i64],
    /// How many they are.
    pub nodes: usize,
}

/// Prepares a ranking rule for pods like this one.
pub trait PreScore {
    /// `None`: the rule says nothing about this pod.
    fn pre_score(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Option<Box<dyn ScoreState>>;
}

/// What a ranking rule knows about the cluster on behalf of equal pods.
pub trait ScoreState: fmt::Debug + Send {
    /// Counts a node, again if it was counted before.
    fn recount(&mut self, _at: usize, _node: &NodeInfo, _cluster: Snapshot<'_>) -> Recount {
        Recount::Kept
    }

    /// Appends the node's facets, always as many.
    fn facets(&self, at: usize, node: &NodeInfo, facets: &mut Vec<i64>);

    /// Fills in one score per group, brought into `0..=SCORE_MAX` over all of them.
    fn score(&self, groups: &[Group<'_>], scores: &mut [i64]);
}

/// A rule that ranks a node and looks at nothing else.
pub trait Score {
    /// Whether the rule says anything about this pod; when not, it is skipped for every node.
    fn applies(&self, _pod: &PodInfo) -> bool {
        true
    }

    /// How good the node is, `0..=SCORE_MAX`.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64;
}

/// What is done about a pod that fits nowhere.
pub trait PostFilter {
    /// How pods may be displaced for it.
    fn preemption(&self) -> PreemptionArgs;
}

/// How candidates for displacing pods are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreemptionArgs {
    /// Share of the nodes, in percent, among which candidates are looked for at least.
    pub candidates_percent_min: usize,
    /// As many candidates are looked for at least.
    pub candidates_min: usize,
}

/// Hears where a pod goes while that is not final.
pub trait Reserve {
    /// `Err`: the pod does not go there.
    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), Reason>;
    /// It does not go there after all. May be called without a reservation.
    fn unreserve(&self, pod: &PodInfo, node: &str);
}

/// Whether a pod goes where it is to go now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// It does.
    Allow,
    /// Not before somebody allows it, and not at all after this time.
    Wait(Duration),
    /// It does not.
    Reject(Reason),
}

/// Lets pods go, or wait.
pub trait Permit {
    /// Asked once all filters have passed and the node is reserved.
    fn permit(&self, pod: &PodInfo, node: &str) -> Permission;
}

/// Something that has to be right before the binding is stored.
pub trait PreBind {
    /// `Err`: the pod is not bound.
    fn pre_bind(&self, pod: &PodInfo, node: &str) -> Result<(), Reason>;
}

/// Who stores the binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binder {
    /// The scheduler's shell.
    Store,
    /// The next plugin at this point is asked.
    Skip,
}

/// Says who stores the binding.
pub trait Bind {
    /// Asked in order until one does not skip.
    fn bind(&self, pod: &PodInfo, node: &str) -> Binder;
}

/// Hears of stored bindings.
pub trait PostBind {
    /// The binding is stored.
    fn post_bind(&self, pod: &PodInfo, node: &str);
}

/// Scales scores so that the highest becomes [`SCORE_MAX`]; `reverse` turns more into less.
pub(crate) fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * SCORE_MAX / max };
        *score = if reverse { SCORE_MAX - scaled } else { scaled };
    }
}
