//! Tables of what limits, measures, ranks and admits others.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, count_at, integer, list_at, name, or, text, text_at, wide};
use crate::duration;

pub(super) const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    text("Min Available", "How many pods must stay."),
    text("Max Unavailable", "How many may be missing."),
    integer("Allowed Disruptions", "How many may be evicted now."),
    AGE,
];
pub(super) const PRIORITY_CLASS: &[Column] = &[
    NAME,
    integer("Value", "How much pods of the class matter."),
    text("Global-Default", "Whether pods that name no class are of this one."),
    AGE,
    text("PreemptionPolicy", "Whether its pods displace others."),
];
pub(super) const LIMIT_RANGE: &[Column] = &[NAME, text("Created At", "When it was made.")];
pub(super) const QUOTA: &[Column] = &[
    NAME,
    AGE,
    text("Request", "What is asked for of what may be."),
    text("Limit", "What is limited of what may be."),
];
pub(super) const AUTOSCALER: &[Column] = &[
    NAME,
    text("Reference", "What is scaled."),
    text("Targets", "What is measured, and what it should be."),
    text("MinPods", "How few pods there may be."),
    text("MaxPods", "How many there may be."),
    integer("Replicas", "How many there are."),
    AGE,
];
pub(super) const WEBHOOKS: &[Column] = &[NAME, integer("Webhooks", "How many there are."), AGE];
pub(super) const ADMISSION_POLICY: &[Column] = &[
    NAME,
    integer("Validations", "How many there are."),
    text("ParamKind", "Of what kind its parameters are."),
    AGE,
];
pub(super) const ADMISSION_BINDING: &[Column] = &[
    NAME,
    text("PolicyName", "The policy that it puts to use."),
    text("ParamRef", "The parameters that it gives it."),
    AGE,
];
pub(super) const CERTIFICATE_REQUEST: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", "Who shall sign."),
    text("Requestor", "Who asks."),
    text("RequestedDuration", "For how long."),
    text("Condition", "What became of it."),
];
pub(super) const RUNTIME_CLASS: &[Column] =
    &[NAME, text("Handler", "The configuration of the runtime that is used."), AGE];

pub(super) fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let amount = |field: &str| match &object["spec"][field] {
        Value::Null => "N/A".into(),
        Value::Number(number) => number.to_string().into(),
        other => other.clone(),
    };
    vec![
        name(object),
        amount("minAvailable"),
        amount("maxUnavailable"),
        object["status"]["disruptionsAllowed"].as_i64().unwrap_or(0).into(),
        age(object, now),
    ]
}

pub(super) fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        object["value"].as_i64().unwrap_or(0).into(),
        object["globalDefault"].as_bool().unwrap_or(false).to_string().into(),
        age(object, now),
        text_at(object, "/preemptionPolicy").into(),
    ]
}

pub(super) fn limit_range(object: &Value) -> Vec<Value> {
    vec![name(object), text_at(object, "/metadata/creationTimestamp").into()]
}

pub(super) fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in object["status"]["hard"].as_object().into_iter().flatten() {
        let used = object["status"]["used"][resource].as_str().unwrap_or("0");
        let text = format!("{resource}: {used}/{}", hard.as_str().unwrap_or_default());
        if resource.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(object), age(object, now), requests.join(", ").into(), limits.join(", ").into()]
}

pub(super) fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let target = &object["spec"]["scaleTargetRef"];
    let reference = format!("{}/{}", text_at(target, "/kind"), text_at(target, "/name"));
    let least = object["spec"]["minReplicas"].as_i64();
    vec![
        name(object),
        reference.into(),
        targets(object).into(),
        least.map_or_else(|| "<unset>".to_owned(), |least| least.to_string()).into(),
        object["spec"]["maxReplicas"].as_i64().unwrap_or(0).to_string().into(),
        object["status"]["currentReplicas"].as_i64().unwrap_or(0).into(),
        age(object, now),
    ]
}

/// Most metrics that a cell shows.
const METRICS_SHOWN_MAX: usize = 2;

fn targets(object: &Value) -> String {
    let specs = list_at(object, "/spec/metrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let currents = list_at(object, "/status/currentMetrics");
    let each: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| one_target(spec, currents.get(index).unwrap_or(&Value::Null)))
        .collect();
    let more = each.len().saturating_sub(METRICS_SHOWN_MAX);
    let text = each[..each.len() - more].join(", ");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

fn one_target(spec: &Value, current: &Value) -> String {
    let member = match text_at(spec, "/type") {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        _ => "resource",
    };
    let (goal, now) = (&spec[member]["target"], &current[member]["current"]);
    let resource = spec[member]["name"].as_str();
    let prefix = resource.map_or_else(String::new, |resource| format!("{resource}: "));
    let text = |value: &Value| value.as_str().unwrap_or("<unknown>").to_owned();
    if let Some(percent) = goal["averageUtilization"].as_i64() {
        let is = now["averageUtilization"].as_i64();
        let is = is.map_or_else(|| "<unknown>".to_owned(), |percent| format!("{percent}%"));
        return format!("{prefix}{is}/{percent}%");
    }
    if goal["averageValue"].is_string() {
        let average = if member == "pods" || member.ends_with("esource") { "" } else { " (avg)" };
        return format!("{prefix}{}/{}{average}", text(&now["averageValue"]), text(&goal["averageValue"]));
    }
    format!("{prefix}{}/{}", text(&now["value"]), text(&goal["value"]))
}

pub(super) fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), count_at(object, "/webhooks").into(), age(object, now)]
}

