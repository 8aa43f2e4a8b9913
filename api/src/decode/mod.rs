//! The typed check: JSON against the `k8s-openapi` type of its kind.
//!
//! Owns the answer to "is this a Pod at all?": wrong types are refused in the words of Kubernetes' decoder,
//! unknown fields are listed for `fieldValidation`, and [`normalize`] brings an accepted object into the form
//! that a server stores: unknown fields and nulls dropped, quantities canonical. Does not ask whether values
//! make sense; that is [`crate::validation`].

mod reader;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::{FLOW_CONTROL_GROUP, Kind, METRICS_GROUP, RBAC_GROUP};
use crate::object;
use crate::status::{Status, quoted};
use reader::{Edit, Tracker};

/// Checks an object against its kind's type. Gives the texts for unknown fields, such as
/// `unknown field "spec.foo"`.
pub fn decode(kind: &Kind, value: &Value) -> Result<Vec<String>, Status> {
    check_type(kind, value)?;
    Ok(warnings(&track(kind, value)?))
}

/// Checks an object against its kind's type and brings it into stored form: `apiVersion` and `kind` set,
/// unknown fields and nulls dropped, quantities canonical. Gives the texts for the fields dropped.
pub fn normalize(kind: &Kind, value: &mut Value) -> Result<Vec<String>, Status> {
    check_type(kind, value)?;
    let tracker = track(kind, value)?;
    let texts = warnings(&tracker);
    for edit in tracker.edits.into_iter().rev() {
        edit.apply(value);
    }
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), Value::from(kind.api_version()));
        object.insert("kind".to_owned(), Value::from(kind.kind));
    }
    Ok(texts)
}

/// As [`normalize`], for the metadata alone: the rest of a custom object is its schema's.
pub(crate) fn normalize_metadata(kind: &Kind, value: &mut Value) -> Result<Vec<String>, Status> {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    let Some(metadata) = value.get_mut("metadata").filter(|metadata| !metadata.is_null()) else {
        return Ok(Vec::new());
    };
    let mut tracker = Tracker::default();
    check::<ObjectMeta>(metadata, &mut tracker)
        .map_err(|why| refused(kind.kind, &kind.api_version(), &why))?;
    let texts = tracker.edits.iter().filter_map(|edit| match edit {
        Edit::Unknown(path) => {
            Some(format!("unknown field {}", quoted(&format!("metadata.{}", reader::printed(path)))))
        }
        _ => None,
    });
    let texts = texts.collect();
    for edit in tracker.edits.into_iter().rev() {
        edit.apply(metadata);
    }
    Ok(texts)
}

/// Reads an object as a type of `k8s-openapi`, with the errors of Kubernetes' decoder.
pub fn typed<T: DeserializeOwned + k8s_openapi::Resource>(value: &Value) -> Result<T, Status> {
    let mut tracker = Tracker::default();
    reader::read(value, &mut tracker).map_err(|why| refused(T::KIND, T::API_VERSION, &why))
}

/// The error that `fieldValidation=Strict` makes of the texts that [`decode`] gave.
pub fn strict_error(kind: &Kind, texts: &[String]) -> Status {
    refused(kind.kind, &kind.api_version(), &format!("strict decoding error: {}", texts.join(", ")))
}

/// Refuses a body that names another type than its path. Missing `apiVersion` and `kind` are the path's.
pub fn check_type(kind: &Kind, value: &Value) -> Result<(), Status> {
    if !value.is_object() {
        let got = reader::json_type(value);
        return Err(refused(
            kind.kind,
            &kind.api_version(),
            &format!("json: cannot unmarshal {got} into Go value of type {}.{}", kind.version, kind.kind),
        ));
    }
    let (api_version, expected) = (object::api_version(value), kind.api_version());
    if !api_version.is_empty() && api_version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    let found = object::kind(value);
    if !found.is_empty() && found != kind.kind {
        return Err(Status::bad_request(format!(
            "{found} in version {} cannot be handled as a {}: the kind in the data does not match the resource",
            quoted(&expected),
            kind.kind
        )));
    }
    Ok(())
}

fn refused(kind: &str, api_version: &str, why: &str) -> Status {
    // Kubernetes names the version without the group here.
    let (_, version) = crate::kinds::split_api_version(api_version);
    Status::bad_request(format!("{kind} in version {} cannot be handled as a {kind}: {why}", quoted(version)))
}

/// The check of a kind: its type by group, and the type of `k8s-openapi` where it has the kind's name.
macro_rules! checks {
    ($kind:expr, $($group:pat => $module:ident::{$($name:ident),* $(,)?}),* $(,)?) => {
        match ($kind.group, $kind.kind) {
            $($(($group, stringify!($name)) => Some(check::<$module::$name> as Check),)*)*
            _ => None,
        }
    };
}

type Check = fn(&Value, &mut Tracker) -> Result<(), String>;

fn track(kind: &Kind, value: &Value) -> Result<Tracker, Status> {
    let mut tracker = Tracker::default();
    let result = match check_of(kind) {
        Some(check) => check(value, &mut tracker),
        None => Err(format!("no kind {} is registered", quoted(&kind.group_kind()))),
    };
    result.map_err(|why| refused(kind.kind, kind.version, &why))?;
    Ok(tracker)
}

