//! A pod that names no priority class has priority 0.

use api::{Kind, Status};
use serde_json::Value;

use super::{Operation, is_pod};

pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    if !is_pod(kind) || operation != Operation::Create {
        return Ok(());
    }
    let name = api::object::name(object).to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let class = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default();
    let priority = match class {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        class => {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(Status::forbidden(kind, &name, &why));
        }
    };
    if spec.get("priority").and_then(Value::as_i64).is_some_and(|own| own != priority) {
        let why = "the integer value of priority must not be provided in pod spec; \
                   priority admission controller computed it from the given PriorityClass name";
        return Err(Status::forbidden(kind, &name, why));
    }
    spec.insert("priority".to_owned(), Value::from(priority));
    spec.entry("preemptionPolicy").or_insert_with(|| Value::from("PreemptLowerPriority"));
    Ok(())
}
