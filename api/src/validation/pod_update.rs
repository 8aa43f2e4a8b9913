//! Validation of changes to a pod: nearly all of the spec is fixed at creation.

use serde_json::Value;

use crate::status::Cause;

const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
/// Most changed fields that the refusal lists.
const LISTED_MAX: usize = 10;

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn check(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let (Some(old), Some(new)) = (old.get("spec"), new.get("spec")) else { return };
    for field in ["containers", "initContainers"] {
        if list(old, field).len() != list(new, field).len() {
            causes.push(Cause::forbidden(
                format!("spec.{field}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    deadline(old, new, causes);
    tolerations(old, new, causes);
    scheduling_gates(old, new, causes);
    let allowed = with_allowed_changes(old, new);
    if allowed != *new {
        let mut changes = Vec::new();
        differences("spec", &allowed, new, &mut changes);
        let more = changes.len().saturating_sub(LISTED_MAX);
        changes.truncate(LISTED_MAX);
        if more > 0 {
            changes.push(format!("  ... and {more} more"));
        }
        causes.push(Cause::forbidden("spec", &format!("{IMMUTABLE}\n{}", changes.join("\n"))));
    }
}

/// The old spec with every change that is allowed taken over from the new one.
fn with_allowed_changes(old: &Value, new: &Value) -> Value {
    let mut spec = old.clone();
    for field in ["containers", "initContainers"] {
        for (index, container) in list(new, field).iter().enumerate() {
            take(&mut spec[field][index], container, "image");
        }
    }
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(old).is_some_and(|s| s < 0) && grace(new) == Some(1) {
        take(&mut spec, new, "terminationGracePeriodSeconds");
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        take(&mut spec, new, field);
    }
    if !list(old, "schedulingGates").is_empty() {
        // A pod that waits behind a gate may still be narrowed down.
        take(&mut spec, new, "nodeSelector");
        take(&mut spec, new, "affinity");
    }
    spec
}

fn take(to: &mut Value, from: &Value, field: &str) {
    let Some(members) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => members.insert(field.to_owned(), value.clone()),
        None => members.remove(field),
    };
}

fn deadline(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let field = "spec.activeDeadlineSeconds";
    let read = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (read(old), read(new)) {
        (Some(before), Some(after)) if after > before => {
            causes.push(Cause::invalid(field, after, "must be less than or equal to previous value"));
        }
        (Some(_), None) => {
            causes.push(Cause::invalid(
                field,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

fn tolerations(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let without_seconds = |toleration: &Value| {
        let mut copy = toleration.clone();
        if let Some(members) = copy.as_object_mut() {
            members.remove("tolerationSeconds");
        }
        copy
    };
    let after: Vec<Value> = list(new, "tolerations").iter().map(without_seconds).collect();
    for toleration in list(old, "tolerations") {
        if !after.contains(&without_seconds(toleration)) {
            causes.push(Cause::forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            ));
            return;
        }
    }
}

fn scheduling_gates(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let before = list(old, "schedulingGates");
    for gate in list(new, "schedulingGates") {
        if !before.contains(gate) {
            let name = gate.get("name").and_then(Value::as_str).unwrap_or("");
            causes.push(Cause::forbidden(
                "spec.schedulingGates",
                &format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            ));
        }
    }
}

/// Lists what differs, a `-` and a `+` line per field.
fn differences(path: &str, old: &Value, new: &Value, out: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let side = |members: &serde_json::Map<String, Value>| {
                    members.get(key).cloned().unwrap_or(Value::Null)
                };
                differences(&format!("{path}.{key}"), &side(before), &side(after), out);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                differences(&format!("{path}[{index}]"), before, after, out);
            }
        }
        _ if old == new => {}
        _ => {
            for (sign, value) in [('-', old), ('+', new)] {
                if !value.is_null() {
                    out.push(format!("{sign} {path}: {value}"));
                }
            }
        }
    }
}
