//! Pods: `pods`, told as a list of observations {uid, name, node, cpu, revision, gone}, and of nodes {node, capacity}.
//!
//! Two properties. *one-binding*: a pod that has a node never has another. *capacity*: what is bound to a node, by
//! what each observed revision tells, never exceeds what it can hold (millicores).

use std::collections::HashMap;

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The name of the property of bindings.
pub const ONE_BINDING: &str = "one-binding";
/// The name of the property of nodes.
pub const CAPACITY: &str = "capacity";

struct Observation<'a> {
    revision: u64,
    value: &'a Value,
    told: &'a Operation,
}

/// Judges all observations.
pub fn check(operations: &[Operation]) -> Vec<Verdict> {
    let mut seen: Vec<Observation<'_>> = Vec::new();
    let mut capacity: HashMap<&str, i64> = HashMap::new();
    for told in operations.iter().filter(|operation| operation.f == "pods" && operation.end == End::Ok) {
        for value in told.told.as_array().into_iter().flatten() {
            match (value["capacity"].as_i64(), value["node"].as_str(), value["revision"].as_u64()) {
                (Some(most), Some(node), _) => {
                    capacity.insert(node, most);
                }
                (None, _, Some(revision)) => seen.push(Observation { revision, value, told }),
                _ => {}
            }
        }
    }
    seen.sort_by_key(|observation| observation.revision);
    vec![one_binding(&seen), within_capacity(&seen, &capacity)]
}

fn one_binding(seen: &[Observation<'_>]) -> Verdict {
    let mut bound: HashMap<&str, (&str, &Operation)> = HashMap::new();
    for observation in seen {
        let uid = observation.value["uid"].as_str().unwrap_or_default();
        let node = observation.value["node"].as_str().unwrap_or_default();
        match bound.get(uid) {
            Some((before, told)) if *before != node => {
                let explanation = format!(
                    "pod {uid} was bound to {before} and then to {node:?}, at revision {}",
                    observation.revision
                );
                return Verdict::invalid(ONE_BINDING, seen.len(), explanation)
                    .showing([*told, observation.told]);
            }
            None if !node.is_empty() => {
                bound.insert(uid, (node, observation.told));
            }
            _ => {}
        }
    }
    if bound.is_empty() {
        return Verdict::unknown(ONE_BINDING, 0, "no pod was bound");
    }
    Verdict::valid(ONE_BINDING, seen.len(), format!("{} pods bound", bound.len()))
}

fn within_capacity(seen: &[Observation<'_>], capacity: &HashMap<&str, i64>) -> Verdict {
    let mut on: HashMap<&str, HashMap<&str, i64>> = HashMap::new();
    let mut fullest = 0.0_f64;
    for observation in seen {
        let word = |name: &str| observation.value[name].as_str().unwrap_or_default();
        let (uid, node) = (word("uid"), word("node"));
        if node.is_empty() {
            continue;
        }
        let pods = on.entry(node).or_default();
        if observation.value["gone"].as_bool() == Some(true) {
            pods.remove(uid);
        } else {
            pods.insert(uid, observation.value["cpu"].as_i64().unwrap_or_default());
        }
        let Some(most) = capacity.get(node) else { continue };
        let sum: i64 = pods.values().sum();
        fullest = fullest.max(sum as f64 / *most as f64);
        if sum > *most {
            let explanation = format!(
                "at revision {} node {node} has pods of {sum} millicores bound to it and holds {most}",
                observation.revision
            );
            return Verdict::invalid(CAPACITY, seen.len(), explanation).showing([observation.told]);
        }
    }
    if capacity.is_empty() {
        return Verdict::unknown(CAPACITY, 0, "no node's capacity was told");
    }
    Verdict::valid(CAPACITY, seen.len(), format!("the fullest node held {:.0} %", fullest * 100.0))
}
