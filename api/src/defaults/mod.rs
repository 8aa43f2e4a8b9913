//! Defaults: what a server fills in before it validates and stores an object.
//!
//! Owns, per kind, the values of fields that the writer left out. Promises to be idempotent and to leave
//! alone what is set. Does not assign identity (uid, timestamps, resource version) and draws on no other
//! object.

mod flow_control;
mod network;
mod pod;
mod policy;
mod rbac;
mod small;
mod workload;

use serde_json::{Map, Value};

use crate::kinds::{EXTENSIONS_GROUP, FLOW_CONTROL_GROUP, Kind, RBAC_GROUP};
use crate::versions;

/// Fills in the defaults of the kind. Run it on objects that [`crate::decode::normalize`] accepted.
pub fn apply(kind: &Kind, object: &mut Value) {
    if kind.stored_as.is_some() {
        let (stored_kind, mut stored) = versions::as_stored(kind, object);
        apply(stored_kind, &mut stored);
        versions::show(kind, &mut stored);
        *object = stored;
        return;
    }
    match (kind.group, kind.kind) {
        (EXTENSIONS_GROUP, "CustomResourceDefinition") => crate::crd::definition::defaults(object),
        ("", "Endpoints") => network::endpoints(object),
        ("", "Event") => small::event(object),
        ("", "LimitRange") => policy::limit_range(object),
        ("", "Namespace") => small::namespace(object),
        ("", "Node") => small::node(object),
        ("", "PersistentVolume") => small::persistent_volume(object),
        ("", "PersistentVolumeClaim") => small::persistent_volume_claim(object),
        ("", "Pod") => pod::apply(object),
        ("", "PodTemplate") => workload::pod_template(object),
        ("", "ReplicationController") => workload::replication_controller(object),
        ("", "Secret") => small::secret(object),
        ("", "Service") => network::service(object),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => policy::webhooks(object, true),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => policy::webhooks(object, false),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => policy::admission_policy(object),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            policy::admission_policy_binding(object);
        }
        ("apps", "DaemonSet") => workload::daemon_set(object),
        ("apps", "Deployment") => workload::deployment(object),
        ("apps", "ReplicaSet") => workload::replica_set(object),
        ("apps", "StatefulSet") => workload::stateful_set(object),
        ("autoscaling", "HorizontalPodAutoscaler") => workload::horizontal_pod_autoscaler(object),
        ("batch", "CronJob") => workload::cron_job(object),
        ("batch", "Job") => workload::job(object),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object),
        (FLOW_CONTROL_GROUP, "FlowSchema") => flow_control::flow_schema(object),
        (FLOW_CONTROL_GROUP, "PriorityLevelConfiguration") => flow_control::priority_level(object),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(object),
        ("networking.k8s.io", "NetworkPolicy") => network::network_policy(object),
        (RBAC_GROUP, "ClusterRoleBinding" | "RoleBinding") => rbac::binding(object),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority_class(object),
        ("storage.k8s.io", "CSIDriver") => policy::csi_driver(object),
        ("storage.k8s.io", "StorageClass") => small::storage_class(object),
        _ => {}
    }
}

/// Sets a member that is missing or null.
fn set(parent: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if parent.get(key).is_none_or(Value::is_null) {
        parent.insert(key.to_owned(), value.into());
    }
}

/// The objects in the list `key`.
fn items<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    parent.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// The member `key` when it is an object.
fn child<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    parent.get_mut(key)?.as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::kinds;
    use serde_json::json;

    #[test]
    fn defaults_are_idempotent_and_stand_odd_shapes() {
        for kind in kinds() {
            for object in [
                json!({"metadata": {"name": "x"}}),
                json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
            ] {
                let mut once = object.clone();
                apply(kind, &mut once);
                let mut twice = once.clone();
                apply(kind, &mut twice);
                assert_eq!(once, twice, "{}", kind.kind);
            }
            for mut odd in [json!(null), json!([]), json!({"spec": 1, "status": [], "metadata": "x"})] {
                apply(kind, &mut odd);
            }
        }
    }
}
