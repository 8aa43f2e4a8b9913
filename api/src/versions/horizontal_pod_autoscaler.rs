//! `autoscaling/v1` `HorizontalPodAutoscaler`, stored as v2.
//!
//! The old version knows one metric, the use of processors. Whatever else there is goes into annotations, as JSON
//! in the form of v2, so that a client of the old version that writes back what it read loses nothing. Of the status
//! the old version shows the percentage only; the annotation has all measurements. Annotations that a client made
//! up are read like any others; that they do not become a status is for the registry to see to, which keeps what a
//! write is not about.

use k8s_openapi::api::autoscaling::v2;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::object;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

const TARGET: &str = "targetCPUUtilizationPercentage";
const CURRENT: &str = "currentCPUUtilizationPercentage";

pub(super) fn show(autoscaler: &mut Value) {
    let mut notes = Vec::new();
    // What a client made up is no word of the server's.
    for name in [METRICS, BEHAVIOR, CONDITIONS, CURRENT_METRICS] {
        let _ = take_annotation::<Value>(autoscaler, name);
    }
    if let Some(spec) = autoscaler.get_mut("spec").and_then(Value::as_object_mut) {
        notes.extend(move_metric(spec));
        notes.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(status) = autoscaler.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(metrics) = status.remove("currentMetrics") {
            let used =
                metrics.as_array().into_iter().flatten().find_map(|metric| percentage(metric, "current"));
            status.extend(used.map(|percent| (CURRENT.to_owned(), percent)));
            notes.push((CURRENT_METRICS, metrics));
        }
        notes.extend(status.remove("conditions").map(|conditions| (CONDITIONS, conditions)));
    }
    for (name, value) in notes {
        set_annotation(autoscaler, name, &value);
    }
}

pub(super) fn store(autoscaler: &mut Value) {
    let metrics = take_annotation::<Vec<v2::MetricSpec>>(autoscaler, METRICS);
    let behavior = take_annotation::<v2::HorizontalPodAutoscalerBehavior>(autoscaler, BEHAVIOR);
    let current = take_annotation::<Vec<v2::MetricStatus>>(autoscaler, CURRENT_METRICS);
    let conditions = take_annotation::<Vec<v2::HorizontalPodAutoscalerCondition>>(autoscaler, CONDITIONS);
    if let Some(spec) = autoscaler.get_mut("spec").and_then(Value::as_object_mut) {
        let target = |percent| json!({"type": "Utilization", "averageUtilization": percent});
        let known = spec.remove(TARGET).filter(|percent| !percent.is_null());
        let mut all: Vec<Value> =
            known.map(|percent| processors("target", target(percent))).into_iter().collect();
        if let Some(Value::Array(others)) = metrics {
            all.extend(others);
        }
        if !all.is_empty() {
            spec.insert("metrics".to_owned(), Value::from(all));
        }
        spec.extend(behavior.map(|behavior| ("behavior".to_owned(), behavior)));
    }
    // Notes about a status that is not there are somebody's inventions.
    if let Some(status) = autoscaler.get_mut("status").and_then(Value::as_object_mut) {
        let percent = status.remove(CURRENT).filter(|percent| !percent.is_null());
        let known =
            percent.map(|percent| json!([processors("current", json!({"averageUtilization": percent}))]));
        // The annotation says more than the field.
        status
            .extend(current.filter(Value::is_array).or(known).map(|all| ("currentMetrics".to_owned(), all)));
        status.extend(conditions.map(|conditions| ("conditions".to_owned(), conditions)));
    }
}

fn processors(part: &str, value: Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", part: value}})
}

/// The percentage of a metric that the old version knows.
fn percentage(metric: &Value, part: &str) -> Option<Value> {
    let resource = &metric["resource"];
    let is_plain = metric["type"] == "Resource" && resource["name"] == "cpu";
    is_plain.then(|| resource[part]["averageUtilization"].clone()).filter(Value::is_i64)
}

/// Moves the first target that the old version knows to its field; gives the others as a note.
fn move_metric(spec: &mut Map<String, Value>) -> Option<(&'static str, Value)> {
    let Some(Value::Array(mut metrics)) = spec.remove("metrics") else { return None };
    // A target that says more than a percentage is kept whole.
    let is_only = |metric: &Value| {
        let target = metric["resource"]["target"].as_object();
        target.is_some_and(|all| all.keys().all(|key| matches!(key.as_str(), "type" | "averageUtilization")))
    };
    let known = metrics.iter().position(|metric| percentage(metric, "target").is_some() && is_only(metric));
    if let Some(index) = known {
        let metric = metrics.remove(index);
        spec.extend(percentage(&metric, "target").map(|percent| (TARGET.to_owned(), percent)));
    }
    (!metrics.is_empty()).then(|| (METRICS, Value::from(metrics)))
}

fn set_annotation(object: &mut Value, name: &str, value: &Value) {
    let annotations = object["metadata"].get("annotations").and_then(Value::as_object).cloned();
    let mut annotations = annotations.unwrap_or_default();
    annotations.insert(name.to_owned(), Value::from(value.to_string()));
    object::set_metadata(object, "annotations", annotations);
}

/// Takes a note off; what is no JSON of its type is gone, as in Kubernetes.
fn take_annotation<T: DeserializeOwned>(object: &mut Value, name: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(name);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    let note: Value = serde_json::from_str(text?.as_str()?).ok()?;
    T::deserialize(&note).is_ok().then_some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_old_version_does_not_know_is_kept_in_annotations() {
        let processors = json!({"type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let memory = json!({"type": "Resource",
            "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
        let stored = json!({"metadata": {"name": "a", "annotations": {"own": "x"}},
            "spec": {"maxReplicas": 3, "metrics": [processors, memory], "behavior": {"scaleUp": {}}},
            "status": {"currentReplicas": 1, "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 7, "averageValue": "1m"}}}]}});
        let mut shown = stored.clone();
        show(&mut shown);
        assert_eq!(shown["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert!(shown["metadata"]["annotations"][METRICS].as_str().unwrap().contains("memory"));
        assert_eq!(shown["status"], json!({"currentReplicas": 1, CURRENT: 7}));
        store(&mut shown);
        assert_eq!(shown, stored);
    }

    #[test]
    fn notes_of_another_form_are_none() {
        let mut made = json!({"metadata": {"name": "a", "annotations": {METRICS: "{}", BEHAVIOR: "[1]",
            CONDITIONS: "[{\"type\": 3}]", CURRENT_METRICS: "no JSON"}}, "spec": {"maxReplicas": 3}, "status": {}});
        store(&mut made);
        assert_eq!(made, json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3}, "status": {}}));
    }

    #[test]
    fn a_percentage_is_a_metric() {
        let mut made = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, TARGET: 80}});
        store(&mut made);
        assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(made["spec"].get(TARGET).is_none());
    }
}
