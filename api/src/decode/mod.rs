//! The typed check: JSON against the `k8s-openapi` type of its kind.
//!
//! Owns the answer to "is this a Pod at all?": wrong types are refused in the words of Kubernetes' decoder,
//! unknown fields are listed for `fieldValidation`, and [`normalize`] brings an accepted object into the form
//! that a server stores: unknown fields and nulls dropped, quantities canonical. Does not ask whether values
//! make sense; that is [`crate::validation`].

mod reader;

use k8s_openapi::api;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::{Kind, RBAC_GROUP};
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

fn track(kind: &Kind, value: &Value) -> Result<Tracker, Status> {
    let mut tracker = Tracker::default();
    let result = match (kind.group, kind.kind) {
        ("", "Binding") => check::<api::core::v1::Binding>(value, &mut tracker),
        ("", "ConfigMap") => check::<api::core::v1::ConfigMap>(value, &mut tracker),
        ("", "Event") => check::<api::core::v1::Event>(value, &mut tracker),
        ("", "Namespace") => check::<api::core::v1::Namespace>(value, &mut tracker),
        ("", "Node") => check::<api::core::v1::Node>(value, &mut tracker),
        ("", "PersistentVolume") => check::<api::core::v1::PersistentVolume>(value, &mut tracker),
        ("", "PersistentVolumeClaim") => check::<api::core::v1::PersistentVolumeClaim>(value, &mut tracker),
        ("", "Pod") => check::<api::core::v1::Pod>(value, &mut tracker),
        ("", "Secret") => check::<api::core::v1::Secret>(value, &mut tracker),
        ("", "ServiceAccount") => check::<api::core::v1::ServiceAccount>(value, &mut tracker),
        ("apps", "Deployment") => check::<api::apps::v1::Deployment>(value, &mut tracker),
        ("apps", "ReplicaSet") => check::<api::apps::v1::ReplicaSet>(value, &mut tracker),
        ("authentication.k8s.io", "SelfSubjectReview") => {
            check::<api::authentication::v1::SelfSubjectReview>(value, &mut tracker)
        }
        ("authentication.k8s.io", "TokenReview") => {
            check::<api::authentication::v1::TokenReview>(value, &mut tracker)
        }
        ("authorization.k8s.io", "LocalSubjectAccessReview") => {
            check::<api::authorization::v1::LocalSubjectAccessReview>(value, &mut tracker)
        }
        ("authorization.k8s.io", "SelfSubjectAccessReview") => {
            check::<api::authorization::v1::SelfSubjectAccessReview>(value, &mut tracker)
        }
        ("authorization.k8s.io", "SelfSubjectRulesReview") => {
            check::<api::authorization::v1::SelfSubjectRulesReview>(value, &mut tracker)
        }
        ("authorization.k8s.io", "SubjectAccessReview") => {
            check::<api::authorization::v1::SubjectAccessReview>(value, &mut tracker)
        }
        (RBAC_GROUP, "ClusterRole") => check::<api::rbac::v1::ClusterRole>(value, &mut tracker),
        (RBAC_GROUP, "ClusterRoleBinding") => check::<api::rbac::v1::ClusterRoleBinding>(value, &mut tracker),
        (RBAC_GROUP, "Role") => check::<api::rbac::v1::Role>(value, &mut tracker),
        (RBAC_GROUP, "RoleBinding") => check::<api::rbac::v1::RoleBinding>(value, &mut tracker),
        ("coordination.k8s.io", "Lease") => check::<api::coordination::v1::Lease>(value, &mut tracker),
        ("storage.k8s.io", "StorageClass") => check::<api::storage::v1::StorageClass>(value, &mut tracker),
        _ => Err(format!("no kind {} is registered", quoted(&kind.group_kind()))),
    };
    result.map_err(|why| refused(kind.kind, kind.version, &why))?;
    Ok(tracker)
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
            if kind.kind == "Event" {
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
