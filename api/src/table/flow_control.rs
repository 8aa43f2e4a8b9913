//! Tables of FlowSchemas and PriorityLevelConfigurations.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, integer, list_at, name, or, text, text_at};

pub(super) const FLOW_SCHEMA: &[Column] = &[
    NAME,
    text("PriorityLevel", "The level that its requests belong to."),
    integer("MatchingPrecedence", "The lower, the earlier it is asked."),
    text("DistinguisherMethod", "What tells its flows apart."),
    AGE,
    text("MissingPL", "Whether its level is missing."),
];
pub(super) const PRIORITY_LEVEL: &[Column] = &[
    NAME,
    text("Type", "Whether its requests are limited."),
    text("NominalConcurrencyShares", "Its part of the seats."),
    text("Queues", "How many queues it has."),
    text("HandSize", "How many of them a flow is dealt."),
    text("QueueLengthLimit", "How many requests wait in one."),
    AGE,
];

pub(super) fn flow_schema(schema: &Value, now: Timestamp) -> Vec<Value> {
    let dangling = list_at(schema, "/status/conditions").iter().find(|own| own["type"] == "Dangling");
    vec![
        name(schema),
        Value::from(text_at(schema, "/spec/priorityLevelConfiguration/name")),
        Value::from(schema["spec"]["matchingPrecedence"].as_i64().unwrap_or(0)),
        or(text_at(schema, "/spec/distinguisherMethod/type"), "<none>"),
        age(schema, now),
        or(dangling.map_or("", |own| text_at(own, "/status")), "?"),
    ]
}

pub(super) fn priority_level(level: &Value, now: Timestamp) -> Vec<Value> {
    let number = |pointer: &str| {
        let found = level.pointer(pointer).and_then(Value::as_i64);
        found.map_or_else(|| Value::from("<none>"), Value::from)
    };
    let queuing = "/spec/limited/limitResponse/queuing";
    vec![
        name(level),
        Value::from(text_at(level, "/spec/type")),
        number("/spec/limited/nominalConcurrencyShares"),
        number(&format!("{queuing}/queues")),
        number(&format!("{queuing}/handSize")),
        number(&format!("{queuing}/queueLengthLimit")),
        age(level, now),
    ]
}
