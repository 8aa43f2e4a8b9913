//! PodTopologySpread: pods that belong together are spread evenly over zones, nodes or other domains.

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;

use super::node_affinity::own_rules_match;
use super::taint_toleration::untolerated;
use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{
    FilterState, Group, Plugin, PreFilter, PreFiltered, PreScore, Reason, Recount, Rejection, SCORE_MAX,
    ScoreState,
};
use crate::labels::PodSelector;
use crate::node_info::NodeInfo;
use crate::pod_class::SpreadConstraint;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::topology::{Domains, NO_DOMAIN, Picker};

/// What default constraints are when the configuration leaves that to the system: topology key, skew.
const SYSTEM_DEFAULTS: [(&str, i64); 2] = [("topology.kubernetes.io/zone", 3), ("kubernetes.io/hostname", 5)];

/// Arguments of PodTopologySpread.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodTopologySpreadArgs {
    default_constraints: Vec<core::TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

/// Rejects nodes whose domain has too many matching pods already; prefers those whose domains have few.
#[derive(Debug, Clone)]
pub struct PodTopologySpread {
    /// For pods that have no constraints: topology key, skew, whether it decides.
    defaults: Vec<(String, i64, bool)>,
    /// Whether nodes without one of the keys still count: so it is with the system's defaults.
    lenient: bool,
}

impl PodTopologySpread {
    /// The plugin with these arguments.
    pub fn new(args: PodTopologySpreadArgs) -> Result<Self, String> {
        let lenient = match args.defaulting_type.as_deref() {
            None | Some("" | "System") if args.default_constraints.is_empty() => true,
            None | Some("" | "List") => false,
            Some("System") => return Err("defaultConstraints belong to defaultingType List".to_owned()),
            Some(other) => return Err(format!("defaultingType {other:?} is neither System nor List")),
        };
        let mut defaults = Vec::new();
        for constraint in args.default_constraints {
            if constraint.label_selector.is_some() {
                return Err("defaultConstraints: labelSelector must not be set; it follows from the pod's \
                            owner"
                    .to_owned());
            }
            if constraint.max_skew < 1 || constraint.topology_key.is_empty() {
                return Err("defaultConstraints: maxSkew must be at least 1 and topologyKey set".to_owned());
            }
            let hard = match constraint.when_unsatisfiable.as_str() {
                "DoNotSchedule" => true,
                "ScheduleAnyway" => false,
                other => return Err(format!("defaultConstraints: whenUnsatisfiable {other:?}")),
            };
            defaults.push((constraint.topology_key, i64::from(constraint.max_skew), hard));
        }
        if lenient {
            defaults = SYSTEM_DEFAULTS.map(|(key, skew)| (key.to_owned(), skew, false)).into();
        }
        Ok(Self { defaults, lenient })
    }

