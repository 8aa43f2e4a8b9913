//! Validation of `metadata`, the same for every kind.

use serde_json::{Map, Value};

use super::{ANNOTATIONS_BYTES_MAX, invalid_each};
use crate::kinds::{Kind, RBAC_GROUP};
use crate::name;
use crate::object::{self, FOREGROUND_FINALIZER, ORPHAN_FINALIZER};
use crate::status::Cause;

const STANDARD_FINALIZERS: &[&str] = &["kubernetes", ORPHAN_FINALIZER, FOREGROUND_FINALIZER];

pub(super) fn create(kind: &Kind, value: &Value, causes: &mut Vec<Cause>) {
    let (own, prefix) = (object::name(value), object::generate_name(value));
    if !prefix.is_empty() {
        // The suffix will follow: a trailing dash is fine.
        let masked = prefix.strip_suffix('-').map_or_else(|| prefix.to_owned(), |base| format!("{base}a"));
        invalid_each("metadata.generateName", prefix, name_messages(kind, &masked), causes);
    }
    if own.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        invalid_each("metadata.name", own, name_messages(kind, own), causes);
    }
    let namespace = object::namespace(value);
    match (kind.namespaced, namespace) {
        (true, "") => causes.push(Cause::required("metadata.namespace", "")),
        (true, _) => invalid_each("metadata.namespace", namespace, name::dns1123_label(namespace), causes),
        (false, "") => {}
        (false, _) => causes.push(Cause::forbidden("metadata.namespace", "not allowed on this type")),
    }
    common(value, causes);
}

pub(super) fn update(kind: &Kind, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let read = |value: &Value| {
            value.get("metadata").and_then(|m| m.get(field)).filter(|v| !v.is_null()).cloned()
        };
        if field == "namespace" && !kind.namespaced {
            continue;
        }
        let (before, after) = (read(old), read(new));
        if before != after {
            causes.push(Cause::invalid(
                format!("metadata.{field}"),
                after.unwrap_or(Value::Null),
                "field is immutable",
            ));
        }
    }
    if object::generation(new) < object::generation(old) {
        causes.push(Cause::invalid(
            "metadata.generation",
            object::generation(new),
            "must not be decremented",
        ));
    }
    if object::deletion_timestamp(old).is_some() {
        let before: Vec<&str> = object::finalizers(old).collect();
        let added: Vec<String> =
            object::finalizers(new).filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            causes.push(Cause::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    common(new, causes);
}

fn name_messages(kind: &Kind, text: &str) -> Vec<String> {
    match (kind.group, kind.kind) {
        ("", "Namespace") => name::dns1123_label(text),
        // A service is a host's name.
        ("", "Service") => name::dns1035_label(text),
        // So is each pod of a StatefulSet, and a number follows.
        ("apps", "StatefulSet") => name::dns1123_label(text),
        // "signer:subject".
        ("certificates.k8s.io", _) => name::path_segment(text),
        // Roles are named after the users and parts they are for: "system:node".
        (RBAC_GROUP, _) => name::path_segment(text),
        _ => name::dns1123_subdomain(text),
    }
}

fn common(value: &Value, causes: &mut Vec<Cause>) {
    if object::generation(value) < 0 {
        causes.push(Cause::invalid(
            "metadata.generation",
            object::generation(value),
            "must be greater than or equal to 0",
        ));
    }
    let map = |field: &str| value.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_object);
    if let Some(all) = map("labels") {
        labels("metadata.labels", all, causes);
    }
    if let Some(all) = map("annotations") {
        annotations(all, causes);
    }
    owner_references(object::owner_references(value), causes);
    let finalizers: Vec<&str> = object::finalizers(value).collect();
    for (index, finalizer) in finalizers.iter().enumerate() {
        invalid_each("metadata.finalizers", finalizer, name::qualified_name(finalizer), causes);
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(finalizer) {
            causes.push(Cause::invalid(
                format!("metadata.finalizers[{index}]"),
                *finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    if finalizers.contains(&ORPHAN_FINALIZER) && finalizers.contains(&FOREGROUND_FINALIZER) {
        causes.push(Cause::invalid(
            "metadata.finalizers",
            Value::from(finalizers),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

/// Checks keys and values of labels, here and in selectors of nodes.
pub(super) fn labels(field: &str, labels: &Map<String, Value>, causes: &mut Vec<Cause>) {
    for (key, value) in labels {
        invalid_each(field, key, name::qualified_name(key), causes);
        let value = value.as_str().unwrap_or("");
        invalid_each(field, value, name::label_value(value), causes);
    }
}

fn annotations(annotations: &Map<String, Value>, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    for (key, value) in annotations {
        invalid_each("metadata.annotations", key, name::qualified_name(&key.to_lowercase()), causes);
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
}

fn owner_references(references: &[Value], causes: &mut Vec<Cause>) {
    let mut controller: Option<&str> = None;
    for (index, reference) in references.iter().enumerate() {
        let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or("");
        let at = |field: &str| format!("metadata.ownerReferences[{index}].{field}");
        let (_, version) = crate::kinds::split_api_version(text("apiVersion"));
        if version.is_empty() {
            causes.push(Cause::invalid(at("apiVersion"), text("apiVersion"), "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                causes.push(Cause::invalid(at(field), "", "must not be empty"));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            causes.push(Cause::invalid(
                format!("metadata.ownerReferences[{index}]"),
                reference.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if reference.get("controller").and_then(Value::as_bool).unwrap_or(false) {
            if let Some(first) = controller {
                causes.push(Cause::invalid(
                    "metadata.ownerReferences",
                    Value::from(references.to_vec()),
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        text("name")
                    ),
                ));
                return;
            }
            controller = Some(text("name"));
        }
    }
}
