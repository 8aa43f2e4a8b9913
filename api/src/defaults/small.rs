//! Defaults of the kinds that have few.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{child, set};
use crate::object::{self, child_mut};

const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The finalizer that keeps a namespace until its content is gone, the phase, and the label with its name.
pub(super) fn namespace(object: &mut Value) {
    let name = object::name(object).to_owned();
    if !name.is_empty() {
        object::set_label(object, NAMESPACE_NAME_LABEL, &name);
    }
    let deleting = object::deletion_timestamp(object).is_some();
    let Some(namespace) = object.as_object_mut() else { return };
    if let Some(spec) = child_mut(namespace, "spec")
        && !deleting
    {
        set(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = child_mut(namespace, "status") {
        set(status, "phase", "Active");
    }
}

/// Allocatable is all there is unless the node says otherwise; the fields that Kubernetes always writes.
pub(super) fn node(object: &mut Value) {
    let Some(node) = object.as_object_mut() else { return };
    set(node, "spec", Value::Object(Map::new()));
    let Some(status) = child_mut(node, "status") else { return };
    if let Some(capacity) = status.get("capacity").cloned() {
        set(status, "allocatable", capacity);
    }
    set(status, "daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}}));
    if let Some(info) = child_mut(status, "nodeInfo") {
        for field in [
            "architecture",
            "bootID",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "kubeletVersion",
            "machineID",
            "operatingSystem",
            "osImage",
            "systemUUID",
        ] {
            set(info, field, "");
        }
    }
}

/// What becomes of the volume, what it looks like, and that it waits.
pub(super) fn persistent_volume(object: &mut Value) {
    let Some(volume) = object.as_object_mut() else { return };
    if let Some(spec) = child(volume, "spec") {
        set(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", "Filesystem");
        if let Some(host_path) = child(spec, "hostPath") {
            set(host_path, "type", "");
        }
    }
    if let Some(status) = child_mut(volume, "status") {
        set(status, "phase", "Pending");
    }
}

/// What is asked for looks like a directory, and is waited for.
pub(super) fn persistent_volume_claim(object: &mut Value) {
    let Some(claim) = object.as_object_mut() else { return };
    if let Some(spec) = child(claim, "spec") {
        set(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = child_mut(claim, "status") {
        set(status, "phase", "Pending");
    }
}

/// Volumes go with their claims, which are bound at once.
pub(super) fn storage_class(object: &mut Value) {
    let Some(class) = object.as_object_mut() else { return };
    set(class, "reclaimPolicy", "Delete");
    set(class, "volumeBindingMode", "Immediate");
}

/// The fields that Kubernetes writes even when they are empty.
pub(super) fn event(object: &mut Value) {
    let Some(event) = object.as_object_mut() else { return };
    for time in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        set(event, time, Value::Null);
    }
    for text in ["reportingComponent", "reportingInstance"] {
        set(event, text, "");
    }
    for part in ["involvedObject", "source"] {
        set(event, part, json!({}));
    }
}

/// The type, and `stringData` moved into `data`.
pub(super) fn secret(object: &mut Value) {
    let Some(secret) = object.as_object_mut() else { return };
    set(secret, "type", "Opaque");
    let Some(texts) = secret.remove("stringData") else { return };
    let Some(texts) = texts.as_object().filter(|t| !t.is_empty()) else { return };
    set(secret, "data", json!({}));
    if let Some(data) = child(secret, "data") {
        for (key, text) in texts {
            data.insert(key.clone(), Value::from(STANDARD.encode(text.as_str().unwrap_or(""))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_begins_active_and_labelled() {
        let mut value = json!({"metadata": {"name": "prod"}});
        namespace(&mut value);
        assert_eq!(
            value,
            json!({"metadata": {"name": "prod", "labels": {"kubernetes.io/metadata.name": "prod"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        let mut emptied = json!({"metadata": {"name": "a", "deletionTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {}, "status": {"phase": "Terminating"}});
        namespace(&mut emptied);
        assert_eq!(emptied["spec"], json!({}));
    }

    #[test]
    fn secrets_take_plain_text() {
        let mut value = json!({"data": {"a": "eA==", "b": "eA=="}, "stringData": {"b": "hi", "c": ""}});
        secret(&mut value);
        assert_eq!(value, json!({"type": "Opaque", "data": {"a": "eA==", "b": "aGk=", "c": ""}}));
    }

    #[test]
    fn a_node_may_give_all_it_has() {
        let mut value = json!({"status": {"capacity": {"cpu": "4"}}});
        node(&mut value);
        assert_eq!(value["status"]["allocatable"], json!({"cpu": "4"}));
        assert_eq!(value["spec"], json!({}));
    }

    #[test]
    fn an_event_shows_its_empty_fields() {
        let mut value = json!({"reason": "x"});
        event(&mut value);
        assert_eq!(value["eventTime"], Value::Null);
        assert_eq!(value["reportingComponent"], "");
    }
}
