//! Jobs: told apart by labels that name the very job, unless it says which pods are its own.

use api::object;
use serde_json::{Map, Value, json};

use super::{Strategy, remove};

/// Labels of a job's pods: whose they are, under the names of today and of before.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

pub(super) struct JobStrategy;

impl Strategy for JobStrategy {
    fn prepare_create(&self, object: &mut Value) {
        remove(object, "status");
        // A job whose name the server still has to make up gets its labels without it.
        let (name, uid) = (object::name(object).to_owned(), object::uid(object).to_owned());
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        if spec.get("manualSelector").and_then(Value::as_bool).unwrap_or(false) {
            return;
        }
        let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut) else { return };
        let metadata = template.entry("metadata").or_insert(Value::Null);
        if metadata.is_null() {
            *metadata = Value::Object(Map::new());
        }
        let Some(metadata) = metadata.as_object_mut() else { return };
        let labels = metadata.entry("labels").or_insert(Value::Null);
        if labels.is_null() {
            *labels = Value::Object(Map::new());
        }
        let Some(labels) = labels.as_object_mut() else { return };
        for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
            for key in keys {
                labels.insert(key.to_owned(), Value::from(value.as_str()));
            }
        }
        let selector = spec.entry("selector").or_insert(Value::Null);
        if selector.is_null() {
            *selector = json!({});
        }
        if let Some(selector) = selector.as_object_mut() {
            let matched = selector.entry("matchLabels").or_insert(Value::Null);
            if matched.is_null() {
                *matched = json!({});
            }
            if let Some(matched) = matched.as_object_mut() {
                matched.insert(UID_LABELS[0].to_owned(), Value::from(uid));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_selects_its_own_pods_by_itself() {
        let mut job = json!({"metadata": {"name": "sum", "uid": "u-1"},
            "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}});
        JobStrategy.prepare_create(&mut job);
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({"a": "b", "batch.kubernetes.io/controller-uid": "u-1", "controller-uid": "u-1",
                "batch.kubernetes.io/job-name": "sum", "job-name": "sum"})
        );
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})
        );
        let manual = json!({"metadata": {"name": "sum", "uid": "u-1"},
            "spec": {"manualSelector": true, "template": {"spec": {}}}});
        let mut same = manual.clone();
        JobStrategy.prepare_create(&mut same);
        assert_eq!(same, manual);
    }
}
