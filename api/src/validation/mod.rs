//! Validation: whether an object's values make sense.
//!
//! Owns, per kind, the causes for which a create or an update is refused, in Kubernetes' words. Works on
//! objects with defaults filled in. Looks at no other object than the one and its predecessor.

mod affinity;
mod container;
mod data;
mod ephemeral;
mod handler;
mod metadata;
mod node;
mod pod;
mod pod_update;
mod rbac;
mod resources;
mod small;
mod storage;
mod volume;
mod workload;

pub use ephemeral::ephemeral_containers;
use k8s_openapi::api;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::decode;
use crate::kinds::{Kind, RBAC_GROUP};
use crate::status::Cause;

/// Most bytes of all annotations of an object together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of a ConfigMap's or Secret's data.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

/// Why the object may not be created; empty when it may.
pub fn create(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !kind.virtual_only {
        metadata::create(kind, object, &mut causes);
    }
    spec(kind, object, &mut causes);
    if kind.kind == "Pod" {
        pod::create_only(object, &mut causes);
    }
    causes
}

/// Why the object may not replace its predecessor; empty when it may.
pub fn update(kind: &Kind, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    metadata::update(kind, old, new, &mut causes);
    // What was stored is valid: only what changes is looked at again.
    if !same_but_metadata_and_status(old, new) {
        spec(kind, new, &mut causes);
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => pod_update::check(old, new, &mut causes),
        ("apps", "Deployment" | "ReplicaSet") => workload::update(old, new, &mut causes),
        ("", "Node") => node::update(old, new, &mut causes),
        ("", "ConfigMap" | "Secret") => data::update(old, new, &mut causes),
        ("", "PersistentVolume") => storage::volume_update(old, new, &mut causes),
        ("", "PersistentVolumeClaim") => storage::claim_update(old, new, &mut causes),
        ("storage.k8s.io", "StorageClass") => storage::class_update(old, new, &mut causes),
        (RBAC_GROUP, "ClusterRoleBinding" | "RoleBinding") => rbac::binding_update(old, new, &mut causes),
        _ => {}
    }
    causes
}

fn same_but_metadata_and_status(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return false };
    let own = |key: &&String| !matches!(key.as_str(), "metadata" | "status");
    old.keys().chain(new.keys()).filter(own).all(|key| old.get(key) == new.get(key))
}

fn spec(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    match (kind.group, kind.kind) {
        ("", "Pod") => typed(object, causes, |p: &api::core::v1::Pod, causes| pod::check(p, causes)),
        ("", "Node") => typed(object, causes, |n: &api::core::v1::Node, causes| node::check(n, causes)),
        ("apps", "Deployment") => {
            typed(object, causes, |d: &api::apps::v1::Deployment, causes| workload::deployment(d, causes))
        }
        ("apps", "ReplicaSet") => {
            typed(object, causes, |r: &api::apps::v1::ReplicaSet, causes| workload::replica_set(r, causes))
        }
        ("", "ConfigMap") => data::config_map(object, causes),
        ("", "Secret") => data::secret(object, causes),
        ("", "Event") => small::event(object, causes),
        ("", "Namespace") => small::namespace(object, causes),
        ("", "Binding") => small::binding(object, causes),
        ("", "PersistentVolume") => {
            typed(object, causes, |v: &api::core::v1::PersistentVolume, causes| storage::volume(v, causes))
        }
        ("", "PersistentVolumeClaim") => {
            typed(object, causes, |c: &api::core::v1::PersistentVolumeClaim, causes| {
                storage::claim(c, causes)
            })
        }
        (RBAC_GROUP, "ClusterRole") => rbac::cluster_role(object, causes),
        (RBAC_GROUP, "ClusterRoleBinding") => rbac::binding(kind, object, causes),
        (RBAC_GROUP, "Role") => rbac::role(object, causes),
        (RBAC_GROUP, "RoleBinding") => rbac::binding(kind, object, causes),
        ("storage.k8s.io", "StorageClass") => storage::class(object, causes),
        ("coordination.k8s.io", "Lease") => small::lease(object, causes),
        _ => {}
    }
}

/// Runs a check on the typed form. An object that has none was not decoded before; that is the cause then.
fn typed<T: DeserializeOwned + k8s_openapi::Resource>(
    object: &Value,
    causes: &mut Vec<Cause>,
    check: impl FnOnce(&T, &mut Vec<Cause>),
) {
    match decode::typed::<T>(object) {
        Ok(typed) => check(&typed, causes),
        Err(status) => causes.push(Cause {
            field: String::new(),
            kind: crate::status::CauseKind::TypeInvalid,
            message: status.message().to_owned(),
        }),
    }
}

/// Adds an `Invalid value` cause for each message of a name check.
fn invalid_each(field: &str, value: &str, messages: Vec<String>, causes: &mut Vec<Cause>) {
    causes.extend(messages.iter().map(|message| Cause::invalid(field, value, message)));
}

fn not_negative(field: &str, value: impl Into<i64>, causes: &mut Vec<Cause>) {
    let value = value.into();
    if value < 0 {
        causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
    }
}

/// A text that must be one of a few; empty is `Required`.
fn one_of(field: &str, value: &str, supported: &[&str], causes: &mut Vec<Cause>) {
    if value.is_empty() {
        causes.push(Cause::required(field, ""));
    } else if !supported.contains(&value) {
        causes.push(Cause::not_supported(field, value, supported));
    }
}

#[cfg(test)]
mod tests;
