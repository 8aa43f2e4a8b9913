//! Pods: `pods`, told as a list of observations {uid, name, label, node, cpu, revision, phase, ending, gone}, and of nodes {node,
//! capacity}; beside what clients asked for.
//!
//! *one-binding*: a pod that has a node never has another. *capacity*: what is bound to a node, by what each observed revision tells,
//! never exceeds what it can hold (millicores). *gone-is-gone*: what was removed is not seen again, and what has ended does
//! not begin again. *made-is-seen*: a pod whose creation was acknowledged is told of. *never-too-many*: whoever keeps pods never has more
//! of them than was asked for. *settles*: at the end all that was asked for is there, and then gone, in time.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The name of the property of bindings.
pub const ONE_BINDING: &str = "one-binding";
/// The name of the property of nodes.
pub const CAPACITY: &str = "capacity";

/// The name of the property of ends.
pub const GONE_IS_GONE: &str = "gone-is-gone";
/// The name of the property of acknowledged creations.
pub const MADE_IS_SEEN: &str = "made-is-seen";
/// The name of the property of those who keep pods.
pub const NEVER_TOO_MANY: &str = "never-too-many";
/// The name of the property of the end of a run.
pub const SETTLES: &str = "settles";

/// One version of a pod, as somebody was told of it.
pub(super) struct Observation<'a> {
    pub(super) revision: u64,
    pub(super) value: &'a Value,
    pub(super) told: &'a Operation,
}

/// Everything that was told of pods and nodes.
fn told(operations: &[Operation]) -> impl Iterator<Item = (&Value, &Operation)> {
    let tellings = operations.iter().filter(|operation| operation.f == "pods" && operation.end == End::Ok);
    tellings.flat_map(|told| told.told.as_array().into_iter().flatten().map(move |value| (value, told)))
}

/// Every version of every pod that was told of, in the order of revisions.
pub(super) fn observations(operations: &[Operation]) -> Vec<Observation<'_>> {
    let of_pods = told(operations).filter(|(value, _)| value["capacity"].is_null());
    let seen = of_pods
        .filter_map(|(value, told)| Some(Observation { revision: value["revision"].as_u64()?, value, told }));
    let mut seen: Vec<Observation<'_>> = seen.collect();
    seen.sort_by_key(|observation| observation.revision);
    seen
}

/// Judges all observations.
pub fn check(operations: &[Operation]) -> Vec<Verdict> {
    let seen = observations(operations);
    let capacity: HashMap<&str, i64> = told(operations)
        .filter_map(|(value, _)| Some((value["node"].as_str()?, value["capacity"].as_i64()?)))
        .collect();
    let mut verdicts = vec![one_binding(&seen), within_capacity(&seen, &capacity), gone_is_gone(&seen)];
    let has = |f: &str| operations.iter().any(|operation| operation.f == f);
    if has("create-pod") {
        verdicts.push(made_is_seen(&seen, operations));
    }
    if operations.iter().any(|operation| operation.asked["most"].is_u64()) {
        verdicts.push(never_too_many(&seen, operations));
    }
    if has("converge") || has("clean-up") {
        verdicts.push(settles(operations));
    }
    verdicts
}

impl<'a> Observation<'a> {
    pub(super) fn word(&self, name: &str) -> &'a str {
        self.value[name].as_str().unwrap_or_default()
    }

    fn is_gone(&self) -> bool {
        self.value["gone"] == true
    }

    fn has_ended(&self) -> bool {
        matches!(self.word("phase"), "Succeeded" | "Failed")
    }
}

