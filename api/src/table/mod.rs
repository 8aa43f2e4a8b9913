//! Tables: what `kubectl get` prints.
//!
//! Owns, per kind, the columns and the cells' texts, as a `meta.k8s.io/v1` `Table`. Promises the very words of
//! the Kubernetes server. Does not format for a terminal; that is the client's.

mod event;
mod flow_control;
mod network;
mod node;
mod plain;
mod pod;
mod policy;
mod rbac;
mod storage;
mod workload;

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::duration;
use crate::kinds::{FLOW_CONTROL_GROUP, Kind, METRICS_GROUP, RBAC_GROUP};
use crate::object;
use crate::versions;

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

/// Reads a row from an object, as of a moment.
type ReadRow = fn(&Value, Timestamp) -> Row;

/// Columns of a kind, and how the cells of a row are read.
fn layout(kind: &Kind) -> (&'static [Column], ReadRow) {
    match (kind.group, kind.kind) {
        ("", "Pod") => (pod::COLUMNS, pod::row),
        ("", "ConfigMap") => (plain::CONFIG_MAP, |object, now| plain::config_map(object, now).into()),
        ("", "Endpoints") => (network::ENDPOINTS, |object, now| network::endpoints(object, now).into()),
        ("", "Event") => (event::COLUMNS, |object, now| event::row(object, now).into()),
        ("", "LimitRange") => (policy::LIMIT_RANGE, |object, _| policy::limit_range(object).into()),
        ("", "Namespace") => (plain::NAMESPACE, |object, now| plain::namespace(object, now).into()),
        ("", "Node") => (node::COLUMNS, |object, now| node::row(object, now).into()),
        ("", "PersistentVolume") => (storage::VOLUME, |object, now| storage::volume(object, now).into()),
        ("", "PersistentVolumeClaim") => (storage::CLAIM, |object, now| storage::claim(object, now).into()),
        ("", "PodTemplate") => (workload::POD_TEMPLATE, |object, _| workload::pod_template(object).into()),
        ("", "ReplicationController") => {
            (workload::REPLICA_SET, |object, now| workload::replication_controller(object, now).into())
        }
        ("", "ResourceQuota") => (policy::QUOTA, |object, now| policy::quota(object, now).into()),
        ("", "Secret") => (plain::SECRET, |object, now| plain::secret(object, now).into()),
        ("", "Service") => (network::SERVICE, |object, now| network::service(object, now).into()),
        ("", "ServiceAccount") => {
            (plain::SERVICE_ACCOUNT, |object, now| plain::service_account(object, now).into())
        }
        (_, "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            (policy::WEBHOOKS, |object, now| policy::webhooks(object, now).into())
        }
        (_, "ValidatingAdmissionPolicy") => {
            (policy::ADMISSION_POLICY, |object, now| policy::admission_policy(object, now).into())
        }
        (_, "ValidatingAdmissionPolicyBinding") => {
            (policy::ADMISSION_BINDING, |object, now| policy::admission_binding(object, now).into())
        }
        ("apps", "ControllerRevision") => {
            (workload::CONTROLLER_REVISION, |object, now| workload::controller_revision(object, now).into())
        }
        ("apps", "DaemonSet") => {
            (workload::DAEMON_SET, |object, now| workload::daemon_set(object, now).into())
        }
        ("apps", "Deployment") => {
            (workload::DEPLOYMENT, |object, now| workload::deployment(object, now).into())
        }
        ("apps", "ReplicaSet") => {
            (workload::REPLICA_SET, |object, now| workload::replica_set(object, now).into())
        }
        ("apps", "StatefulSet") => {
            (workload::STATEFUL_SET, |object, now| workload::stateful_set(object, now).into())
        }
        ("autoscaling", "HorizontalPodAutoscaler") => {
            (policy::AUTOSCALER, |object, now| policy::autoscaler(object, now).into())
        }
        ("batch", "CronJob") => (workload::CRON_JOB, |object, now| workload::cron_job(object, now).into()),
        ("batch", "Job") => (workload::JOB, |object, now| workload::job(object, now).into()),
        ("certificates.k8s.io", _) => {
            (policy::CERTIFICATE_REQUEST, |object, now| policy::certificate_request(object, now).into())
        }
        ("coordination.k8s.io", "Lease") => (plain::LEASE, |object, now| plain::lease(object, now).into()),
        ("discovery.k8s.io", "EndpointSlice") => {
            (network::SLICE, |object, now| network::slice(object, now).into())
        }
        (METRICS_GROUP, "NodeMetrics") => (plain::METRICS, |object, _| plain::node_metrics(object).into()),
        (METRICS_GROUP, _) => (plain::METRICS, |object, _| plain::pod_metrics(object).into()),
        ("networking.k8s.io", "Ingress") => {
            (network::INGRESS, |object, now| network::ingress(object, now).into())
        }
        ("networking.k8s.io", "IngressClass") => {
            (network::INGRESS_CLASS, |object, now| network::ingress_class(object, now).into())
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            (network::POLICY, |object, now| network::policy(object, now).into())
        }
        ("node.k8s.io", "RuntimeClass") => {
            (policy::RUNTIME_CLASS, |object, now| policy::runtime_class(object, now).into())
        }
        (FLOW_CONTROL_GROUP, "FlowSchema") => {
            (flow_control::FLOW_SCHEMA, |object, now| flow_control::flow_schema(object, now).into())
        }
        (FLOW_CONTROL_GROUP, "PriorityLevelConfiguration") => {
            (flow_control::PRIORITY_LEVEL, |object, now| flow_control::priority_level(object, now).into())
        }
        ("policy", "PodDisruptionBudget") => {
            (policy::DISRUPTION_BUDGET, |object, now| policy::disruption_budget(object, now).into())
        }
        (RBAC_GROUP, "ClusterRole" | "Role") => (rbac::ROLE, |object, _| rbac::role(object).into()),
        (RBAC_GROUP, "ClusterRoleBinding" | "RoleBinding") => {
            (rbac::BINDING, |object, now| rbac::binding(object, now).into())
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            (policy::PRIORITY_CLASS, |object, now| policy::priority_class(object, now).into())
        }
        ("storage.k8s.io", "CSIDriver") => {
            (policy::CSI_DRIVER, |object, now| policy::csi_driver(object, now).into())
        }
        ("storage.k8s.io", "CSINode") => {
            (policy::CSI_NODE, |object, now| policy::csi_node(object, now).into())
        }
        ("storage.k8s.io", "CSIStorageCapacity") => {
            (policy::CSI_CAPACITY, |object, _| policy::csi_capacity(object).into())
        }
        ("storage.k8s.io", "StorageClass") => {
            (storage::CLASS, |object, now| storage::class(object, now).into())
        }
        ("storage.k8s.io", "VolumeAttachment") => {
            (policy::ATTACHMENT, |object, now| policy::attachment(object, now).into())
        }
        _ => (plain::OTHER, |object, now| plain::other(object, now).into()),
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
    let mut ordered: Vec<(Cow<'_, Value>, &Value)> =
        objects.iter().map(|object| (stored(kind, object), object)).collect();
    if kind.kind == "Event" && kind.stored_group().is_empty() {
        ordered.sort_by_key(|(stored, _)| event::last_seen(stored));
    }
    let (columns, row) = layout(kind.stored_kind());
    let rows: Vec<Value> = ordered
        .into_iter()
        .map(|(stored, object)| {
            let row = row(&stored, now);
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
    let columns: Vec<Value> = columns
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

/// The object in the form that rows are read from.
fn stored<'a>(kind: &Kind, object: &'a Value) -> Cow<'a, Value> {
    match kind.stored_as {
        None => Cow::Borrowed(object),
        Some(_) => Cow::Owned(versions::as_stored(kind, object).1),
    }
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
