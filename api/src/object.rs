//! Accessors to the metadata of an object held as JSON.
//!
//! Owns the reading and writing of `metadata` fields that the generic machinery needs. Promises never to
//! panic on odd shapes: a missing or mistyped field reads as empty. Does not check anything.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The annotation of a pod that shows a static pod of a node: the hash of that.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The finalizer that holds an owner until its dependents are gone.
pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// The finalizer that holds an owner until its dependents no longer name it.
pub const ORPHAN_FINALIZER: &str = "orphan";

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
}

/// `metadata.name`, or empty.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.generateName`, or empty.
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`, or empty.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`, or empty.
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`, or empty.
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.creationTimestamp`, or empty.
pub fn creation_timestamp(object: &Value) -> &str {
    text(object, "creationTimestamp")
}

/// `metadata.deletionTimestamp`, when deletion has begun.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|t| !t.is_empty())
}

/// `metadata.deletionGracePeriodSeconds`, when deletion has begun.
pub fn deletion_grace_period_s(object: &Value) -> Option<i64> {
    object.get("metadata")?.get("deletionGracePeriodSeconds")?.as_i64()
}

/// `metadata.generation`, or 0.
pub fn generation(object: &Value) -> i64 {
    object.get("metadata").and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object
        .get("metadata")
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> &[Value] {
    object
        .get("metadata")
        .and_then(|m| m.get("ownerReferences"))
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// `metadata.labels` as JSON, when there are any.
pub fn labels_value(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("labels")?.as_object()
}

/// The value of one label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels_value(object)?.get(key)?.as_str()
}

/// The value of one annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// `metadata.labels`, copied.
pub fn labels(object: &Value) -> BTreeMap<String, String> {
    labels_value(object)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}

/// `apiVersion`, or empty.
pub fn api_version(object: &Value) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or("")
}

/// `kind`, or empty.
pub fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or("")
}

/// `namespace/name`, or `name` for an object outside namespaces.
pub fn key(object: &Value) -> String {
    let (namespace, name) = (namespace(object), name(object));
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The object's `metadata`, made when it is missing or null. `None`: the object is no JSON object, or its
/// metadata is neither.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    child_mut(object.as_object_mut()?, "metadata")
}

/// The member `key`, an object, made when it is missing or null.
pub(crate) fn child_mut<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
) -> Option<&'a mut Map<String, Value>> {
    if parent.get(key).is_none_or(Value::is_null) {
        parent.insert(key.to_owned(), Value::Object(Map::new()));
    }
    parent.get_mut(key)?.as_object_mut()
}

/// Whether two versions of an object say the same, apart from their metadata and status.
pub fn same_but_metadata_and_status(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return false };
    let own = |key: &&String| !matches!(key.as_str(), "metadata" | "status");
    old.keys().chain(new.keys()).filter(own).all(|key| old.get(key) == new.get(key))
}

/// Sets one member of `metadata`; null removes it. Does nothing to a value that is no object.
pub fn set_metadata(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(metadata) = metadata_mut(object) {
        match value.into() {
            Value::Null => {
                metadata.remove(field);
            }
            value => {
                metadata.insert(field.to_owned(), value);
            }
        }
    }
}

/// Sets `metadata.name`.
pub fn set_name(object: &mut Value, name: &str) {
    set_metadata(object, "name", name);
}

/// Sets `metadata.namespace`.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_metadata(object, "namespace", namespace);
}

/// Sets `metadata.uid`.
pub fn set_uid(object: &mut Value, uid: &str) {
    set_metadata(object, "uid", uid);
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(object: &mut Value, resource_version: &str) {
    set_metadata(object, "resourceVersion", resource_version);
}

/// Sets `metadata.creationTimestamp`.
pub fn set_creation_timestamp(object: &mut Value, at: &str) {
    set_metadata(object, "creationTimestamp", at);
}

/// Sets `metadata.generation`.
pub fn set_generation(object: &mut Value, generation: i64) {
    set_metadata(object, "generation", generation);
}

/// Sets one label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    if let Some(labels) = metadata_mut(object).and_then(|m| child_mut(m, "labels")) {
        labels.insert(key.to_owned(), Value::from(value));
    }
}

/// A moment as Kubernetes writes `metav1.Time`: seconds, UTC.
pub fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A moment as Kubernetes writes `metav1.MicroTime`.
pub fn micro_timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads a timestamp in either form.
pub fn parse_timestamp(text: &str) -> Option<jiff::Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn odd_shapes_read_as_empty() {
        for object in [json!(null), json!([]), json!({"metadata": 3}), json!({"metadata": {"name": 1}})] {
            assert_eq!((name(&object), uid(&object), labels(&object).len()), ("", "", 0));
            assert_eq!(finalizers(&object).count(), 0);
        }
    }

    #[test]
    fn setters_make_the_metadata_they_need() {
        let mut object = json!({"kind": "Pod"});
        set_name(&mut object, "a");
        set_namespace(&mut object, "b");
        set_label(&mut object, "k", "v");
        set_metadata(&mut object, "uid", Value::Null);
        assert_eq!(object["metadata"], json!({"name": "a", "namespace": "b", "labels": {"k": "v"}}));
        assert_eq!(key(&object), "b/a");
        assert_eq!(label(&object, "k"), Some("v"));
    }

    #[test]
    fn timestamps_have_kubernetes_precision() {
        let at: jiff::Timestamp = "2024-05-06T07:08:09.123456789Z".parse().unwrap();
        assert_eq!(timestamp(at), "2024-05-06T07:08:09Z");
        assert_eq!(micro_timestamp(at), "2024-05-06T07:08:09.123456Z");
        assert_eq!(parse_timestamp("2024-05-06T07:08:09Z").unwrap().as_second(), 1_714_979_289);
    }
}