fn gone_is_gone(seen: &[Observation<'_>]) -> Verdict {
    let mut last: HashMap<&str, &Observation<'_>> = HashMap::new();
    for observation in seen {
        let uid = observation.word("uid");
        if let Some(before) = last.insert(uid, observation) {
            let again = match () {
                () if before.is_gone() && !observation.is_gone() => "was gone and is told of again",
                () if before.has_ended() && !observation.has_ended() => "had ended and goes on",
                () => continue,
            };
            let explanation = format!("pod {uid} {again}, at revision {}", observation.revision);
            return Verdict::invalid(GONE_IS_GONE, seen.len(), explanation)
                .showing([before.told, observation.told]);
        }
    }
    let gone = last.values().filter(|observation| observation.is_gone()).count();
    Verdict::valid(GONE_IS_GONE, seen.len(), format!("{gone} of {} pods are gone", last.len()))
}

fn made_is_seen(seen: &[Observation<'_>], operations: &[Operation]) -> Verdict {
    let uids: HashSet<&str> = seen.iter().map(|observation| observation.word("uid")).collect();
    let made = operations.iter().filter(|operation| operation.f == "create-pod" && operation.end == End::Ok);
    let (mut count, mut lost) = (0, Vec::new());
    for operation in made {
        count += 1;
        if !operation.told["uid"].as_str().is_some_and(|uid| uids.contains(uid)) {
            lost.push(operation);
        }
    }
    if lost.is_empty() {
        return Verdict::valid(MADE_IS_SEEN, count, format!("all of {count} acknowledged pods were told of"));
    }
    let explanation = format!("{} of {count} acknowledged pods were never told of", lost.len());
    Verdict::invalid(MADE_IS_SEEN, count, explanation).showing(lost)
}

/// Pods on their way out and pods that have ended count no more, as controllers count them.
fn never_too_many(seen: &[Observation<'_>], operations: &[Operation]) -> Verdict {
    let most: HashMap<&str, u64> = operations
        .iter()
        .filter_map(|operation| Some((operation.asked["label"].as_str()?, operation.asked["most"].as_u64()?)))
        .collect();
    let mut kept: HashMap<&str, HashSet<&str>> = HashMap::new();
    let mut fullest = 0;
    for observation in seen {
        let (label, uid) = (observation.word("label"), observation.word("uid"));
        let Some(most) = most.get(label) else { continue };
        let pods = kept.entry(label).or_default();
        if observation.is_gone() || observation.has_ended() || observation.value["ending"] == true {
            pods.remove(uid);
        } else {
            pods.insert(uid);
        }
        fullest = fullest.max(pods.len());
        if pods.len() as u64 > *most {
            let explanation = format!(
                "at revision {} there are {} pods of {label}, and {most} were asked for at most",
                observation.revision,
                pods.len()
            );
            return Verdict::invalid(NEVER_TOO_MANY, seen.len(), explanation).showing([observation.told]);
        }
    }
    if fullest == 0 {
        return Verdict::unknown(NEVER_TOO_MANY, seen.len(), "nobody kept a pod");
    }
    Verdict::valid(NEVER_TOO_MANY, seen.len(), format!("{fullest} at most of one who keeps pods"))
}

fn settles(operations: &[Operation]) -> Verdict {
    let looks: Vec<&Operation> = operations
        .iter()
        .filter(|operation| matches!(operation.f.as_str(), "converge" | "clean-up"))
        .collect();
    if let Some(late) = looks.iter().find(|operation| operation.end != End::Ok) {
        let why = late.error.as_deref().unwrap_or("nobody knows why");
        let explanation = format!("{} of {}: {why}", late.f, late.asked["path"]);
        return Verdict::invalid(SETTLES, looks.len(), explanation).showing([*late]);
    }
    let slowest = |f: &str| {
        looks.iter().filter(|look| look.f == f).filter_map(|look| look.told["ms"].as_u64()).max().unwrap_or(0)
    };
    let explanation = format!(
        "all were ready after {} ms, and all gone {} ms later, at the latest",
        slowest("converge"),
        slowest("clean-up")
    );
    Verdict::valid(SETTLES, looks.len(), explanation)
}

fn one_binding(seen: &[Observation<'_>]) -> Verdict {
    let mut bound: HashMap<&str, (&str, &Operation)> = HashMap::new();
    for observation in seen {
        let (uid, node) = (observation.word("uid"), observation.word("node"));
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
        let (uid, node) = (observation.word("uid"), observation.word("node"));
        if node.is_empty() {
            continue;
        }
        let pods = on.entry(node).or_default();
        if observation.is_gone() || observation.has_ended() {
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
