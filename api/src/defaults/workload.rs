//! Defaults of what makes pods of a template.

use serde_json::{Map, Value, json};

use super::{child, items, pod, set};
use crate::object::{self, child_mut};

/// How many old revisions are kept.
const HISTORY_LIMIT: i64 = 10;

pub(super) fn replica_set(object: &mut Value) {
    if let Some(spec) = spec(object) {
        set(spec, "replicas", 1);
        pod::template(spec);
    }
}

/// Its labels and its selector are the template's where it has none of its own.
pub(super) fn replication_controller(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        if object::labels_value(object).is_none_or(Map::is_empty) {
            object::set_metadata(object, "labels", labels.clone());
        }
        if let Some(spec) = spec(object)
            && spec.get("selector").and_then(Value::as_object).is_none_or(Map::is_empty)
        {
            spec.insert("selector".to_owned(), labels);
        }
    }
    replica_set(object);
}

pub(super) fn deployment(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", HISTORY_LIMIT);
    set(spec, "progressDeadlineSeconds", 600);
    if strategy(spec, "strategy") == Some("RollingUpdate")
        && let Some(rolling) =
            child(spec, "strategy").and_then(|strategy| child_mut(strategy, "rollingUpdate"))
    {
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
    pod::template(spec);
}

pub(super) fn stateful_set(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", HISTORY_LIMIT);
    set(spec, "podManagementPolicy", "OrderedReady");
    if let Some(retention) = child_mut(spec, "persistentVolumeClaimRetentionPolicy") {
        set(retention, "whenDeleted", "Retain");
        set(retention, "whenScaled", "Retain");
    }
    if strategy(spec, "updateStrategy") == Some("RollingUpdate")
        && let Some(rolling) =
            child(spec, "updateStrategy").and_then(|strategy| child_mut(strategy, "rollingUpdate"))
    {
        set(rolling, "partition", 0);
    }
    for claim in items(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = child(claim, "spec") {
            set(spec, "volumeMode", "Filesystem");
        }
        if let Some(status) = child_mut(claim, "status") {
            set(status, "phase", "Pending");
        }
    }
    pod::template(spec);
}

pub(super) fn daemon_set(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    set(spec, "revisionHistoryLimit", HISTORY_LIMIT);
    if strategy(spec, "updateStrategy") == Some("RollingUpdate")
        && let Some(rolling) =
            child(spec, "updateStrategy").and_then(|strategy| child_mut(strategy, "rollingUpdate"))
    {
        set(rolling, "maxUnavailable", 1);
        set(rolling, "maxSurge", 0);
    }
    pod::template(spec);
}

/// One pod that ends well, unless it says otherwise. A job that says neither how many shall end well nor how
/// many may run at once is one pod; one that only says how many may run is a queue of work.
pub(super) fn job(object: &mut Value) {
    if let Some(spec) = spec(object) {
        job_spec(spec);
        pod::template(spec);
    }
}

fn job_spec(spec: &mut Map<String, Value>) {
    let is_unset = |key: &str| spec.get(key).is_none_or(Value::is_null);
    if is_unset("completions") && is_unset("parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let per_index = spec.get("backoffLimitPerIndex").is_some_and(|limit| !limit.is_null());
    set(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    let policy = spec.get("podFailurePolicy").is_some_and(|policy| !policy.is_null());
    set(spec, "podReplacementPolicy", if policy { "Failed" } else { "TerminatingOrFailed" });
    if let Some(policy) = child(spec, "podFailurePolicy") {
        for rule in items(policy, "rules") {
            for condition in items(rule, "onPodConditions") {
                set(condition, "status", "True");
            }
        }
    }
}

pub(super) fn cron_job(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    set(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    if let Some(job) = child(spec, "jobTemplate").and_then(|template| child(template, "spec")) {
        pod::template(job);
    }
}

pub(super) fn pod_template(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        pod::template(object);
    }
}

/// A processor busy to eighty of a hundred, if nothing else is said; how fast to follow, if something is.
pub(super) fn horizontal_pod_autoscaler(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    set(spec, "minReplicas", 1);
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target":
            {"type": "Utilization", "averageUtilization": 80}}});
        spec.insert("metrics".to_owned(), json!([metric]));
    }
    let Some(behavior) = child(spec, "behavior") else { return };
    if let Some(up) = child_mut(behavior, "scaleUp") {
        set(up, "stabilizationWindowSeconds", 0);
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        scaling_rules(up, json!([pods, percent]));
    }
    if let Some(down) = child_mut(behavior, "scaleDown") {
        scaling_rules(down, json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

fn scaling_rules(rules: &mut Map<String, Value>, policies: Value) {
    set(rules, "selectPolicy", "Max");
    set(rules, "policies", policies);
}

/// The type of a strategy, which is to replace pods little by little unless it says otherwise.
fn strategy<'a>(spec: &'a mut Map<String, Value>, key: &str) -> Option<&'a str> {
    let strategy = child_mut(spec, key)?;
    if strategy.get("type").and_then(Value::as_str) == Some("") {
        strategy.remove("type");
    }
    set(strategy, "type", "RollingUpdate");
    strategy["type"].as_str()
}

fn spec(object: &mut Value) -> Option<&mut Map<String, Value>> {
    child(object.as_object_mut()?, "spec")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_pod_or_a_queue() {
        let filled = |spec: Value| {
            let mut object = json!({"spec": spec});
            job(&mut object);
            [object["spec"]["completions"].clone(), object["spec"]["parallelism"].clone()]
        };
        assert_eq!(filled(json!({})), [json!(1), json!(1)]);
        assert_eq!(filled(json!({"parallelism": 3})), [Value::Null, json!(3)]);
        assert_eq!(filled(json!({"completions": 5})), [json!(5), json!(1)]);
    }

    #[test]
    fn a_replication_controller_takes_the_labels_of_its_template() {
        let mut object = json!({"metadata": {"name": "a"},
            "spec": {"template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}}}});
        replication_controller(&mut object);
        assert_eq!(object["metadata"]["labels"], json!({"app": "a"}));
        assert_eq!(object["spec"]["selector"], json!({"app": "a"}));
        assert_eq!(object["spec"]["replicas"], 1);
    }

    #[test]
    fn rules_of_scaling_are_filled_in_only_where_some_are_given() {
        let mut plain = json!({"spec": {"maxReplicas": 3}});
        horizontal_pod_autoscaler(&mut plain);
        assert_eq!(plain["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(plain["spec"].get("behavior").is_none());
        let mut slow = json!({"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 9}}}});
        horizontal_pod_autoscaler(&mut slow);
        assert_eq!(slow["spec"]["behavior"]["scaleDown"]["selectPolicy"], "Max");
        assert_eq!(slow["spec"]["behavior"]["scaleUp"]["policies"].as_array().map(Vec::len), Some(2));
    }
}