pub(super) fn admission_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let kind = &object["spec"]["paramKind"];
    let kind = match (kind["apiVersion"].as_str(), kind["kind"].as_str()) {
        (Some(version), Some(kind)) => format!("{version}/{kind}"),
        _ => "<unset>".to_owned(),
    };
    vec![name(object), count_at(object, "/spec/validations").into(), kind.into(), age(object, now)]
}

pub(super) fn admission_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &object["spec"]["paramRef"];
    let reference = match (reference["namespace"].as_str(), reference["name"].as_str()) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => format!("*/{name}"),
        _ => "<unset>".to_owned(),
    };
    vec![name(object), text_at(object, "/spec/policyName").into(), reference.into(), age(object, now)]
}

pub(super) fn certificate_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let has =
        |kind: &str| list_at(object, "/status/conditions").iter().any(|condition| condition["type"] == kind);
    let mut condition = Vec::new();
    if has("Approved") || has("Denied") {
        condition.push(if has("Denied") { "Denied" } else { "Approved" });
    } else {
        condition.push("Pending");
    }
    if has("Failed") {
        condition.push("Failed");
    }
    if !text_at(object, "/status/certificate").is_empty() {
        condition.push("Issued");
    }
    let lasts = object["spec"]["expirationSeconds"].as_i64();
    let lasts = lasts.map(duration::human);
    vec![
        name(object),
        age(object, now),
        or(text_at(object, "/spec/signerName"), "<none>"),
        text_at(object, "/spec/username").into(),
        lasts.unwrap_or_else(|| "<none>".to_owned()).into(),
        condition.join(",").into(),
    ]
}

pub(super) fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text_at(object, "/handler").into(), age(object, now)]
}

/// Columns and rows of what drivers of volumes say of themselves.
pub(super) const CSI_DRIVER: &[Column] = &[
    NAME,
    text("AttachRequired", "Whether volumes are attached to nodes first."),
    text("PodInfoOnMount", "Whether it is told of pods."),
    text("StorageCapacity", "Whether it says how much room there is."),
    text("TokenRequests", "For whom it wants tokens."),
    text("RequiresRepublish", "Whether volumes are published again and again."),
    text("Modes", "How long its volumes live."),
    AGE,
];
pub(super) const CSI_NODE: &[Column] = &[NAME, integer("Drivers", "How many there are."), AGE];
pub(super) const CSI_CAPACITY: &[Column] = &[
    NAME,
    wide(text("StorageClassName", "The class that it is about.")),
    wide(text("Capacity", "How much room there is.")),
];
pub(super) const ATTACHMENT: &[Column] = &[
    NAME,
    text("Attacher", "The driver."),
    text("PV", "The volume."),
    text("Node", "The node."),
    text("Attached", "Whether it is done."),
    AGE,
];

pub(super) fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let flag = |field: &str| -> Value { object["spec"][field].as_bool().unwrap_or(false).to_string().into() };
    let tokens = list_at(object, "/spec/tokenRequests").iter().filter_map(|token| token["audience"].as_str());
    let modes = list_at(object, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str);
    vec![
        name(object),
        flag("attachRequired"),
        flag("podInfoOnMount"),
        flag("storageCapacity"),
        or(&tokens.collect::<Vec<_>>().join(","), "<unset>"),
        flag("requiresRepublish"),
        or(&modes.collect::<Vec<_>>().join(","), "<none>"),
        age(object, now),
    ]
}

pub(super) fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), count_at(object, "/spec/drivers").into(), age(object, now)]
}

pub(super) fn csi_capacity(object: &Value) -> Vec<Value> {
    vec![
        name(object),
        text_at(object, "/storageClassName").into(),
        or(text_at(object, "/capacity"), "<unset>"),
    ]
}

pub(super) fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text_at(object, "/spec/attacher").into(),
        text_at(object, "/spec/source/persistentVolumeName").into(),
        text_at(object, "/spec/nodeName").into(),
        object["status"]["attached"].as_bool().unwrap_or(false).to_string().into(),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_show_what_is_and_what_should_be() {
        let metric = json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}});
        let mut object = json!({"spec": {"metrics": [metric]}});
        assert_eq!(targets(&object), "cpu: <unknown>/80%");
        object["status"] = json!({"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageUtilization": 35}}}]});
        assert_eq!(targets(&object), "cpu: 35%/80%");
    }

    #[test]
    fn a_request_says_what_became_of_it() {
        let row =
            |status: Value| certificate_request(&json!({"status": status}), Timestamp::UNIX_EPOCH)[5].clone();
        assert_eq!(row(json!({})), "Pending");
        assert_eq!(
            row(json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="})),
            "Approved,Issued"
        );
        assert_eq!(row(json!({"conditions": [{"type": "Denied"}]})), "Denied");
    }
}
