//! Defaults of what binds roles.

use serde_json::Value;

use super::{child, items, set};
use crate::kinds::RBAC_GROUP;

/// The groups of the role and of the subjects, which hardly anybody writes.
pub(super) fn binding(object: &mut Value) {
    let Some(binding) = object.as_object_mut() else { return };
    if let Some(role) = child(binding, "roleRef") {
        set_text(role, "apiGroup", RBAC_GROUP);
    }
    for subject in items(binding, "subjects") {
        if matches!(subject.get("kind").and_then(Value::as_str), Some("Group" | "User")) {
            set_text(subject, "apiGroup", RBAC_GROUP);
        }
    }
}

/// Sets a text that is missing or empty.
fn set_text(parent: &mut serde_json::Map<String, Value>, key: &str, value: &str) {
    if parent.get(key).and_then(Value::as_str) == Some("") {
        parent.remove(key);
    }
    set(parent, key, value);
}
