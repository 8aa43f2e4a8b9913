//! Which fields of a custom object stay, and which are filled in.
//!
//! Owns pruning (fields that the schema does not name go, unless it preserves them) and defaulting. Both are
//! idempotent, and defaults are filled in on reading as well as on writing.

use serde_json::{Map, Value};

use super::schema::Schema;

/// Members that every object has, whatever its schema says.
const OBJECT_MEMBERS: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Unknown fields named in one answer.
const UNKNOWN_MAX: usize = 64;

/// Drops the members that the schema does not name; gives their paths.
pub(super) fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_at(schema, object, true, &mut String::new(), &mut unknown);
    unknown
}

fn prune_at(
    schema: &Schema,
    value: &mut Value,
    is_object: bool,
    path: &mut String,
    unknown: &mut Vec<String>,
) {
    match value {
        Value::Object(members) => {
            let kept = |name: &str| {
                schema.preserve_unknown
                    || schema.member(name).is_some()
                    || (is_object && OBJECT_MEMBERS.contains(&name))
            };
            let length = path.len();
            members.retain(|name, _| {
                let keep = kept(name);
                if !keep && unknown.len() < UNKNOWN_MAX {
                    let dot = if length == 0 { "" } else { "." };
                    unknown.push(format!("{path}{dot}{name}"));
                }
                keep
            });
            for (name, member) in members.iter_mut() {
                let Some(inner) = schema.member(name) else { continue };
                if is_object && OBJECT_MEMBERS.contains(&name.as_str()) {
                    continue;
                }
                if length > 0 {
                    path.push('.');
                }
                path.push_str(name);
                prune_at(inner, member, inner.embedded, path, unknown);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            let Some(inner) = &schema.items else { return };
            let length = path.len();
            for (index, item) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                prune_at(inner, item, inner.embedded, path, unknown);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Fills in defaults, and drops nulls where neither null nor a default may stand.
pub(super) fn default(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(members) => default_members(schema, members),
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for item in items {
                    if item.is_null() && !inner.nullable {
                        item.clone_from(inner.default.as_ref().unwrap_or(&Value::Null));
                    }
                    default(inner, item);
                }
            }
        }
        _ => {}
    }
}

fn default_members(schema: &Schema, members: &mut Map<String, Value>) {
    for (name, inner) in &schema.properties {
        let missing = match members.get(name) {
            None => true,
            Some(value) => value.is_null() && !inner.nullable,
        };
        if !missing {
            continue;
        }
        match &inner.default {
            Some(default) => {
                members.insert(name.clone(), default.clone());
            }
            None => {
                members.remove(name);
            }
        }
    }
    if let Some(inner) = &schema.additional {
        let is_null = |name: &String, value: &Value| {
            value.is_null()
                && !inner.nullable
                && !inner.preserve_unknown
                && !schema.properties.contains_key(name)
        };
        members.retain(|name, value| !is_null(name, value));
    }
    for (name, member) in members.iter_mut() {
        if let Some(inner) = schema.member(name) {
            default(inner, member);
        }
    }
}
