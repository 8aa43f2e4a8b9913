//! Defaults of what limits and admits others: ranges, classes, webhooks, admission policies, drivers.

use serde_json::{Map, Value, json};

use super::{child, items, set};
use crate::object::child_mut;

/// A limit that is not given is the most there may be; what is asked for is the limit, else the least.
pub(super) fn limit_range(object: &mut Value) {
    let Some(spec) = object.as_object_mut().and_then(|range| child(range, "spec")) else { return };
    for item in items(spec, "limits") {
        if item.get("type").and_then(Value::as_str) != Some("Container") {
            continue;
        }
        fill(item, "default", "max");
        fill(item, "defaultRequest", "default");
        fill(item, "defaultRequest", "min");
    }
}

/// Gives `to` the members of `from` that it lacks.
fn fill(item: &mut Map<String, Value>, to: &str, from: &str) {
    let Some(from) = item.get(from).and_then(Value::as_object).cloned() else { return };
    if let Some(to) = child_mut(item, to) {
        for (resource, quantity) in from {
            set(to, &resource, quantity);
        }
    }
}

pub(super) fn priority_class(object: &mut Value) {
    let Some(class) = object.as_object_mut() else { return };
    set(class, "preemptionPolicy", "PreemptLowerPriority");
}

/// What every webhook has; a mutating one is asked once.
pub(super) fn webhooks(object: &mut Value, is_mutating: bool) {
    let Some(configuration) = object.as_object_mut() else { return };
    for webhook in items(configuration, "webhooks") {
        set(webhook, "failurePolicy", "Fail");
        set(webhook, "matchPolicy", "Equivalent");
        set(webhook, "namespaceSelector", json!({}));
        set(webhook, "objectSelector", json!({}));
        set(webhook, "timeoutSeconds", 10);
        if is_mutating {
            set(webhook, "reinvocationPolicy", "Never");
        }
        for rule in items(webhook, "rules") {
            set(rule, "scope", "*");
        }
        if let Some(service) = child(webhook, "clientConfig").and_then(|config| child(config, "service")) {
            set(service, "port", 443);
        }
    }
}

pub(super) fn admission_policy(object: &mut Value) {
    let Some(spec) = object.as_object_mut().and_then(|policy| child(policy, "spec")) else { return };
    set(spec, "failurePolicy", "Fail");
    if let Some(constraints) = child(spec, "matchConstraints") {
        match_resources(constraints);
    }
}

pub(super) fn admission_policy_binding(object: &mut Value) {
    let spec = object.as_object_mut().and_then(|binding| child(binding, "spec"));
    if let Some(resources) = spec.and_then(|spec| child(spec, "matchResources")) {
        match_resources(resources);
    }
}

fn match_resources(resources: &mut Map<String, Value>) {
    set(resources, "matchPolicy", "Equivalent");
    set(resources, "namespaceSelector", json!({}));
    set(resources, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in items(resources, list) {
            set(rule, "scope", "*");
        }
    }
}

pub(super) fn csi_driver(object: &mut Value) {
    let Some(spec) = object.as_object_mut().and_then(|driver| child(driver, "spec")) else { return };
    set(spec, "attachRequired", true);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    for flag in ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"] {
        set(spec, flag, false);
    }
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_range_leaves_out_follows_from_what_it_says() {
        let mut range = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}},
            {"type": "Pod", "max": {"cpu": "4"}},
        ]}});
        limit_range(&mut range);
        let limits = &range["spec"]["limits"];
        assert_eq!(limits[0]["default"], json!({"cpu": "2"}));
        assert_eq!(limits[0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
        assert_eq!(limits[1], json!({"type": "Pod", "max": {"cpu": "4"}}));
    }

    #[test]
    fn a_webhook_fails_closed_within_ten_seconds() {
        let mut object = json!({"webhooks": [{"name": "a", "clientConfig": {"service": {"name": "s"}},
            "rules": [{"operations": ["CREATE"]}]}]});
        webhooks(&mut object, true);
        let webhook = &object["webhooks"][0];
        assert_eq!([&webhook["failurePolicy"], &webhook["reinvocationPolicy"]], ["Fail", "Never"]);
        assert_eq!(
            (&webhook["timeoutSeconds"], &webhook["clientConfig"]["service"]["port"]),
            (&json!(10), &json!(443))
        );
        assert_eq!(webhook["rules"][0]["scope"], "*");
    }
}
