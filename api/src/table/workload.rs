//! Tables of what makes pods of a template.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;

use super::{AGE, Column, NAME, age, integer, list_at, name, text, wide};
use crate::selector::LabelSelector;

const CONTAINERS: Column = wide(text("Containers", "Names of each container in the template."));
const IMAGES: Column = wide(text("Images", "Images referenced by each container in the template."));
const SELECTOR: Column = wide(text("Selector", "Which pods are its own."));

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Number of the pod with ready state"),
    integer("Up-to-date", "Pods made of the newest template."),
    integer("Available", "Pods that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    integer("Desired", "How many pods there should be."),
    integer("Current", "How many there are."),
    integer("Ready", "How many are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn count(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn template(object: &Value) -> [Value; 3] {
    let containers = list_at(object, "/spec/template/spec/containers");
    let each = |field: &str| -> Value {
        let texts = containers.iter().map(|container| container[field].as_str().unwrap_or_default());
        texts.collect::<Vec<_>>().join(",").into()
    };
    let selector = serde_json::from_value::<meta::LabelSelector>(object["spec"]["selector"].clone()).ok();
    let selector = LabelSelector::from_typed(selector.as_ref());
    let selector = selector.map_or_else(|why| why, |selector| selector.to_string());
    [each("name"), each("image"), selector.into()]
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"));
    let mut cells = vec![
        name(object),
        ready.into(),
        count(object, "/status/updatedReplicas").into(),
        count(object, "/status/availableReplicas").into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![
        name(object),
        count(object, "/spec/replicas").into(),
        count(object, "/status/replicas").into(),
        count(object, "/status/readyReplicas").into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}
