//! A claim that names no storage class, and an Ingress that names no class, get the default one, if the cluster has one.

use api::{Kind, Status, ingress, object};
use serde_json::Value;

use super::stored_in;
use crate::object_store::Consistency;
use crate::registry::Registry;

/// A kind whose objects belong to a class.
struct Rule {
    kind: &'static str,
    group: &'static str,
    /// The member of its `spec` that names the class.
    field: &'static str,
    class: &'static str,
    class_group: &'static str,
    /// What the default class carries.
    annotations: &'static [&'static str],
    /// What an object names its class with that has not the field.
    instead: Option<&'static str>,
}

const RULES: [Rule; 2] = [
    Rule {
        kind: "PersistentVolumeClaim",
        group: "",
        field: "storageClassName",
        class: "StorageClass",
        class_group: "storage.k8s.io",
        annotations: &[
            "storageclass.kubernetes.io/is-default-class",
            // What older definitions of classes carry.
            "storageclass.beta.kubernetes.io/is-default-class",
        ],
        instead: None,
    },
    Rule {
        kind: "Ingress",
        group: "networking.k8s.io",
        field: "ingressClassName",
        class: "IngressClass",
        class_group: "networking.k8s.io",
        annotations: &[ingress::DEFAULT_ANNOTATION],
        instead: Some(ingress::CLASS_ANNOTATION),
    },
];

pub(in crate::registry) async fn admit(
    registry: &Registry,
    kind: &Kind,
    subject: &mut Value,
    consistency: Consistency,
) -> Result<(), Status> {
    let rule = RULES.iter().find(|rule| rule.kind == kind.kind && rule.group == kind.group);
    let Some(rule) = rule else { return Ok(()) };
    // An empty name says that no class is wanted.
    let is_named = subject["spec"].get(rule.field).is_some_and(|name| !name.is_null());
    if is_named || rule.instead.is_some_and(|name| object::annotation(subject, name).is_some()) {
        return Ok(());
    }
    let classes = stored_in(registry, rule.class_group, rule.class, "", consistency).await?;
    let is_default =
        |class: &Value| rule.annotations.iter().any(|name| object::annotation(class, name) == Some("true"));
    let defaults = classes.iter().map(|class| class.value()).filter(|class| is_default(class));
    // Of several the newest counts.
    let newest = defaults.max_by_key(|class| (object::creation_timestamp(class), object::name(class)));
    if let Some(class) = newest
        && let Some(spec) = subject.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert(rule.field.to_owned(), Value::from(object::name(class)));
    }
    Ok(())
}