    /// The constraints of a kind that hold for the pod.
    fn constraints(&self, pod: &PodInfo, hard: bool) -> Vec<SpreadConstraint> {
        let own = &pod.class.spread;
        if !own.is_empty() {
            return own.iter().filter(|constraint| constraint.hard == hard).cloned().collect();
        }
        let Some(selector) = &pod.class.owner_selector else { return Vec::new() };
        let defaults = self.defaults.iter().filter(|(_, _, is_hard)| *is_hard == hard);
        let constraint = |(key, max_skew, hard): &(String, i64, bool)| SpreadConstraint {
            max_skew: *max_skew,
            topology_key: key.clone(),
            hard: *hard,
            selector: selector.clone(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        defaults.map(constraint).collect()
    }
}

/// One constraint with what it counts.
#[derive(Debug)]
struct Counted {
    constraint: SpreadConstraint,
    picker: Picker,
    domains: Domains,
    /// 1 when the pod itself is one of those that count.
    own: i64,
}

fn counted(pod: &PodInfo, cluster: Snapshot<'_>, constraints: Vec<SpreadConstraint>) -> Vec<Counted> {
    let with_domains = |constraint: SpreadConstraint| {
        let selector = PodSelector::within(&pod.namespace, constraint.selector.clone());
        let picker = Picker::new(vec![selector]);
        let own = i64::from(picker.picks_unseen(&pod.labels, cluster.namespaces()));
        Counted { domains: Domains::new(&constraint.topology_key, cluster), picker, own, constraint }
    };
    constraints.into_iter().map(with_domains).collect()
}

impl Counted {
    /// How many pods of the node count; `None`: the node makes no domain.
    fn on(&mut self, pod: &PodInfo, node: &NodeInfo, cluster: Snapshot<'_>) -> Option<i64> {
        if self.constraint.honor_affinity && !own_rules_match(&pod.class, node) {
            return None;
        }
        if self.constraint.honor_taints && untolerated(pod, &node.object.hard_taints).is_some() {
            return None;
        }
        let mut sum = 0;
        for count in &node.label_counts {
            if self.picker.picks(&count.labels, cluster.namespaces()) {
                sum += count.pods - count.terminating;
            }
        }
        Some(sum)
    }
}

/// Counts a node for all constraints; only nodes with all their keys take part, unless `lenient`.
fn recount(
    all: &mut [Counted],
    pod: &PodInfo,
    at: usize,
    node: &NodeInfo,
    cluster: Snapshot<'_>,
    lenient: bool,
) {
    let takes_part = lenient || all.iter().all(|counted| counted.domains.has(at));
    for counted in all {
        let amount = if takes_part { counted.on(pod, node, cluster) } else { None };
        counted.domains.set(at, amount);
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn helped_by(&self) -> &'static [Change] {
        use Change::{NodeLabels, NodeRemoved, NodeTaints, PodAdded, PodLabels, PodRemoved};
        &[PodAdded, PodRemoved, PodLabels, NodeLabels, NodeTaints, NodeRemoved]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        let Some(other) = event.pod else { return true };
        let hard = self.constraints(pod, true);
        other.namespace == pod.namespace
            && (event.change == Change::PodLabels
                || hard.iter().any(|constraint| constraint.selector.matches(&other.labels.labels)))
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreFilter for PodTopologySpread {
    fn pre_filter(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Result<PreFiltered, Rejection> {
        let constraints = self.constraints(pod, true);
        if constraints.is_empty() {
            return Ok(PreFiltered::default());
        }
        let state = Hard { pod: pod.clone(), counted: counted(pod, cluster, constraints) };
        Ok(PreFiltered { nodes: None, state: Some(Box::new(state)) })
    }
}

#[derive(Debug)]
struct Hard {
    pod: PodInfo,
    counted: Vec<Counted>,
}

impl FilterState for Hard {
    fn recount(&mut self, at: usize, node: &NodeInfo, cluster: Snapshot<'_>) -> Recount {
        recount(&mut self.counted, &self.pod, at, node, cluster, false);
        Recount::Kept
    }

    fn facets(&self, at: usize, _node: &NodeInfo, facets: &mut Vec<i64>) {
        facets.extend(self.counted.iter().map(|counted| counted.domains.facet(at)));
    }

    fn filter(&self, facets: &[i64]) -> Result<(), Rejection> {
        for (counted, facet) in self.counted.iter().zip(facets) {
            if *facet == NO_DOMAIN {
                let text = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::unresolvable(Reason::Text(text)));
            }
            let Counted { constraint, domains, own, .. } = counted;
            let is_short = i64::try_from(domains.count()).is_ok_and(|count| count < constraint.min_domains);
            let min = if is_short { 0 } else { domains.min().unwrap_or(i64::from(i32::MAX)) };
            if domains.sum(*facet) + own - min > constraint.max_skew {
                let text = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::resolvable(Reason::Text(text)));
            }
        }
        Ok(())
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Option<Box<dyn ScoreState>> {
        let constraints = self.constraints(pod, false);
        if constraints.is_empty() {
            return None;
        }
        let lenient = self.lenient && pod.class.spread.is_empty();
        Some(Box::new(Soft { pod: pod.clone(), counted: counted(pod, cluster, constraints), lenient }))
    }
}

#[derive(Debug)]
struct Soft {
    pod: PodInfo,
    counted: Vec<Counted>,
    lenient: bool,
}

impl Soft {
    /// Nodes that lack a key are out of the comparison.
    fn is_out(&self, group: &Group<'_>) -> bool {
        !self.lenient && group.facets.contains(&NO_DOMAIN)
    }

    /// How many domains the nodes in comparison make, for one constraint.
    fn size(&self, which: usize, groups: &[Group<'_>]) -> usize {
        let inside = groups.iter().filter(|group| !self.is_out(group));
        if self.counted[which].domains.is_single() {
            return inside.filter(|group| group.facets[which] != NO_DOMAIN).map(|group| group.nodes).sum();
        }
        let mut seen: Vec<i64> =
            inside.map(|group| group.facets[which]).filter(|facet| *facet != NO_DOMAIN).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len()
    }
}

impl ScoreState for Soft {
    fn recount(&mut self, at: usize, node: &NodeInfo, cluster: Snapshot<'_>) -> Recount {
        recount(&mut self.counted, &self.pod, at, node, cluster, self.lenient);
        Recount::Kept
    }

    fn facets(&self, at: usize, _node: &NodeInfo, facets: &mut Vec<i64>) {
        facets.extend(self.counted.iter().map(|counted| counted.domains.facet(at)));
    }

    fn score(&self, groups: &[Group<'_>], scores: &mut [i64]) {
        // The more domains, the less one pod more in one of them says.
        let weights: Vec<f64> =
            (0..self.counted.len()).map(|which| (self.size(which, groups) as f64 + 2.0).ln()).collect();
        let (mut least, mut most) = (i64::MAX, 0);
        for (group, score) in groups.iter().zip(scores.iter_mut()) {
            let mut sum = 0.0;
            for ((counted, weight), facet) in self.counted.iter().zip(&weights).zip(group.facets) {
                if *facet != NO_DOMAIN {
                    let pods = counted.domains.sum(*facet) as f64;
                    sum += pods * weight + (counted.constraint.max_skew - 1) as f64;
                }
            }
            *score = sum.round() as i64;
            if !self.is_out(group) {
                least = least.min(*score);
                most = most.max(*score);
            }
        }
        for (group, score) in groups.iter().zip(scores.iter_mut()) {
            *score = match () {
                () if self.is_out(group) => 0,
                () if most == 0 => SCORE_MAX,
                () => SCORE_MAX * (most + least - *score) / most,
            };
        }
    }
}
