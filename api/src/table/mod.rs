//! Tables: what `kubectl get` prints.
//!
//! Owns, per kind, the columns and the cells' texts, as a `meta.k8s.io/v1` `Table`. Promises the very words of
//! the Kubernetes server. Does not format for a terminal; that is the client's.

mod event;
mod node;
mod plain;
mod pod;
mod rbac;
mod storage;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::duration;
use crate::kinds::{Kind, RBAC_GROUP};
use crate::object;

/// What each row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Reads the `includeObject` query parameter; empty means the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// One column. Priority 0 is always printed, 1 with `-o wide`.
#[derive(Debug, Clone, Copy)]
struct Column {
    name: &'static str,
    ty: &'static str,
    format: &'static str,
    description: &'static str,
    priority: i32,
}

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", format: "", description, priority: 0 }
}

const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "integer", format: "", description, priority: 0 }
}

const fn wide(column: Column) -> Column {
    Column { priority: 1, ..column }
}

const NAME: Column = Column {
    format: "name",
    ..text(
        "Name",
        "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically.",
    )
};
const AGE: Column = text(
    "Age",
    "CreationTimestamp is the time when the object was made by the server. It is set by the server and read-only for clients.",
);

/// One row: its cells in column order, and the conditions that say a pod has come to its end.
struct Row {
    cells: Vec<Value>,
    conditions: Option<Value>,
}

impl From<Vec<Value>> for Row {
    fn from(cells: Vec<Value>) -> Self {
        Self { cells, conditions: None }
    }
}

fn columns(kind: &Kind) -> &'static [Column] {
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::COLUMNS,
        ("", "Node") => node::COLUMNS,
        ("", "Event") => event::COLUMNS,
        ("", "Namespace") => plain::NAMESPACE,
        ("", "ConfigMap") => plain::CONFIG_MAP,
        ("", "Secret") => plain::SECRET,
        ("", "ServiceAccount") => plain::SERVICE_ACCOUNT,
        ("", "PersistentVolume") => storage::VOLUME,
        ("", "PersistentVolumeClaim") => storage::CLAIM,
        ("storage.k8s.io", "StorageClass") => storage::CLASS,
        ("apps", "Deployment") => workload::DEPLOYMENT,
        ("apps", "ReplicaSet") => workload::REPLICA_SET,
        ("coordination.k8s.io", "Lease") => plain::LEASE,
        (RBAC_GROUP, "ClusterRole" | "Role") => rbac::ROLE,
        (RBAC_GROUP, "ClusterRoleBinding" | "RoleBinding") => rbac::BINDING,
        _ => plain::OTHER,
    }
}

fn row(kind: &Kind, object: &Value, now: Timestamp) -> Row {
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::row(object, now),
        ("", "Node") => node::row(object, now).into(),
        ("", "Event") => event::row(object, now).into(),
        ("", "Namespace") => plain::namespace(object, now).into(),
        ("", "ConfigMap") => plain::config_map(object, now).into(),
        ("", "Secret") => plain::secret(object, now).into(),
        ("", "ServiceAccount") => plain::service_account(object, now).into(),
        ("", "PersistentVolume") => storage::volume(object, now).into(),
        ("", "PersistentVolumeClaim") => storage::claim(object, now).into(),
        ("storage.k8s.io", "StorageClass") => storage::class(object, now).into(),
        ("apps", "Deployment") => workload::deployment(object, now).into(),
        ("apps", "ReplicaSet") => workload::replica_set(object, now).into(),
        ("coordination.k8s.io", "Lease") => plain::lease(object, now).into(),
        (RBAC_GROUP, "ClusterRole" | "Role") => rbac::role(object).into(),
        (RBAC_GROUP, "ClusterRoleBinding" | "RoleBinding") => rbac::binding(object, now).into(),
        _ => plain::other(object, now).into(),
    }
}

/// A `meta.k8s.io/v1` `Table` of the objects, in their order (events: oldest first). `list_meta` becomes the
/// table's metadata.
pub fn table(
    kind: &Kind,
    objects: &[Value],
    now: Timestamp,
    include: IncludeObject,
    list_meta: Value,
) -> Value {
    let mut ordered: Vec<&Value> = objects.iter().collect();
    if kind.group.is_empty() && kind.kind == "Event" {
        ordered.sort_by_key(|e| event::last_seen(e));
    }
    let rows: Vec<Value> = ordered
        .into_iter()
        .map(|object| {
            let row = row(kind, object, now);
            let mut value = json!({"cells": row.cells});
            if let Some(conditions) = row.conditions {
                value["conditions"] = conditions;
            }
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => value["object"] = partial_metadata(object),
                IncludeObject::Object => value["object"] = object.clone(),
            }
            value
        })
        .collect();
    let columns: Vec<Value> = columns(kind)
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.ty, "format": c.format, "description": c.description,
                "priority": c.priority})
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// The object's metadata alone, as a `PartialObjectMetadata`.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn name(object: &Value) -> Value {
    Value::from(object::name(object))
}

fn age(object: &Value, now: Timestamp) -> Value {
    Value::from(duration::since_field(object.pointer("/metadata/creationTimestamp"), now))
}

/// The text at a pointer, or empty.
fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The items at a pointer, or none.
fn list_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The number of members or items at a pointer.
fn count_at(value: &Value, pointer: &str) -> usize {
    match value.pointer(pointer) {
        Some(Value::Object(members)) => members.len(),
        Some(Value::Array(items)) => items.len(),
        _ => 0,
    }
}

/// The text, or what is printed for none.
fn or(text: &str, otherwise: &str) -> Value {
    Value::from(if text.is_empty() { otherwise } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{by_kind, kinds};

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let now = "2024-01-01T00:00:00Z".parse().unwrap();
        for kind in kinds() {
            let table = table(kind, &[json!({})], now, IncludeObject::None, json!({}));
            assert_eq!(
                table["columnDefinitions"].as_array().unwrap().len(),
                table["rows"][0]["cells"].as_array().unwrap().len(),
                "{}",
                kind.kind
            );
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let kind = by_kind("", "v1", "ConfigMap").unwrap();
        let now = "2024-01-01T00:00:10Z".parse().unwrap();
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "data": {"x": "1", "y": "2"}, "binaryData": {"z": "AA=="}});
        let list_meta = json!({"resourceVersion": "7"});
        let table_of = |include| table(kind, std::slice::from_ref(&object), now, include, list_meta.clone());
        let value = table_of(IncludeObject::Metadata);
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        assert_eq!(value["rows"][0]["cells"], json!(["a", 3, "10s"]));
        assert_eq!(value["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert!(value["rows"][0]["object"].get("data").is_none());
        assert_eq!(table_of(IncludeObject::Object)["rows"][0]["object"], object);
        assert!(table_of(IncludeObject::None)["rows"][0].get("object").is_none());
    }
}
