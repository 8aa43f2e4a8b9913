//! Sets of fields, as `metadata.managedFields` carries them (`FieldsV1`).
//!
//! A set is a tree. Each step down is named by its text in FieldsV1: `f:NAME` (a member of an object),
//! `k:{"KEY":VALUE}` (an item of a list by its keys), `v:VALUE` (an item by itself), `i:N` (an item by its place).
//! A step that is in the set itself, besides what is below it, has the member `.`; one with nothing below is
//! always in it. Promises to read whatever parses, and to give nothing for what does not.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::status::quoted;

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    nodes: BTreeMap<String, Node>,
}

/// One step down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Whether the place itself is in the set.
    pub(super) is_member: bool,
    pub(super) below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.is_member && self.below.is_empty()
    }
}

/// The step to a member of an object.
pub(super) fn member(name: &str) -> String {
    format!("f:{name}")
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn get(&self, step: &str) -> Option<&Node> {
        self.nodes.get(step)
    }

    pub(super) fn insert(&mut self, step: String) {
        self.nodes.entry(step).or_default().is_member = true;
    }

    /// Puts a node in, unless nothing is in it.
    pub(super) fn put(&mut self, step: String, node: Node) {
        if !node.is_empty() {
            self.nodes.insert(step, node);
        }
    }

    /// Takes a step out, with all below it.
    pub(super) fn remove(&mut self, step: &str) -> Option<Node> {
        self.nodes.remove(step)
    }

    /// Keeps only these steps and what is below them.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.nodes.retain(|step, _| keep(step));
    }

    /// Changes what is below a step.
    pub(super) fn alter(&mut self, step: &str, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(step) {
            change(node);
            if node.is_empty() {
                self.nodes.remove(step);
            }
        }
    }

    /// Adds what is in the other.
    pub(super) fn add(&mut self, other: &Self) {
        for (step, node) in &other.nodes {
            let own = self.nodes.entry(step.clone()).or_default();
            own.is_member |= node.is_member;
            own.below.add(&node.below);
        }
    }

    /// Takes out what is in the other.
    pub(super) fn subtract(&mut self, other: &Self) {
        for (step, node) in &other.nodes {
            self.alter(step, |own| {
                own.is_member &= !node.is_member;
                own.below.subtract(&node.below);
            });
        }
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (step, node) in &self.nodes {
            if let Some(theirs) = other.nodes.get(step) {
                let below = node.below.intersection(&theirs.below);
                both.put(step.clone(), Node { is_member: node.is_member && theirs.is_member, below });
            }
        }
        both
    }

    /// Reads a set.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (step, below) in value.as_object()? {
            if !step.starts_with(['f', 'k', 'v', 'i']) || step.as_bytes().get(1) != Some(&b':') {
                return None;
            }
            let members = below.as_object()?;
            let mut inner = members.clone();
            let is_member = inner.remove(".").is_some() || members.is_empty();
            set.put(step.clone(), Node { is_member, below: Self::read(&Value::Object(inner))? });
        }
        Some(set)
    }

    /// The set as JSON.
    pub(super) fn write(&self) -> Value {
        let mut members = Map::new();
        for (step, node) in &self.nodes {
            let mut below = node.below.write();
            if node.is_member
                && !node.below.is_empty()
                && let Some(below) = below.as_object_mut()
            {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            members.insert(step.clone(), below);
        }
        Value::Object(members)
    }

    /// Every place in the set, as messages name it: `.spec.containers[name="a"].image`.
    pub(super) fn places(&self) -> Vec<String> {
        let mut places = Vec::new();
        self.collect_places("", &mut places);
        places
    }

    fn collect_places(&self, at: &str, places: &mut Vec<String>) {
        for (step, node) in &self.nodes {
            let place = format!("{at}{}", printed(step));
            if node.is_member {
                places.push(place.clone());
            }
            node.below.collect_places(&place, places);
        }
    }
}

fn printed(step: &str) -> String {
    let (form, rest) = step.split_at_checked(2).unwrap_or(("", step));
    let value = || serde_json::from_str::<Value>(rest).unwrap_or_default();
    match form {
        "f:" => format!(".{rest}"),
        "k:" => {
            let keys = value();
            let keys = keys.as_object().into_iter().flatten();
            let keys: Vec<String> = keys.map(|(key, value)| format!("{key}={}", scalar(value))).collect();
            format!("[{}]", keys.join(","))
        }
        "v:" => format!("[={}]", scalar(&value())),
        _ => format!("[{rest}]"),
    }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sets_are_read_written_and_printed() {
        let text = json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"x\"": {}}}, "f:spec": {"f:containers": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}}});
        let set = FieldSet::read(&text).unwrap();
        assert_eq!(set.write(), text);
        assert_eq!(
            set.places(),
            [
                ".metadata.finalizers",
                ".metadata.finalizers[=\"x\"]",
                ".spec.containers[containerPort=80,protocol=\"TCP\"]",
                ".spec.containers[containerPort=80,protocol=\"TCP\"].name",
            ]
        );
        for bad in [json!([]), json!({"x": {}}), json!({"f:a": 1}), json!({"é": {}})] {
            assert_eq!(FieldSet::read(&bad), None, "{bad}");
        }
    }

    #[test]
    fn sets_add_subtract_and_meet() {
        let set = |value: Value| FieldSet::read(&value).unwrap();
        let a = set(json!({"f:a": {".": {}, "f:x": {}, "f:y": {}}, "f:b": {}}));
        let b = set(json!({"f:a": {"f:x": {}}, "f:c": {}}));
        let mut sum = a.clone();
        sum.add(&b);
        assert_eq!(sum, set(json!({"f:a": {".": {}, "f:x": {}, "f:y": {}}, "f:b": {}, "f:c": {}})));
        assert_eq!(a.intersection(&b), set(json!({"f:a": {"f:x": {}}})));
        let mut rest = sum.clone();
        rest.subtract(&a);
        assert_eq!(rest, set(json!({"f:c": {}})));
        rest.subtract(&b);
        assert!(rest.is_empty());
    }
}
