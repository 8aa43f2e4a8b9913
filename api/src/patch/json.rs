//! JSON patch (RFC 6902).
//!
//! Owns the limits and the error texts around the `json-patch` crate, which applies the operations.

use json_patch::Patch;
use serde_json::Value;

use crate::status::Status;

/// Most operations in one patch.
pub const OPERATIONS_MAX: usize = 10_000;

/// The document with the patch applied. All operations apply, or none.
pub fn apply(document: &Value, patch: &[u8]) -> Result<Value, Status> {
    let patch: Patch = serde_json::from_slice(patch)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > OPERATIONS_MAX {
        return Err(Status::request_entity_too_large(&format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            patch.0.len()
        )));
    }
    let mut result = document.clone();
    match json_patch::patch(&mut result, &patch) {
        Ok(()) => Ok(result),
        Err(error) => Err(Status::invalid_request(format!(
            "the server rejected our request due to an error in our request: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_apply_in_order_or_not_at_all() {
        let document = json!({"spec": {"a": 1, "list": [1, 2]}});
        let patch = br#"[{"op": "test", "path": "/spec/a", "value": 1},
            {"op": "replace", "path": "/spec/a", "value": 2}, {"op": "add", "path": "/spec/list/-", "value": 3},
            {"op": "remove", "path": "/spec/list/0"}]"#;
        assert_eq!(apply(&document, patch).unwrap(), json!({"spec": {"a": 2, "list": [2, 3]}}));
        let failing = br#"[{"op": "remove", "path": "/spec/a"}, {"op": "remove", "path": "/spec/b"}]"#;
        assert_eq!(apply(&document, failing).unwrap_err().code(), 422);
        assert_eq!(apply(&document, b"{}").unwrap_err().code(), 400);
    }
}
