//! What really ran: `instances`, told as {alive: [{identity, uid, node, pid}], last}; beside what `pods` tell of bindings.
//!
//! *one-instance*: of each identity (a pod's name) one pod at most has processes at a time, whatever becomes of nodes. *runs-where-bound*:
//! a process of a pod runs on the node that the pod is bound to. *nothing-left*: when all was removed, nothing runs.

use std::collections::HashMap;

use serde_json::Value;

use super::{Verdict, pods};
use crate::history::{End, Operation};

/// The name of the property of identities.
pub const ONE_INSTANCE: &str = "one-instance";
/// The name of the property of places.
pub const WHERE_BOUND: &str = "runs-where-bound";
/// The name of the property of the end.
pub const NOTHING_LEFT: &str = "nothing-left";

/// Judges all looks.
pub fn check(operations: &[Operation]) -> Vec<Verdict> {
    let looks: Vec<&Operation> = operations
        .iter()
        .filter(|operation| operation.f == "instances" && operation.end == End::Ok)
        .collect();
    vec![one_instance(&looks), where_bound(&looks, operations), nothing_left(&looks)]
}

fn alive(look: &Operation) -> impl Iterator<Item = &Value> {
    look.told["alive"].as_array().into_iter().flatten()
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn one_instance(looks: &[&Operation]) -> Verdict {
    let mut most = 0;
    for look in looks {
        let mut pods: HashMap<&str, &Value> = HashMap::new();
        for instance in alive(look) {
            let other = pods.entry(word(instance, "identity")).or_insert(instance);
            if word(other, "uid") != word(instance, "uid") {
                let explanation = format!(
                    "{} runs twice at once: pod {} on {} (process {}) and pod {} on {} (process {})",
                    word(instance, "identity"),
                    word(other, "uid"),
                    word(other, "node"),
                    other["pid"],
                    word(instance, "uid"),
                    word(instance, "node"),
                    instance["pid"],
                );
                return Verdict::invalid(ONE_INSTANCE, looks.len(), explanation).showing([*look]);
            }
        }
        most = most.max(pods.len());
    }
    if most == 0 {
        return Verdict::unknown(ONE_INSTANCE, looks.len(), "no pod ever ran");
    }
    Verdict::valid(ONE_INSTANCE, looks.len(), format!("up to {most} pods ran at a time"))
}

fn where_bound(looks: &[&Operation], operations: &[Operation]) -> Verdict {
    let bound: HashMap<&str, &str> = pods::observations(operations)
        .iter()
        .map(|pod| (pod.word("uid"), pod.word("node")))
        .filter(|(_, node)| !node.is_empty())
        .collect();
    let mut checked = 0;
    for look in looks {
        for instance in alive(look) {
            let Some(node) = bound.get(word(instance, "uid")) else { continue };
            checked += 1;
            if *node != word(instance, "node") {
                let explanation = format!(
                    "process {} of pod {} runs on {}, and the pod is bound to {node}",
                    instance["pid"],
                    word(instance, "uid"),
                    word(instance, "node"),
                );
                return Verdict::invalid(WHERE_BOUND, checked, explanation).showing([*look]);
            }
        }
    }
    if checked == 0 {
        return Verdict::unknown(WHERE_BOUND, 0, "no process of a pod that was told of was seen");
    }
    Verdict::valid(WHERE_BOUND, checked, "every process was where its pod was bound")
}

fn nothing_left(looks: &[&Operation]) -> Verdict {
    let Some(last) = looks.iter().find(|look| look.told["last"] == true) else {
        return Verdict::unknown(NOTHING_LEFT, 0, "nobody looked at the end");
    };
    let left: Vec<String> =
        alive(last).map(|one| format!("{} (process {})", word(one, "identity"), one["pid"])).collect();
    if left.is_empty() {
        return Verdict::valid(NOTHING_LEFT, 1, "after all pods were gone no process of theirs was there");
    }
    let explanation = format!("pods are gone and run on: {}", left.join(", "));
    Verdict::invalid(NOTHING_LEFT, left.len(), explanation).showing([*last])
}
