//! Pods stay five minutes on a node that is not ready or not reachable, unless they say otherwise.

use api::{Kind, Status};
use serde_json::{Value, json};

use super::{Operation, is_pod};

/// How long a pod stays.
const TOLERATION_S: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    if !is_pod(kind) || operation != Operation::Create {
        return Ok(());
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let tolerations = spec.entry("tolerations").or_insert(Value::Null);
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(tolerations) = tolerations.as_array_mut() else { return Ok(()) };
    for taint in TAINTS {
        let covered = tolerations.iter().any(|toleration| {
            let key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (key.is_empty() || key == taint) && matches!(effect, "" | "NoExecute")
        });
        if !covered {
            tolerations.push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_S,
            }));
        }
    }
    Ok(())
}
