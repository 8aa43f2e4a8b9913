//! Validation: whether an object's values make sense.
//!
//! Owns, per kind, the causes for which a create or an update is refused, in Kubernetes' words. Works on
//! objects with defaults filled in. Looks at no other object than the one and its predecessor.

mod affinity;
mod batch;
mod container;
mod data;
mod ephemeral;
mod flow_control;
mod handler;
mod metadata;
mod network;
mod node;
mod pod;
mod pod_update;
mod policy;
mod rbac;
mod registration;
mod resources;
mod service;
mod small;
mod storage;
mod volume;
mod workload;

pub use ephemeral::ephemeral_containers;
pub(crate) use registration::client_config;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::decode;
use crate::kinds::{EXTENSIONS_GROUP, FLOW_CONTROL_GROUP, Kind, RBAC_GROUP};
use crate::object;
use crate::status::Cause;
use crate::versions;

/// Most bytes of all annotations of an object together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of a ConfigMap's or Secret's data.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

/// Why the object may not be created; empty when it may.
pub fn create(kind: &Kind, object: &Value) -> Vec<Cause> {
    if kind.stored_as.is_some() {
        let (stored_kind, stored) = versions::as_stored(kind, object);
        let mut causes = create(stored_kind, &stored);
        versions::check_create(kind, &stored, &mut causes);
        return causes;
    }
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
    if kind.stored_as.is_some() {
        let ((stored_kind, old), (_, new)) = (versions::as_stored(kind, old), versions::as_stored(kind, new));
        let mut causes = update(stored_kind, &old, &new);
        versions::check_update(kind, &old, &new, &mut causes);
        return causes;
    }
    let mut causes = Vec::new();
    metadata::update(kind, old, new, &mut causes);
    // What was stored is valid: only what changes is looked at again.
    if !object::same_but_metadata_and_status(old, new) {
        spec(kind, new, &mut causes);
    }
    change(kind, old, new, &mut causes);
    causes
}

/// What of a kind may not change as it likes.
fn change(kind: &Kind, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    match (kind.group, kind.kind) {
        ("", "ConfigMap" | "Secret") => data::update(old, new, causes),
        ("", "Node") => node::update(old, new, causes),
        ("", "PersistentVolume") => storage::volume_update(old, new, causes),
        ("", "PersistentVolumeClaim") => storage::claim_update(old, new, causes),
        ("", "Pod") => pod_update::check(old, new, causes),
        ("", "ResourceQuota") => policy::quota_update(old, new, causes),
        ("", "Service") => service::update(old, new, causes),
        (EXTENSIONS_GROUP, "CustomResourceDefinition") => {
            crate::crd::definition::check_update(old, new, causes)
        }
        ("apps", "ControllerRevision") => workload::controller_revision_update(old, new, causes),
        ("apps", "DaemonSet" | "Deployment" | "ReplicaSet") => workload::update(old, new, causes),
        ("apps", "StatefulSet") => workload::stateful_set_update(old, new, causes),
        ("batch", "Job") => batch::job_update(old, new, causes),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            registration::certificate_request_update(old, new, causes);
        }
        ("discovery.k8s.io", "EndpointSlice") => service::slice_update(old, new, causes),
        ("networking.k8s.io", "IngressClass") => network::ingress_class_update(old, new, causes),
        ("node.k8s.io", "RuntimeClass") => registration::runtime_class_update(old, new, causes),
        (RBAC_GROUP, "ClusterRoleBinding" | "RoleBinding") => rbac::binding_update(old, new, causes),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority_class_update(old, new, causes),
        ("storage.k8s.io", "StorageClass") => storage::class_update(old, new, causes),
        ("storage.k8s.io", "VolumeAttachment") => registration::volume_attachment_update(old, new, causes),
        _ => {}
    }
}

fn spec(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    match kind.group {
        "" => core(kind, object, causes),
        "apps" | "autoscaling" | "batch" | "policy" => workloads(kind, object, causes),
        _ => others(kind, object, causes),
    }
}

fn core(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    match kind.kind {
        "Binding" => small::binding(object, causes),
        "ConfigMap" => data::config_map(object, causes),
        "Endpoints" => typed(object, causes, service::endpoints),
        "Event" => small::event(object, causes),
        "LimitRange" => typed(object, causes, policy::limit_range),
        "Namespace" => small::namespace(object, causes),
        "Node" => typed(object, causes, node::check),
        "PersistentVolume" => typed(object, causes, storage::volume),
        "PersistentVolumeClaim" => typed(object, causes, storage::claim),
        "Pod" => typed(object, causes, pod::check),
        "PodTemplate" => typed(object, causes, workload::pod_template),
        "ReplicationController" => typed(object, causes, workload::replication_controller),
        "ResourceQuota" => typed(object, causes, policy::quota),
        "Secret" => data::secret(object, causes),
        "Service" => typed(object, causes, service::check),
        _ => {}
    }
}

fn workloads(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    match kind.kind {
        "ControllerRevision" => typed(object, causes, workload::controller_revision),
        "CronJob" => typed(object, causes, batch::cron_job),
        "DaemonSet" => typed(object, causes, workload::daemon_set),
        "Deployment" => typed(object, causes, workload::deployment),
        "HorizontalPodAutoscaler" => typed(object, causes, policy::autoscaler),
        "Job" => typed(object, causes, batch::job),
        "PodDisruptionBudget" => typed(object, causes, policy::disruption_budget),
        "ReplicaSet" => typed(object, causes, workload::replica_set),
        "StatefulSet" => typed(object, causes, workload::stateful_set),
        _ => {}
    }
}

fn others(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    match (kind.group, kind.kind) {
        (EXTENSIONS_GROUP, "CustomResourceDefinition") => crate::crd::definition::check(object, causes),
        (_, "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            registration::webhooks(object, causes);
        }
        (_, "ValidatingAdmissionPolicy") => registration::admission_policy(object, causes),
        (_, "ValidatingAdmissionPolicyBinding") => registration::admission_policy_binding(object, causes),
        ("certificates.k8s.io", _) => registration::certificate_request(object, causes),
        ("coordination.k8s.io", "Lease") => small::lease(object, causes),
        ("discovery.k8s.io", "EndpointSlice") => typed(object, causes, service::slice),
        (FLOW_CONTROL_GROUP, "FlowSchema") => flow_control::flow_schema(object, causes),
        (FLOW_CONTROL_GROUP, "PriorityLevelConfiguration") => flow_control::priority_level(object, causes),
        ("networking.k8s.io", "Ingress") => typed(object, causes, network::ingress),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(object, causes),
        ("networking.k8s.io", "NetworkPolicy") => typed(object, causes, network::policy),
        ("node.k8s.io", "RuntimeClass") => registration::runtime_class(object, causes),
        (RBAC_GROUP, "ClusterRole") => rbac::cluster_role(object, causes),
        (RBAC_GROUP, "ClusterRoleBinding") => rbac::binding(kind, object, causes),
        (RBAC_GROUP, "Role") => rbac::role(object, causes),
        (RBAC_GROUP, "RoleBinding") => rbac::binding(kind, object, causes),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority_class(object, causes),
        ("storage.k8s.io", "CSIDriver") => registration::csi_driver(object, causes),
        ("storage.k8s.io", "StorageClass") => storage::class(object, causes),
        ("storage.k8s.io", "VolumeAttachment") => registration::volume_attachment(object, causes),
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
