//! Tables of the kinds that need few columns.

use jiff::Timestamp;
use serde_json::Value;

use crate::Quantity;

use super::{AGE, Column, NAME, age, count_at, integer, name, text, text_at};

pub(super) const OTHER: &[Column] = &[NAME, AGE];
pub(super) const NAMESPACE: &[Column] = &[NAME, text("Status", "The status of the namespace"), AGE];
pub(super) const CONFIG_MAP: &[Column] = &[NAME, integer("Data", "Number of keys held."), AGE];
pub(super) const SECRET: &[Column] =
    &[NAME, text("Type", "Says what the data is for."), integer("Data", "Number of keys held."), AGE];
pub(super) const SERVICE_ACCOUNT: &[Column] =
    &[NAME, integer("Secrets", "Number of secrets that pods of this account may use."), AGE];
pub(super) const LEASE: &[Column] = &[NAME, text("Holder", "Who holds the lease."), AGE];

/// What nodes and pods use.
pub(super) const METRICS: &[Column] = &[
    NAME,
    text("CPU", "What is used of CPUs."),
    text("Memory", "Memory that cannot be given back at once."),
    text("Window", "How long was measured."),
];

pub(super) fn node_metrics(object: &Value) -> Vec<Value> {
    metrics(object, std::iter::once(&object["usage"]))
}

pub(super) fn pod_metrics(object: &Value) -> Vec<Value> {
    let containers = object["containers"].as_array().into_iter().flatten();
    metrics(object, containers.map(|container| &container["usage"]))
}

fn metrics<'a>(object: &Value, usages: impl Iterator<Item = &'a Value> + Clone) -> Vec<Value> {
    let sum = |resource: &str| {
        let amounts = usages.clone().filter_map(|usage| Quantity::parse(usage[resource].as_str()?).ok());
        amounts.map(|amount| amount.milli_value()).fold(0, i64::saturating_add)
    };
    let memory_mi = sum("memory") / 1000 / (1 << 20);
    vec![
        name(object),
        format!("{}m", sum("cpu")).into(),
        format!("{memory_mi}Mi").into(),
        text_at(object, "/window").into(),
    ]
}

pub(super) fn other(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text_at(object, "/status/phase").into(), age(object, now)]
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), (count_at(object, "/data") + count_at(object, "/binaryData")).into(), age(object, now)]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text_at(object, "/type").into(), count_at(object, "/data").into(), age(object, now)]
}

pub(super) fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), count_at(object, "/secrets").into(), age(object, now)]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text_at(object, "/spec/holderIdentity").into(), age(object, now)]
}
