//! The table of events.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, NAME, integer, text, text_at, wide};
use crate::duration::{UNKNOWN, since};
use crate::object::{self, parse_timestamp};

pub(super) const COLUMNS: &[Column] = &[
    text("Last Seen", "When the event was last seen."),
    text("Type", "Normal or Warning."),
    text("Reason", "Why the event was written, in a word."),
    text("Object", "What the event is about."),
    wide(text("Subobject", "The part of the object that the event is about.")),
    wide(text("Source", "Who reports the event.")),
    text("Message", "What happened."),
    wide(text("First Seen", "When the event was first seen.")),
    wide(integer("Count", "How often the event was seen.")),
    wide(NAME),
];

pub(super) fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let ago = |at: Option<Timestamp>| at.map_or_else(|| UNKNOWN.to_owned(), |at| since(at, now));
    let count = match event.get("series").filter(|s| s.is_object()) {
        Some(series) => series.get("count").and_then(Value::as_i64).unwrap_or(0),
        None => event.get("count").and_then(Value::as_i64).filter(|n| *n != 0).unwrap_or(1),
    };
    let kind = text_at(event, "/involvedObject/kind").to_lowercase();
    let name = text_at(event, "/involvedObject/name");
    let target = if name.is_empty() { kind } else { format!("{kind}/{name}") };
    vec![
        ago(last_seen(event)).into(),
        text_at(event, "/type").into(),
        text_at(event, "/reason").into(),
        target.into(),
        text_at(event, "/involvedObject/fieldPath").into(),
        source(event).into(),
        text_at(event, "/message").trim().into(),
        ago(first_seen(event)).into(),
        count.into(),
        object::name(event).into(),
    ]
}

fn moment(event: &Value, pointer: &str) -> Option<Timestamp> {
    parse_timestamp(text_at(event, pointer))
}

fn first_seen(event: &Value) -> Option<Timestamp> {
    moment(event, "/firstTimestamp").or_else(|| moment(event, "/eventTime"))
}

/// When the event was last seen, if it says so.
pub(super) fn last_seen(event: &Value) -> Option<Timestamp> {
    if event.get("series").is_some_and(Value::is_object) {
        return moment(event, "/series/lastObservedTime");
    }
    moment(event, "/lastTimestamp").or_else(|| first_seen(event))
}

fn source(event: &Value) -> String {
    let first = |a: &'static str, b: &'static str| match text_at(event, a) {
        "" => text_at(event, b),
        some => some,
    };
    let component = first("/source/component", "/reportingComponent");
    match first("/source/host", "/reportingInstance") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;
    use crate::table::{IncludeObject, table};
    use serde_json::json;

    #[test]
    fn events_show_age_target_and_source() {
        let now = "2024-01-01T00:10:00Z".parse().unwrap();
        let mut event = json!({
            "metadata": {"name": "hello.17"}, "type": "Warning", "reason": "Unhealthy", "count": 3,
            "involvedObject": {"kind": "Pod", "name": "hello", "fieldPath": "spec.containers{hello}"},
            "source": {"component": "kubelet", "host": "n1"}, "message": "Liveness probe failed: x\n",
            "firstTimestamp": "2024-01-01T00:05:00Z", "lastTimestamp": "2024-01-01T00:09:30Z",
        });
        assert_eq!(
            row(&event, now),
            json!([
                "30s",
                "Warning",
                "Unhealthy",
                "pod/hello",
                "spec.containers{hello}",
                "kubelet, n1",
                "Liveness probe failed: x",
                "5m",
                3,
                "hello.17"
            ])
            .as_array()
            .unwrap()
            .clone()
        );
        for key in ["firstTimestamp", "lastTimestamp", "count", "source"] {
            event[key] = Value::Null;
        }
        event["reportingComponent"] = "default-scheduler".into();
        let cells = row(&event, now);
        assert_eq!(
            (&cells[0], &cells[5], &cells[8]),
            (&json!("<unknown>"), &json!("default-scheduler"), &json!(1))
        );
    }

    #[test]
    fn the_newest_event_comes_last() {
        let kind = by_kind("", "v1", "Event").unwrap();
        let now = "2024-01-01T00:10:00Z".parse().unwrap();
        let event = |name: &str, at: &str| json!({"metadata": {"name": name}, "lastTimestamp": at});
        let events = [event("b", "2024-01-01T00:02:00Z"), event("a", "2024-01-01T00:01:00Z")];
        let value = table(kind, &events, now, IncludeObject::Metadata, json!({}));
        let names: Vec<&str> = value["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["object"]["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["a", "b"]);
    }
}
