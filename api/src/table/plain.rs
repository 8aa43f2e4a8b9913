//! Tables of the kinds that need few columns.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, count_at, integer, name, text, text_at};

pub(super) const OTHER: &[Column] = &[NAME, AGE];
pub(super) const NAMESPACE: &[Column] = &[NAME, text("Status", "The status of the namespace"), AGE];
pub(super) const CONFIG_MAP: &[Column] = &[NAME, integer("Data", "Number of keys held."), AGE];
pub(super) const SECRET: &[Column] =
    &[NAME, text("Type", "Says what the data is for."), integer("Data", "Number of keys held."), AGE];
pub(super) const SERVICE_ACCOUNT: &[Column] =
    &[NAME, integer("Secrets", "Number of secrets that pods of this account may use."), AGE];
pub(super) const LEASE: &[Column] = &[NAME, text("Holder", "Who holds the lease."), AGE];

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
