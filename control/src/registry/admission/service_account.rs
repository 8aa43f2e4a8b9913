//! A pod that names no service account runs as its namespace's `default`.

use api::{Kind, Status};
use serde_json::Value;

use super::{Operation, is_pod};

pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    if !is_pod(kind) || operation != Operation::Create {
        return Ok(());
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let account = match (text("serviceAccountName"), text("serviceAccount")) {
        (name, _) if !name.is_empty() => name,
        (_, name) if !name.is_empty() => name,
        _ => "default".to_owned(),
    };
    // The second field is the deprecated name of the first; Kubernetes keeps both.
    spec.insert("serviceAccountName".to_owned(), Value::from(account.as_str()));
    spec.insert("serviceAccount".to_owned(), Value::from(account));
    Ok(())
}
