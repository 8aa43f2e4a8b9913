//! The ReplicaSets of a Deployment: which of them is of the newest template, what a new one looks like, and
//! which revision each is. Pure.
//!
//! A ReplicaSet is named after a hash of its template. The hash only has to be the same at every replica and
//! to differ between templates of one Deployment; should two templates meet in one hash, the collision count
//! goes into it. Annotations are Kubernetes' own, so that `kubectl rollout` reads them.

use std::sync::Arc;

use api::object;
use serde_json::{Map, Value, json};

use super::rollout::Wanted;
use crate::registry::Object;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MOST: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not take over.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];
/// Most bytes of the history annotation.
const HISTORY_BYTES_MAX: usize = 2000;

/// The template without the label that tells ReplicaSets apart.
fn plain_template(value: &Value) -> Value {
    let mut template = value["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH_LABEL);
    }
    template
}

/// The ReplicaSet of the Deployment's own template: the oldest, should there be several.
pub(super) fn newest(deployment: &Value, sets: &[Arc<Object>]) -> Option<Arc<Object>> {
    let template = plain_template(deployment);
    let same = sets.iter().filter(|set| plain_template(set.value()) == template);
    same.min_by_key(|set| object::creation_timestamp(set.value()).to_owned()).cloned()
}

/// A short text that stands for a template.
pub(super) fn hash(deployment: &Value) -> String {
    let mut bytes = plain_template(deployment).to_string().into_bytes();
    if let Some(collisions) = deployment["status"]["collisionCount"].as_u64() {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    api::name::hash(&bytes)
}

/// A ReplicaSet's revision; 0: it has none.
pub(super) fn revision(value: &Value) -> u64 {
    object::annotation(value, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The revision that the newest ReplicaSet has to have, given the others.
pub(super) fn next_revision(old: &[Arc<Object>]) -> u64 {
    old.iter().map(|set| revision(set.value())).max().unwrap_or(0) + 1
}

/// A ReplicaSet for the Deployment's template.
pub(super) fn new_set(
    deployment: &Value,
    reference: &Value,
    replicas: i64,
    number: u64,
    wanted: Wanted,
) -> Value {
    let hash = hash(deployment);
    let mut template = plain_template(deployment);
    let labelled = |map: &mut Value| map[HASH_LABEL] = json!(hash);
    labelled(&mut template["metadata"]["labels"]);
    let mut selector = deployment["spec"]["selector"].clone();
    labelled(&mut selector["matchLabels"]);
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", object::name(deployment)),
            "labels": template["metadata"]["labels"],
            "annotations": {},
            "ownerReferences": [reference],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": deployment["spec"]["minReadySeconds"],
            "selector": selector,
            "template": template,
        },
    });
    annotate(&mut set, deployment, number);
    note_scale(&mut set, wanted);
    set
}

/// Takes over the Deployment's annotations, and gives the ReplicaSet that revision unless it has a later one.
pub(super) fn annotate(set: &mut Value, deployment: &Value, number: u64) {
    let before = revision(set);
    let Some(annotations) = annotations_mut(set) else { return };
    let own = deployment["metadata"]["annotations"].as_object().into_iter().flatten();
    for (key, value) in own.filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str())) {
        annotations.insert(key.clone(), value.clone());
    }
    if before >= number {
        return;
    }
    annotations.insert(REVISION.to_owned(), json!(number.to_string()));
    if before > 0 {
        // It was the newest once before: the revisions that it had stand beside.
        let known = annotations.get(REVISION_HISTORY).and_then(Value::as_str).unwrap_or_default();
        let mut history: Vec<String> =
            known.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        history.push(before.to_string());
        while history.join(",").len() > HISTORY_BYTES_MAX {
            history.remove(0);
        }
        annotations.insert(REVISION_HISTORY.to_owned(), json!(history.join(",")));
    }
}

/// Notes for how many replicas a ReplicaSet is scaled.
pub(super) fn note_scale(set: &mut Value, wanted: Wanted) {
    let Some(annotations) = annotations_mut(set) else { return };
    annotations.insert(DESIRED.to_owned(), json!(wanted.replicas.to_string()));
    annotations.insert(MOST.to_owned(), json!(wanted.most().to_string()));
}

fn annotations_mut(value: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = object::metadata_mut(value)?;
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations.as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        json!({"metadata": {"name": "hello", "annotations": {"note": "x", REVISION: "7"}},
            "spec": {"selector": {"matchLabels": {"app": "hello"}},
                "template": {"metadata": {"labels": {"app": "hello"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    }

    #[test]
    fn a_set_is_named_after_its_template_and_carries_the_hash() {
        let wanted = Wanted { replicas: 3, is_recreate: false, surge: 1, unavailable: 0 };
        let set = new_set(&deployment(), &json!({"uid": "u"}), 2, 4, wanted);
        let hash = hash(&deployment());
        assert!(
            hash.len() <= 10 && hash.bytes().all(|byte| api::name::SUFFIX_ALPHABET.contains(&byte)),
            "{hash}"
        );
        assert_eq!(set["metadata"]["name"], format!("hello-{hash}"));
        let labels = json!({"app": "hello", HASH_LABEL: hash});
        assert_eq!(set["spec"]["selector"]["matchLabels"], labels);
        assert_eq!(set["spec"]["template"]["metadata"]["labels"], labels);
        assert_eq!(
            set["metadata"]["annotations"],
            json!({"note": "x", REVISION: "4", DESIRED: "3", MOST: "4"})
        );
        let mut other = deployment();
        other["spec"]["template"]["spec"]["containers"][0]["image"] = json!("j");
        assert_ne!(super::hash(&other), hash);
        let mut collided = deployment();
        collided["status"] = json!({"collisionCount": 1});
        assert_ne!(super::hash(&collided), hash);
    }

    #[test]
    fn going_back_makes_an_old_set_the_newest_revision() {
        let wanted = Wanted { replicas: 1, is_recreate: true, surge: 0, unavailable: 0 };
        let mut set = new_set(&deployment(), &json!({}), 1, 1, wanted);
        annotate(&mut set, &deployment(), 3);
        annotate(&mut set, &deployment(), 3);
        assert_eq!(revision(&set), 3);
        assert_eq!(object::annotation(&set, REVISION_HISTORY), Some("1"));
    }
}
