//! Nodes that clients make get no pods before a controller has found them ready (`TaintNodesByCondition`). Our own
//! agents' nodes come with the taints that their conditions ask for.

use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

/// Adds the taint to a new node that lacks it.
pub(in crate::registry) fn admit(node: &mut Value) {
    let Some(spec) = node.as_object_mut().map(|node| node.entry("spec").or_insert(json!({}))) else { return };
    let Some(spec) = spec.as_object_mut() else { return };
    let taints = spec.entry("taints").or_insert(json!([]));
    if taints.is_null() {
        *taints = json!([]);
    }
    if let Some(taints) = taints.as_array_mut()
        && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == EFFECT)
    {
        taints.push(json!({"key": NOT_READY, "effect": EFFECT}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_has_the_taint_once() {
        let mut node = json!({"metadata": {"name": "n"}});
        admit(&mut node);
        admit(&mut node);
        assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": EFFECT}]));
        let mut node = json!({"spec": {"taints": [{"key": "own", "effect": EFFECT}]}});
        admit(&mut node);
        assert_eq!(node["spec"]["taints"].as_array().map(Vec::len), Some(2));
    }
}
