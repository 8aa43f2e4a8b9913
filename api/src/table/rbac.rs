//! Tables of roles and of what binds them.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, list_at, name, text, text_at, wide};
use crate::object;

pub(super) const ROLE: &[Column] =
    &[NAME, Column { ty: "date", ..text("Created At", "When the object was made by the server.") }];
pub(super) const BINDING: &[Column] = &[
    NAME,
    text("Role", "The role that is bound."),
    AGE,
    wide(text("Users", "Users who have the role.")),
    wide(text("Groups", "Groups that have the role.")),
    wide(text("ServiceAccounts", "Service accounts that have the role.")),
];

pub(super) fn role(object: &Value) -> Vec<Value> {
    vec![name(object), object::creation_timestamp(object).into()]
}

pub(super) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", text_at(object, "/roleRef/kind"), text_at(object, "/roleRef/name"));
    let subjects = |kind: &str| -> Value {
        let named = list_at(object, "/subjects").iter().filter(|subject| subject["kind"] == kind);
        let names = named.map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text_at(subject, "/namespace"), text_at(subject, "/name")),
            _ => text_at(subject, "/name").to_owned(),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    vec![
        name(object),
        role.into(),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
