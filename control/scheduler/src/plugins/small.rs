//! NodeUnschedulable, NodeName, DefaultPreemption, DefaultBinder: rules of a few lines.

use serde::Deserialize;

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{Bind, Binder, Filter, Plugin, PostFilter, PreemptionArgs, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::taints::{Effect, Taint};

/// Rejects nodes with `spec.unschedulable`, unless the pod tolerates that.
#[derive(Debug, Clone, Copy)]
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn helped_by(&self) -> &'static [Change] {
        &[Change::NodeTaints]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        event.node.is_none_or(|node| Filter::filter(self, pod, node).is_ok())
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.object.unschedulable {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: Effect::NoSchedule,
        };
        if pod.class.tolerations.iter().any(|toleration| toleration.tolerates(&taint)) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) were unschedulable")))
    }
}

/// Rejects every node but the one in `spec.nodeName`. A pod that has one is bound already and comes to no
/// scheduler; the rule is here because profiles name it.
#[derive(Debug, Clone, Copy)]
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }
}

impl Filter for NodeName {
    fn applies(&self, pod: &PodInfo) -> bool {
        pod.node_name.is_some()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.node_name.as_ref().is_none_or(|name| name == node.name()) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) didn't match the requested node name")))
    }
}

/// Arguments of DefaultPreemption.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DefaultPreemptionArgs {
    min_candidate_nodes_percentage: usize,
    min_candidate_nodes_absolute: usize,
}

impl Default for DefaultPreemptionArgs {
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

/// Makes room for a pod that fits nowhere by displacing pods of lower priority (see `preemption`).
#[derive(Debug, Clone, Copy)]
pub struct DefaultPreemption {
    args: PreemptionArgs,
}

impl DefaultPreemption {
    /// The plugin with these arguments.
    pub fn new(args: DefaultPreemptionArgs) -> Result<Self, String> {
        let (percent, absolute) = (args.min_candidate_nodes_percentage, args.min_candidate_nodes_absolute);
        if percent > 100 {
            return Err(format!("minCandidateNodesPercentage: {percent} is not in 0 to 100"));
        }
        if percent == 0 && absolute == 0 {
            let both = "minCandidateNodesPercentage and minCandidateNodesAbsolute";
            return Err(format!("{both} cannot both be 0"));
        }
        Ok(Self { args: PreemptionArgs { candidates_percent_min: percent, candidates_min: absolute } })
    }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn post_filter(&self) -> Option<&dyn PostFilter> {
        Some(self)
    }
}

impl PostFilter for DefaultPreemption {
    fn preemption(&self) -> PreemptionArgs {
        self.args
    }
}

/// Leaves the binding to the scheduler's shell.
#[derive(Debug, Clone, Copy)]
pub struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn bind(&self) -> Option<&dyn Bind> {
        Some(self)
    }
}

impl Bind for DefaultBinder {
    fn bind(&self, _pod: &PodInfo, _node: &str) -> Binder {
        Binder::Store
    }
}
