//! NodeAffinity: `nodeSelector` and required node affinity decide; preferred node affinity ranks.

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{
    Filter, Group, Plugin, PreFilter, PreFiltered, PreScore, Reason, Rejection, ScoreState, normalize_by_max,
};
use crate::node_info::NodeInfo;
use crate::pod_class::{PodClass, read_node_affinity};
use crate::pod_info::PodInfo;
use crate::selector::NodeTerm;
use crate::snapshot::Snapshot;

/// Arguments of NodeAffinity.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeAffinityArgs {
    added_affinity: Option<core::NodeAffinity>,
}

/// Rejects nodes that the pod's selector or required terms do not match; prefers those whose matching
/// preferred terms weigh most.
#[derive(Debug, Clone, Default)]
pub struct NodeAffinity {
    added_required: Option<Vec<NodeTerm>>,
    added_preferred: Vec<(i64, NodeTerm)>,
}

impl NodeAffinity {
    /// The plugin with these arguments.
    pub fn new(args: NodeAffinityArgs) -> Result<Self, String> {
        let Some(added) = args.added_affinity else { return Ok(Self::default()) };
        let (added_required, added_preferred) =
            read_node_affinity(&added).map_err(|error| format!("addedAffinity: {error}"))?;
        Ok(Self { added_required, added_preferred })
    }
}

fn any_matches(terms: Option<&Vec<NodeTerm>>, node: &NodeInfo) -> bool {
    let object = &node.object;
    terms.is_none_or(|terms| terms.iter().any(|term| term.matches(&object.name, &object.labels)))
}

/// Whether the pod's own selector and required terms match the node.
pub(super) fn own_rules_match(class: &PodClass, node: &NodeInfo) -> bool {
    let labels = &node.object.labels;
    class.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && any_matches(class.required_terms.as_ref(), node)
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn helped_by(&self) -> &'static [Change] {
        &[Change::NodeLabels]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        event.node.is_none_or(|node| Filter::filter(self, pod, node).is_ok())
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreFilter for NodeAffinity {
    /// A pod whose every term names nodes needs no look at the others: daemons are such pods.
    fn pre_filter(&self, pod: &PodInfo, _cluster: Snapshot<'_>) -> Result<PreFiltered, Rejection> {
        let Some(terms) = pod.class.required_terms.as_ref().filter(|terms| !terms.is_empty()) else {
            return Ok(PreFiltered::default());
        };
        let named: Option<Vec<&[String]>> = terms.iter().map(NodeTerm::named_nodes).collect();
        let nodes = named.map(|named| {
            let mut names: Vec<String> = named.into_iter().flatten().cloned().collect();
            names.sort_unstable();
            names.dedup();
            names
        });
        Ok(PreFiltered { nodes, state: None })
    }
}

impl Filter for NodeAffinity {
    fn applies(&self, pod: &PodInfo) -> bool {
        let class = &pod.class;
        !class.node_selector.is_empty() || class.required_terms.is_some() || self.added_required.is_some()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !any_matches(self.added_required.as_ref(), node) {
            let text = "node(s) didn't match scheduler-enforced node affinity";
            return Err(Rejection::unresolvable(Reason::Text(text)));
        }
        if own_rules_match(&pod.class, node) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) didn't match Pod's node affinity/selector")))
    }
}

impl PreScore for NodeAffinity {
    fn pre_score(&self, pod: &PodInfo, _cluster: Snapshot<'_>) -> Option<Box<dyn ScoreState>> {
        let terms: Vec<_> = pod.class.preferred_terms.iter().chain(&self.added_preferred).cloned().collect();
        if terms.is_empty() { None } else { Some(Box::new(Preferred { terms })) }
    }
}

#[derive(Debug)]
struct Preferred {
    terms: Vec<(i64, NodeTerm)>,
}

impl ScoreState for Preferred {
    fn facets(&self, _at: usize, node: &NodeInfo, facets: &mut Vec<i64>) {
        let object = &node.object;
        let matching = self.terms.iter().filter(|(_, term)| term.matches(&object.name, &object.labels));
        facets.push(matching.map(|(weight, _)| weight).sum());
    }

    fn score(&self, groups: &[Group<'_>], scores: &mut [i64]) {
        for (group, score) in groups.iter().zip(scores.iter_mut()) {
            *score = group.facets[0];
        }
        normalize_by_max(scores, false);
    }
}
