//! Defaults of FlowSchemas and PriorityLevelConfigurations.

use serde_json::{Map, Value};

use super::{child, set};

pub(super) fn flow_schema(object: &mut Value) {
    let Some(spec) = object.as_object_mut().and_then(|schema| child(schema, "spec")) else { return };
    if spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 {
        spec.insert("matchingPrecedence".to_owned(), Value::from(1000));
    }
}

pub(super) fn priority_level(object: &mut Value) {
    let Some(spec) = object.as_object_mut().and_then(|level| child(level, "spec")) else { return };
    match spec.get("type").and_then(Value::as_str) {
        Some("Exempt") => {
            let exempt = spec.entry("exempt").or_insert_with(|| Value::Object(Map::new()));
            let Some(exempt) = exempt.as_object_mut() else { return };
            set(exempt, "nominalConcurrencyShares", 0);
            set(exempt, "lendablePercent", 0);
        }
        Some("Limited") => {
            let Some(limited) = child(spec, "limited") else { return };
            set(limited, "nominalConcurrencyShares", 30);
            set(limited, "lendablePercent", 0);
            let Some(response) = child(limited, "limitResponse") else { return };
            if response.get("type").and_then(Value::as_str) != Some("Queue") {
                return;
            }
            let queuing = response.entry("queuing").or_insert_with(|| Value::Object(Map::new()));
            let Some(queuing) = queuing.as_object_mut() else { return };
            for (field, number) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                if queuing.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
                    queuing.insert(field.to_owned(), Value::from(number));
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_level_queues_as_in_kubernetes_unless_it_says_otherwise() {
        let mut level = json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": 9}}}}});
        priority_level(&mut level);
        let limited = json!({"nominalConcurrencyShares": 30, "lendablePercent": 0, "limitResponse": {"type": "Queue",
            "queuing": {"queues": 9, "handSize": 8, "queueLengthLimit": 50}}});
        assert_eq!(level["spec"]["limited"], limited);
        let mut exempt = json!({"spec": {"type": "Exempt"}});
        priority_level(&mut exempt);
        assert_eq!(exempt["spec"]["exempt"], json!({"nominalConcurrencyShares": 0, "lendablePercent": 0}));
        let mut schema = json!({"spec": {}});
        flow_schema(&mut schema);
        assert_eq!(schema["spec"]["matchingPrecedence"], 1000);
    }
}