fn check_of(kind: &Kind) -> Option<Check> {
    use crate::{metrics, versions};
    use k8s_openapi::api::{
        admissionregistration::v1 as admissionregistration, apps::v1 as apps,
        authentication::v1 as authentication, authorization::v1 as authorization,
        autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling, batch::v1 as batch,
        certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core,
        discovery::v1 as discovery, events::v1 as events, flowcontrol::v1 as flow_control,
        networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
        scheduling::v1 as scheduling, storage::v1 as storage,
    };
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
    if kind.stored_as.is_some() {
        return checks! { kind,
            "authentication.k8s.io" => versions::{SelfSubjectReview},
            "autoscaling" => autoscaling_v1::{HorizontalPodAutoscaler},
            "events.k8s.io" => events::{Event},
        };
    }
    checks! { kind,
        "" => core::{
            Binding, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret,
            Service, ServiceAccount,
        },
        "admissionregistration.k8s.io" => admissionregistration::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        },
        "apiextensions.k8s.io" => apiextensions::{CustomResourceDefinition},
        "apps" => apps::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        "authentication.k8s.io" => authentication::{SelfSubjectReview, TokenReview},
        "authorization.k8s.io" => authorization::{
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        },
        "autoscaling" => autoscaling::{HorizontalPodAutoscaler},
        "batch" => batch::{CronJob, Job},
        "certificates.k8s.io" => certificates::{CertificateSigningRequest},
        "coordination.k8s.io" => coordination::{Lease},
        "discovery.k8s.io" => discovery::{EndpointSlice},
        FLOW_CONTROL_GROUP => flow_control::{FlowSchema, PriorityLevelConfiguration},
        METRICS_GROUP => metrics::{NodeMetrics, PodMetrics},
        "networking.k8s.io" => networking::{Ingress, IngressClass, NetworkPolicy},
        "node.k8s.io" => node::{RuntimeClass},
        "policy" => policy::{PodDisruptionBudget},
        RBAC_GROUP => rbac::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        "scheduling.k8s.io" => scheduling::{PriorityClass},
        "storage.k8s.io" => storage::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
    }
}

fn check<T: DeserializeOwned>(value: &Value, tracker: &mut Tracker) -> Result<(), String> {
    reader::read::<T>(value, tracker).map(drop)
}

fn warnings(tracker: &Tracker) -> Vec<String> {
    tracker
        .edits
        .iter()
        .filter_map(|edit| match edit {
            Edit::Unknown(path) => Some(format!("unknown field {}", quoted(&reader::printed(path)))),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{by_kind, kinds};
    use serde_json::json;

    fn pod() -> &'static Kind {
        by_kind("", "v1", "Pod").unwrap()
    }

    #[test]
    fn every_kind_has_a_type() {
        for kind in kinds() {
            let mut value = json!({"metadata": {"name": "x"}});
            if kind.kind == "Binding" {
                value["target"] = json!({});
            }
            if kind.kind == "Event" && kind.group.is_empty() {
                value["involvedObject"] = json!({});
            }
            assert_eq!(normalize(kind, &mut value), Ok(Vec::new()), "{}", kind.kind);
            assert_eq!(value["kind"], kind.kind);
        }
    }

    #[test]
    fn unknown_fields_are_listed_and_dropped() {
        let mut value = json!({
            "metadata": {"name": "a", "labels": {"x": "y"}, "nonsense": 1},
            "spec": {"containers": [{"name": "c"}, {"name": "d", "foo": {"bar": 1}}], "baz": null}
        });
        let texts = normalize(pod(), &mut value).unwrap();
        assert_eq!(
            texts,
            [
                "unknown field \"metadata.nonsense\"",
                "unknown field \"spec.baz\"",
                "unknown field \"spec.containers[1].foo\"",
            ]
        );
        assert_eq!(value["spec"], json!({"containers": [{"name": "c"}, {"name": "d"}]}));
        assert_eq!(value["metadata"], json!({"name": "a", "labels": {"x": "y"}}));
        assert_eq!(
            strict_error(pod(), &texts[..1]).message(),
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: \
             unknown field \"metadata.nonsense\""
        );
    }

    #[test]
    fn stored_form_has_canonical_quantities_and_no_nulls() {
        let mut value = json!({
            "metadata": {"name": "a", "creationTimestamp": null, "labels": {"empty": null}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 1, "memory": "1.5Gi"}}}]},
            "status": {}
        });
        normalize(pod(), &mut value).unwrap();
        assert_eq!(
            value,
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "labels": {"empty": ""}},
                "spec": {"containers": [
                    {"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1536Mi"}}}]},
                "status": {}})
        );
    }

    #[test]
    fn wrong_types_are_refused_in_the_decoders_words() {
        for (value, why) in [
            (
                json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": "80"}]}]}}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                json!({"spec": {"containers": [{"name": 3}]}}),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string",
            ),
            (
                json!({"spec": {"containers": {"name": "c"}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type array",
            ),
            (
                json!({"spec": {"terminationGracePeriodSeconds": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
            ),
            (
                json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1 core"}}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            let error = decode(pod(), &value).unwrap_err();
            assert_eq!(error.code(), 400);
            assert_eq!(error.message(), format!("Pod in version \"v1\" cannot be handled as a Pod: {why}"));
        }
        let error = decode(pod(), &json!([1])).unwrap_err();
        assert!(error.message().ends_with("json: cannot unmarshal array into Go value of type v1.Pod"));
    }

    #[test]
    fn a_body_of_another_type_is_refused() {
        let error = decode(pod(), &json!({"apiVersion": "v2"})).unwrap_err();
        assert_eq!(
            error.message(),
            "the API version in the data (v2) does not match the expected API version (v1)"
        );
        assert_eq!(decode(pod(), &json!({"apiVersion": "v1", "kind": "Node"})).unwrap_err().code(), 400);
    }
}
