//! NodeResourcesFit: requests must fit into what is free; which of the nodes that fit is better says the
//! scoring strategy: the emptier (LeastAllocated), the fuller (MostAllocated), or as a curve says
//! (RequestedToCapacityRatio).

use std::borrow::Cow;

use serde::Deserialize;

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{Filter, Plugin, Reason, Rejection, SCORE_MAX, Score};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The scores of a curve in a configuration reach from 0 to this.
const SHAPE_SCORE_MAX: i64 = 10;

/// A resource with its weight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ResourceWeight {
    pub(super) name: String,
    #[serde(default)]
    pub(super) weight: i64,
}

/// CPU and memory, equally.
pub(super) fn default_resources() -> Vec<ResourceWeight> {
    ["cpu", "memory"].map(|name| ResourceWeight { name: name.to_owned(), weight: 1 }).into()
}

/// Checks weights; a missing one is 1.
pub(super) fn checked(resources: Vec<ResourceWeight>) -> Result<Vec<ResourceWeight>, String> {
    if resources.is_empty() {
        return Ok(default_resources());
    }
    let check = |mut resource: ResourceWeight| {
        if resource.weight == 0 {
            resource.weight = 1;
        }
        if !(1..=100).contains(&resource.weight) {
            return Err(format!("weight {} of {} is not in 1 to 100", resource.weight, resource.name));
        }
        Ok(resource)
    };
    resources.into_iter().map(check).collect()
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct StrategyArgs {
    #[serde(rename = "type")]
    kind: String,
    resources: Vec<ResourceWeight>,
    requested_to_capacity_ratio: Option<RatioArgs>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RatioArgs {
    shape: Vec<ShapePoint>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ShapePoint {
    utilization: i64,
    score: i64,
}

/// Arguments of NodeResourcesFit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesFitArgs {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<StrategyArgs>,
}

#[derive(Debug, Clone)]
enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Utilization in percent → score.
    Ratio(Vec<(i64, i64)>),
}

/// Rejects nodes with too little left of a requested resource, or with no place for one more pod; ranks
/// the others by its strategy.
#[derive(Debug, Clone)]
pub struct NodeResourcesFit {
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
    strategy: Strategy,
    resources: Vec<ResourceWeight>,
}

impl NodeResourcesFit {
    /// The plugin with these arguments.
    pub fn new(args: NodeResourcesFitArgs) -> Result<Self, String> {
        let scoring = args.scoring_strategy.unwrap_or_default();
        let strategy = match (scoring.kind.as_str(), &scoring.requested_to_capacity_ratio) {
            ("" | "LeastAllocated", None) => Strategy::LeastAllocated,
            ("MostAllocated", None) => Strategy::MostAllocated,
            ("RequestedToCapacityRatio", Some(ratio)) => Strategy::Ratio(curve(&ratio.shape)?),
            ("RequestedToCapacityRatio", None) => {
                return Err("RequestedToCapacityRatio needs requestedToCapacityRatio.shape".to_owned());
            }
            ("" | "LeastAllocated" | "MostAllocated", Some(_)) => {
                let reason = "requestedToCapacityRatio belongs to the type RequestedToCapacityRatio";
                return Err(reason.to_owned());
            }
            (other, _) => {
                let known = "LeastAllocated, MostAllocated, RequestedToCapacityRatio";
                return Err(format!("scoringStrategy.type {other:?} is none of {known}"));
            }
        };
        Ok(Self {
            ignored: args.ignored_resources,
            ignored_groups: args.ignored_resource_groups,
            strategy,
            resources: checked(scoring.resources).map_err(|why| format!("scoringStrategy: {why}"))?,
        })
    }

    fn ignores(&self, name: &str) -> bool {
        let group = name.split_once('/').map(|(group, _)| group);
        self.ignored.iter().any(|ignored| ignored == name)
            || group.is_some_and(|group| self.ignored_groups.iter().any(|ignored| ignored == group))
    }

    fn rate(&self, wanted: i64, capacity: i64) -> i64 {
        match &self.strategy {
            Strategy::LeastAllocated if wanted > capacity => 0,
            Strategy::LeastAllocated => (capacity - wanted) * SCORE_MAX / capacity,
            Strategy::MostAllocated => wanted.min(capacity) * SCORE_MAX / capacity,
            Strategy::Ratio(curve) if wanted > capacity => on_curve(curve, SCORE_MAX),
            Strategy::Ratio(curve) => on_curve(curve, wanted * SCORE_MAX / capacity),
        }
    }
}

fn curve(shape: &[ShapePoint]) -> Result<Vec<(i64, i64)>, String> {
    if shape.is_empty() {
        return Err("requestedToCapacityRatio.shape: at least one point must be specified".to_owned());
    }
    for pair in shape.windows(2) {
        if pair[1].utilization <= pair[0].utilization {
            return Err("requestedToCapacityRatio.shape: utilization must be increasing".to_owned());
        }
    }
    let within = |point: &ShapePoint| {
        (0..=100).contains(&point.utilization) && (0..=SHAPE_SCORE_MAX).contains(&point.score)
    };
    if !shape.iter().all(within) {
        return Err("requestedToCapacityRatio.shape: utilization is 0 to 100, score 0 to 10".to_owned());
    }
    Ok(shape.iter().map(|point| (point.utilization, point.score * SCORE_MAX / SHAPE_SCORE_MAX)).collect())
}

/// The value of a line through points, level before the first and after the last.
fn on_curve(points: &[(i64, i64)], at: i64) -> i64 {
    let Some(next) = points.iter().position(|(x, _)| at <= *x) else {
        return points.last().map_or(0, |(_, y)| *y);
    };
    let (x1, y1) = points[next];
    match next.checked_sub(1).map(|before| points[before]) {
        None => y1,
        Some((x0, y0)) => y0 + (y1 - y0) * (at - x0) / (x1 - x0),
    }
}

/// What is missing on one node. Allocates only when something is.
#[derive(Default)]
struct Shortage {
    reasons: Vec<Reason>,
    larger_than_node: bool,
}

impl Shortage {
    fn check(&mut self, name: Cow<'static, str>, requested: i64, taken: i64, allocatable: i64) {
        if requested > 0 && requested > allocatable - taken {
            self.reasons.push(Reason::Insufficient(name));
            self.larger_than_node |= requested > allocatable;
        }
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn helped_by(&self) -> &'static [Change] {
        &[Change::PodRemoved, Change::NodeAllocatable]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        event.node.is_none_or(|node| Filter::filter(self, pod, node).is_ok())
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }

    fn score(&self) -> Option<&dyn Score> {
        Some(self)
    }
}

impl Filter for NodeResourcesFit {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let (wanted, taken, has) = (&pod.class.requests, &node.requested, &node.object.allocatable);
        let mut shortage = Shortage::default();
        if taken.pods + 1 > has.pods {
            shortage.reasons.push(Reason::Text("Too many pods"));
        }
        shortage.check("cpu".into(), wanted.milli_cpu, taken.milli_cpu, has.milli_cpu);
        shortage.check("memory".into(), wanted.memory, taken.memory, has.memory);
        let (storage, of_node) = (taken.ephemeral_storage, has.ephemeral_storage);
        shortage.check("ephemeral-storage".into(), wanted.ephemeral_storage, storage, of_node);
        for (name, amount) in wanted.others().iter().filter(|(name, _)| !self.ignores(name)) {
            let (taken, has) = (taken.other(name), has.other(name));
            if *amount > has - taken {
                shortage.check(Cow::Owned(name.to_string()), *amount, taken, has);
            }
        }
        if shortage.reasons.is_empty() {
            return Ok(());
        }
        Err(Rejection { reasons: shortage.reasons, resolvable: !shortage.larger_than_node })
    }
}

