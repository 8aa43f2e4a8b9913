//! Which pods go first when there are too many. Pure.
//!
//! As the Kubernetes documentation of ReplicaSets says: those that run nowhere, that are pending, not ready,
//! cheaper to delete, that share their node with more of their kind, that became ready or were made later,
//! that restarted more often.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use api::object;
use serde_json::Value;

use crate::registry::Object;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The pods, those first that can be spared best.
pub(super) fn by_dispensability(mut pods: Vec<Arc<Object>>) -> Vec<Arc<Object>> {
    let mut on_node: HashMap<String, usize> = HashMap::new();
    for pod in &pods {
        *on_node.entry(node(pod).to_owned()).or_default() += 1;
    }
    pods.sort_by_cached_key(|pod| {
        let value = pod.value();
        let phase = match value["status"]["phase"].as_str() {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        };
        let ready = condition(value, "Ready").filter(|ready| ready["status"] == "True");
        let ready_since = ready.and_then(|ready| ready["lastTransitionTime"].as_str());
        let cost = object::annotation(value, DELETION_COST).and_then(|text| text.parse::<i32>().ok());
        (
            !node(pod).is_empty(),
            phase,
            ready.is_some(),
            cost.unwrap_or(0),
            Reverse(on_node.get(node(pod)).copied().unwrap_or(0)),
            // Later times are larger texts.
            Reverse(ready_since.unwrap_or_default().to_owned()),
            Reverse(restarts(value)),
            Reverse(object::creation_timestamp(value).to_owned()),
        )
    });
    pods
}

fn node(pod: &Object) -> &str {
    pod.value()["spec"]["nodeName"].as_str().unwrap_or_default()
}

fn restarts(pod: &Value) -> i64 {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    statuses.filter_map(|status| status["restartCount"].as_i64()).max().unwrap_or(0)
}

/// A condition of an object.
pub(in crate::controllers) fn condition<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let conditions = value["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|condition| condition["type"] == name)
}
