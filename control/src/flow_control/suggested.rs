//! The FlowSchemas and PriorityLevelConfigurations that every cluster begins with. Names, order and numbers are
//! Kubernetes' own, but for the share of people's requests, since no level lends its seats to others.

use serde_json::{Value, json};

use crate::auth::{SYSTEM_AUTHENTICATED, SYSTEM_MASTERS, SYSTEM_NODES};

/// Says whether an object follows what this release suggests.
pub(crate) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Without these a cluster cannot be; they are kept as they are.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Whether a cluster cannot be without an object of that name.
pub(crate) fn is_mandatory(name: &str) -> bool {
    MANDATORY.contains(&name)
}

/// The objects of a kind without which requests would have no place.
pub(crate) fn mandatory(kind: &str) -> Vec<Value> {
    let named = |object: &Value| object["metadata"]["name"].as_str().is_some_and(is_mandatory);
    all().into_iter().filter(|object| object["kind"] == kind && named(object)).collect()
}

/// Every object, levels first.
pub(crate) fn all() -> Vec<Value> {
    let mut all = vec![
        level(
            "exempt",
            json!({"type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
        ),
        level("catch-all", limited(5, 0, json!({"type": "Reject"}))),
    ];
    all.extend(
        [
            ("leader-election", (10, 0), (16, 4)),
            ("node-high", (40, 25), (64, 6)),
            ("system", (30, 33), (64, 6)),
            ("workload-high", (40, 50), (128, 6)),
            ("workload-low", (100, 90), (128, 6)),
            ("global-default", (60, 50), (128, 6)),
        ]
        .into_iter()
        .map(|(name, (shares, lendable), (queues, hand))| {
            let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
            level(name, limited(shares, lendable, json!({"type": "Queue", "queuing": queuing})))
        }),
    );
    all.extend(system_schemas());
    all.extend(schemas_for_all());
    all
}

fn level(name: &str, spec: Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "PriorityLevelConfiguration",
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

fn limited(shares: u32, lendable: u32, response: Value) -> Value {
    json!({"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": response}})
}

fn schema(name: &str, (level, precedence): (&str, u32), by: &str, rules: Value) -> Value {
    let mut schema = json!({"apiVersion": API_VERSION, "kind": "FlowSchema",
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
        "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules}});
    if !by.is_empty() {
        schema["spec"]["distinguisherMethod"] = json!({"type": by});
    }
    schema
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": name}})
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], is_wide: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if is_wide {
        rule["clusterScope"] = json!(true);
    }
    rule
}

fn everything(subjects: &[Value]) -> Value {
    json!([{"subjects": subjects, "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}])
}

/// Those of the cluster's own parts.
fn system_schemas() -> Vec<Value> {
    let changes = ["get", "create", "update"];
    let lease = resources(&changes, "coordination.k8s.io", &["leases"], false);
    let (manager, scheduler) = (user("system:kube-controller-manager"), user("system:kube-scheduler"));
    vec![
        schema(
            "system-leader-election",
            ("leader-election", 100),
            "ByUser",
            json!([{"subjects": [manager, scheduler], "resourceRules": [lease]}]),
        ),
        schema(
            "endpoint-controller",
            ("workload-high", 150),
            "ByUser",
            json!([{"subjects": [manager, account("endpoint-controller"), account("endpointslicemirroring-controller")],
                "resourceRules": [resources(&changes, "", &["endpoints"], false)]}]),
        ),
        schema(
            "workload-leader-election",
            ("leader-election", 200),
            "ByUser",
            json!([{"subjects": [account("*")], "resourceRules": [lease]}]),
        ),
        schema(
            "system-node-high",
            ("node-high", 400),
            "ByUser",
            json!([{"subjects": [group(SYSTEM_NODES)], "resourceRules": [
                resources(&["*"], "", &["nodes", "nodes/status"], true),
                resources(&["*"], "coordination.k8s.io", &["leases"], false)]}]),
        ),
        schema("system-nodes", ("system", 500), "ByUser", everything(&[group(SYSTEM_NODES)])),
        schema("kube-controller-manager", ("workload-high", 800), "ByNamespace", everything(&[manager])),
        schema("kube-scheduler", ("workload-high", 800), "ByNamespace", everything(&[scheduler])),
        schema(
            "kube-system-service-accounts",
            ("workload-high", 900),
            "ByNamespace",
            everything(&[account("*")]),
        ),
    ]
}

/// Those of everybody else.
fn schemas_for_all() -> Vec<Value> {
    let anybody = [group(UNAUTHENTICATED), group(SYSTEM_AUTHENTICATED)];
    vec![
        schema("exempt", ("exempt", 1), "", everything(&[group(SYSTEM_MASTERS)])),
        schema(
            "probes",
            ("exempt", 2),
            "",
            json!([{"subjects": anybody, "nonResourceRules": [
                {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}]),
        ),
        schema(
            "service-accounts",
            ("workload-low", 9000),
            "ByUser",
            everything(&[group("system:serviceaccounts")]),
        ),
        schema("global-default", ("global-default", 9900), "ByUser", everything(&anybody)),
        schema("catch-all", ("catch-all", 10_000), "ByUser", everything(&anybody)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_suggested_is_valid_and_defaulted() {
        for object in all() {
            let name = object["kind"].as_str().unwrap_or_default();
            let kind = api::kinds::by_kind("flowcontrol.apiserver.k8s.io", "v1", name).expect("a kind");
            let mut made = object.clone();
            assert_eq!(api::decode::normalize(kind, &mut made), Ok(Vec::new()));
            api::defaults::apply(kind, &mut made);
            assert_eq!(made, object);
            made["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
            assert_eq!(api::validation::create(kind, &made), [], "{made}");
        }
    }
}