/// What the pod asks of a resource, what would then be taken on the node, and what it has. Containers
/// without requests count with a default, unless `exact`.
pub(super) fn usage(pod: &PodInfo, node: &NodeInfo, name: &str, exact: bool) -> (i64, i64, i64) {
    let class = &pod.class;
    let (own, taken) = match (name, exact) {
        ("cpu", false) => (class.scored.milli_cpu, node.scored.milli_cpu),
        ("memory", false) => (class.scored.memory, node.scored.memory),
        _ => (class.requests.amount(name), node.requested.amount(name)),
    };
    (own, taken.saturating_add(own), node.object.allocatable.amount(name))
}

/// Resources that only some pods name say nothing about a pod that does not.
pub(super) fn is_common(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

impl Score for NodeResourcesFit {
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for ResourceWeight { name, weight } in &self.resources {
            let (own, wanted, capacity) = usage(pod, node, name, false);
            if capacity <= 0 || (own == 0 && !is_common(name)) {
                continue;
            }
            let score = self.rate(wanted, capacity);
            // On a curve, a resource that rates nothing does not pull the others down.
            if score > 0 || !matches!(self.strategy, Strategy::Ratio(_)) {
                sum += score * weight;
                weights += weight;
            }
        }
        match (weights, &self.strategy) {
            (0, _) => 0,
            (_, Strategy::Ratio(_)) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_level_outside_and_straight_between_its_points() {
        let points = [(20, 0), (60, 80), (80, 100)];
        for (at, expected) in [(0, 0), (20, 0), (40, 40), (60, 80), (70, 90), (100, 100)] {
            assert_eq!(on_curve(&points, at), expected, "at {at}");
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        for (text, expected) in [
            (r#"{"scoringStrategy": {"type": "Best"}}"#, "is none of"),
            (r#"{"scoringStrategy": {"type": "RequestedToCapacityRatio"}}"#, "needs"),
            (r#"{"scoringStrategy": {"resources": [{"name": "cpu", "weight": 900}]}}"#, "1 to 100"),
            (r#"{"scoringStrategy": {"type": "MostAllocated", "requestedToCapacityRatio": {}}}"#, "belongs"),
        ] {
            let args = serde_json::from_str(text).expect("the form is right");
            let refused = NodeResourcesFit::new(args).expect_err(text);
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }
}
