//! The framework: what a rule is, and which rules stand in which order with which weight.

use std::borrow::Cow;
use std::fmt;

use crate::cluster_event::ClusterEvent;
use crate::node_info::NodeInfo;
use crate::plugins;
use crate::pod_info::PodInfo;

/// The best score that a rule may give a node.
pub const SCORE_MAX: i64 = 100;

/// Most filters that a framework holds: one bit each in the queue's note of who rejected a pod.
const FILTERS_MAX: usize = 32;

/// Why a node does not take a pod, in the words that users know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A fixed text.
    Text(&'static str),
    /// Too little of a resource is free.
    Insufficient(Cow<'static, str>),
    /// What is wrong with the pod's volumes, on whichever node.
    Volumes(String),
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
            Self::Volumes(problem) => f.write_str(problem),
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

/// A rule that a node must pass.
pub trait Filter: fmt::Debug + Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &'static str;

    /// Whether the rule says anything about this pod; when not, it is skipped for every node.
    fn applies(&self, _pod: &PodInfo) -> bool {
        true
    }

    /// Whether the node may take the pod.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;

    /// The events that can lift a rejection of this rule, beside [`ClusterEvent::NodeAdded`], which is
    /// always one.
    fn helped_by(&self) -> &'static [ClusterEvent];
}

/// A rule that ranks the nodes that passed.
pub trait Score: fmt::Debug + Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &'static str;

    /// Whether the rule says anything about this pod; when not, it is skipped for every node.
    fn applies(&self, _pod: &PodInfo) -> bool {
        true
    }

    /// How good the node is, before [`Score::normalize`].
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Brings the scores of all nodes into `0..=SCORE_MAX`.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// The rules of one profile.
#[derive(Debug)]
pub struct Framework {
    filters: Vec<Box<dyn Filter>>,
    scores: Vec<(Box<dyn Score>, i64)>,
    /// By event: which filters' rejections it can lift, as a bit set.
    helped_by: [u32; ClusterEvent::ALL.len()],
}

impl Framework {
    /// A framework of these rules, in this order; each score with its weight.
    ///
    /// # Panics
    /// With more than 32 filters.
    pub fn new(filters: Vec<Box<dyn Filter>>, scores: Vec<(Box<dyn Score>, i64)>) -> Self {
        assert!(filters.len() <= FILTERS_MAX, "a framework holds at most {FILTERS_MAX} filters");
        let mut helped_by = [0; ClusterEvent::ALL.len()];
        helped_by[ClusterEvent::NodeAdded.index()] = u32::MAX;
        for (at, filter) in filters.iter().enumerate() {
            for event in filter.helped_by() {
                helped_by[event.index()] |= 1 << at;
            }
        }
        Self { filters, scores, helped_by }
    }

    /// The default profile: Kubernetes' order of filters and weights of scores.
    pub fn default_profile() -> Self {
        Self::new(
            vec![
                Box::new(plugins::NodeUnschedulable),
                Box::new(plugins::NodeName),
                Box::new(plugins::TaintToleration),
                Box::new(plugins::NodeAffinity),
                Box::new(plugins::NodePorts),
                Box::new(plugins::NodeResourcesFit),
                Box::new(plugins::VolumeBinding),
            ],
            vec![
                (Box::new(plugins::TaintToleration), 3),
                (Box::new(plugins::NodeAffinity), 2),
                (Box::new(plugins::NodeResourcesFit), 1),
                (Box::new(plugins::NodeResourcesBalancedAllocation), 1),
            ],
        )
    }

    /// The filters, in order.
    pub fn filters(&self) -> &[Box<dyn Filter>] {
        &self.filters
    }

    /// The scores with their weights.
    pub fn scores(&self) -> &[(Box<dyn Score>, i64)] {
        &self.scores
    }

    /// The filters whose rejections an event can lift, as a bit set over [`Self::filters`].
    pub fn helped_by(&self, event: ClusterEvent) -> u32 {
        self.helped_by[event.index()]
    }
}

/// Scales scores so that the highest becomes [`SCORE_MAX`]; `reverse` turns more into less.
pub(crate) fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * SCORE_MAX / max };
        *score = if reverse { SCORE_MAX - scaled } else { scaled };
    }
}
