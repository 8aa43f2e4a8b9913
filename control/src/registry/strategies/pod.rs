//! Pods: begin Pending, and are stopped by their node before they go.

use api::object;
use serde_json::{Value, json};

use super::{Grace, Strategy};

/// When the spec, through some old write, has no grace period of its own.
const GRACE_PERIOD_S: i64 = 30;

pub(super) struct PodStrategy;

impl Strategy for PodStrategy {
    fn default_status(&self, object: &mut Value) {
        let qos = qos_class(&object["spec"]);
        let is_gated = object["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        let mut status = json!({"phase": "Pending", "qosClass": qos});
        if is_gated {
            status["conditions"] = json!([gated(&object["metadata"]["creationTimestamp"])]);
        }
        if let Some(members) = object.as_object_mut() {
            members.insert("status".to_owned(), status);
        }
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        super::keep_all_but_status(old, new);
        // The class follows from the spec; a node that leaves it out does not take it away.
        if let (Some(class), Some(status)) =
            (old["status"].get("qosClass"), new.get_mut("status").and_then(Value::as_object_mut))
        {
            status.insert("qosClass".to_owned(), class.clone());
        }
    }

    fn grace(&self, object: &Value, requested_s: Option<i64>) -> Grace {
        let spec = &object["spec"];
        let own = spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(GRACE_PERIOD_S);
        let pending = object::deletion_grace_period_s(object);
        let seconds = requested_s.or(pending).unwrap_or(own);
        let unbound = spec["nodeName"].as_str().unwrap_or_default().is_empty();
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        match (unbound || ended, seconds) {
            (true, _) => Grace::Seconds(0),
            (false, seconds) if seconds < 0 => Grace::Seconds(1),
            (false, seconds) => Grace::Seconds(seconds),
        }
    }
}

/// What is said of a pod that must not be scheduled yet.
fn gated(since: &Value) -> Value {
    json!({
        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
        "lastProbeTime": null, "lastTransitionTime": since,
    })
}

/// Undoes what a write of the ephemeral containers may not change: everything else.
pub(in crate::registry) fn prepare_ephemeral_containers(old: &Value, new: &mut Value) {
    let containers = new["spec"].get("ephemeralContainers").cloned().unwrap_or(Value::Null);
    *new = old.clone();
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut)
        && !containers.is_null()
    {
        spec.insert("ephemeralContainers".to_owned(), containers);
    }
}

/// The quality-of-service class that follows from requests and limits.
fn qos_class(spec: &Value) -> &'static str {
    let mut guaranteed = true;
    let mut any = false;
    for container in ["containers", "initContainers"].iter().flat_map(|list| spec[*list].as_array()).flatten()
    {
        let quantity = |list: &str, resource: &str| {
            let text = container["resources"][list][resource].as_str()?;
            api::Quantity::parse(text).ok().filter(|quantity| quantity.milli_value() > 0)
        };
        for resource in ["cpu", "memory"] {
            let (request, limit) = (quantity("requests", resource), quantity("limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= match (&request, &limit) {
                (Some(request), Some(limit)) => request.milli_value() == limit.milli_value(),
                (None, Some(_)) => true,
                _ => false,
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_qos_class_follows_from_requests_and_limits() {
        let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(qos_class(&spec(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&spec(json!({"limits": both}))), "Guaranteed");
        assert_eq!(
            qos_class(&spec(json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}))),
            "Guaranteed"
        );
        assert_eq!(qos_class(&spec(json!({"limits": {"cpu": "1"}}))), "Burstable");
    }
}
