//! Which pods of a DaemonSet are made and deleted next. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// A pod on a node, or on its way there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) created: String,
    /// Of which revision it is.
    pub(super) hash: String,
    pub(super) is_new: bool,
    pub(super) is_ready: bool,
    pub(super) is_available: bool,
    pub(super) has_ended: bool,
    pub(super) is_terminating: bool,
}

impl Pod {
    fn is_standing(&self) -> bool {
        !self.has_ended && !self.is_terminating
    }
}

/// A node, as one DaemonSet sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OnNode {
    pub(super) should_run: bool,
    pub(super) should_stay: bool,
    pub(super) pods: Vec<Pod>,
}

impl OnNode {
    /// The pod that counts: the oldest that is ready, else the oldest.
    pub(super) fn oldest(&self) -> Option<&Pod> {
        self.pods.iter().min_by_key(|pod| (!pod.is_ready, pod.created.clone(), pod.name.clone()))
    }
}

/// How many nodes may be without a pod, or with two, during an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) is_on_delete: bool,
    pub(super) unavailable: usize,
    pub(super) surge: usize,
}

impl Limits {
    pub(super) fn of(strategy: &Value, nodes: &BTreeMap<String, OnNode>) -> Self {
        let desired = nodes.values().filter(|node| node.should_run).count();
        let amount = |value: &Value| match value {
            // Rounded up, as for every DaemonSet.
            Value::String(text) => {
                let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
                percent.saturating_mul(desired).div_ceil(100)
            }
            other => other.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0),
        };
        let rolling = &strategy["rollingUpdate"];
        let (unavailable, surge) = (amount(&rolling["maxUnavailable"]), amount(&rolling["maxSurge"]));
        let is_stuck = unavailable == 0 && surge == 0;
        Self {
            is_on_delete: strategy["type"] == "OnDelete",
            unavailable: if is_stuck { 1 } else { unavailable },
            surge,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    /// Pods that go.
    pub(super) delete: Vec<String>,
    /// Pods that ended and go, so that others can take their place.
    pub(super) failed: Vec<String>,
}

/// What to do next.
pub(super) fn plan(nodes: &BTreeMap<String, OnNode>, limits: &Limits) -> Plan {
    let mut plan = Plan::default();
    for (name, node) in nodes {
        if !node.should_run && !node.should_stay {
            plan.delete
                .extend(node.pods.iter().filter(|pod| !pod.is_terminating).map(|pod| pod.name.clone()));
            continue;
        }
        let ended = node.pods.iter().filter(|pod| pod.has_ended && !pod.is_terminating);
        plan.failed.extend(ended.map(|pod| pod.name.clone()));
        if !node.should_run {
            continue;
        }
        // A pod that is being stopped still has its node; what ended is removed first.
        if node.pods.is_empty() {
            plan.create.push(name.clone());
            continue;
        }
        surplus(node, limits, &mut plan);
    }
    if !limits.is_on_delete {
        match limits.surge {
            0 => replace(nodes, limits.unavailable, &mut plan),
            surge => replace_with_surge(nodes, surge, &mut plan),
        }
    }
    plan
}

/// Of several pods on a node one stays; while pods are replaced by surge, an old and a new one may.
fn surplus(node: &OnNode, limits: &Limits, plan: &mut Plan) {
    let mut standing: Vec<&Pod> = node.pods.iter().filter(|pod| pod.is_standing()).collect();
    standing.sort_by_key(|pod| (!pod.is_ready, pod.created.clone(), pod.name.clone()));
    let mut kept_old = false;
    let mut kept_new = false;
    for pod in standing {
        let kept = if limits.surge > 0 && pod.is_new { &mut kept_new } else { &mut kept_old };
        match *kept {
            true => plan.delete.push(pod.name.clone()),
            false => *kept = true,
        }
    }
}

/// Deletes old pods, those that are not available first, while few enough nodes are without.
fn replace(nodes: &BTreeMap<String, OnNode>, unavailable_max: usize, plan: &mut Plan) {
    let mut unavailable = 0;
    let (mut free, mut candidates) = (Vec::new(), Vec::new());
    for node in nodes.values().filter(|node| node.should_run) {
        let standing: Vec<&Pod> = node.pods.iter().filter(|pod| pod.is_standing()).collect();
        let is_available = standing.iter().any(|pod| pod.is_available);
        if !is_available {
            unavailable += 1;
        }
        let old = standing.iter().filter(|pod| !pod.is_new && !plan.delete.contains(&pod.name));
        for pod in old {
            if is_available { candidates.push(pod.name.clone()) } else { free.push(pod.name.clone()) }
        }
    }
    // Whoever does not serve anyway costs nothing.
    plan.delete.extend(free);
    plan.delete.extend(candidates.into_iter().take(unavailable_max.saturating_sub(unavailable)));
}

/// Makes new pods beside old ones, and deletes the old once the new serve.
fn replace_with_surge(nodes: &BTreeMap<String, OnNode>, surge_max: usize, plan: &mut Plan) {
    let (mut surging, mut waiting) = (0, Vec::new());
    for (name, node) in nodes.iter().filter(|(_, node)| node.should_run) {
        let standing: Vec<&Pod> = node.pods.iter().filter(|pod| pod.is_standing()).collect();
        let Some(old) = standing.iter().find(|pod| !pod.is_new) else { continue };
        match standing.iter().find(|pod| pod.is_new) {
            Some(new) if new.is_available => plan.delete.push(old.name.clone()),
            Some(_) => surging += 1,
            None if !old.is_available => plan.delete.push(old.name.clone()),
            None => waiting.push(name.clone()),
        }
    }
    plan.create.extend(waiting.into_iter().take(surge_max.saturating_sub(surging)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, is_new: bool, is_available: bool) -> Pod {
        Pod { name: name.into(), is_new, is_ready: is_available, is_available, ..Pod::default() }
    }

    fn node(pods: Vec<Pod>) -> OnNode {
        OnNode { should_run: true, should_stay: true, pods }
    }

    fn limits(unavailable: usize, surge: usize) -> Limits {
        Limits { is_on_delete: false, unavailable, surge }
    }

    fn nodes(all: Vec<(&str, OnNode)>) -> BTreeMap<String, OnNode> {
        all.into_iter().map(|(name, node)| (name.to_owned(), node)).collect()
    }

    #[test]
    fn each_node_that_fits_gets_one_and_others_lose_theirs() {
        let nodes = nodes(vec![
            ("a", node(vec![])),
            ("b", OnNode { pods: vec![pod("b-1", true, true)], ..OnNode::default() }),
            ("c", node(vec![pod("c-1", true, true), pod("c-2", true, false)])),
            ("d", OnNode { should_stay: true, pods: vec![pod("d-1", true, true)], ..OnNode::default() }),
            ("e", node(vec![Pod { has_ended: true, ..pod("e-1", true, false) }])),
        ]);
        let plan = plan(&nodes, &limits(1, 0));
        assert_eq!(plan.create, ["a"]);
        assert_eq!(plan.delete, ["b-1", "c-2"]);
        assert_eq!(plan.failed, ["e-1"]);
    }

    #[test]
    fn old_pods_go_while_few_are_missing() {
        let all = nodes(vec![
            ("a", node(vec![pod("a", false, true)])),
            ("b", node(vec![pod("b", false, true)])),
            ("c", node(vec![pod("c", true, false)])),
        ]);
        assert_eq!(plan(&all, &limits(1, 0)).delete, Vec::<String>::new());
        assert_eq!(plan(&all, &limits(2, 0)).delete, ["a"]);
        assert_eq!(plan(&all, &Limits { is_on_delete: true, ..limits(3, 0) }).delete, Vec::<String>::new());
        let broken = nodes(vec![("a", node(vec![pod("a", false, false)]))]);
        assert_eq!(plan(&broken, &limits(1, 0)).delete, ["a"], "it does not serve anyway");
    }

    #[test]
    fn with_surge_the_old_stay_until_the_new_serve() {
        let all = nodes(vec![
            ("a", node(vec![pod("a", false, true)])),
            ("b", node(vec![pod("b", false, true), pod("b-new", true, true)])),
            ("c", node(vec![pod("c", false, true)])),
        ]);
        let plan = plan(&all, &limits(0, 1));
        assert_eq!(plan.delete, ["b"]);
        assert_eq!(plan.create, ["a"]);
    }

    #[test]
    fn percentages_are_of_the_nodes_that_fit_and_rounded_up() {
        let all = nodes(vec![("a", node(vec![])), ("b", node(vec![])), ("c", OnNode::default())]);
        let of = |unavailable: Value, surge: Value| {
            let strategy =
                serde_json::json!({"rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}});
            let limits = Limits::of(&strategy, &all);
            (limits.unavailable, limits.surge)
        };
        assert_eq!(of("10%".into(), 0.into()), (1, 0));
        assert_eq!(of(0.into(), "100%".into()), (0, 2));
    }
}
