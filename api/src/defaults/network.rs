//! Defaults of Services, of what stands behind them and of who may reach whom.

use serde_json::{Map, Value, json};

use super::{child, items, set};
use crate::object::child_mut;

/// How long a client keeps its backend when it keeps one at all.
const AFFINITY_S: i64 = 3 * 60 * 60;

/// What kind of service it is, which way its requests go, and where each port leads. Addresses and node ports
/// are given out by the server, not here.
pub(super) fn service(object: &mut Value) {
    let Some(service) = object.as_object_mut() else { return };
    if let Some(spec) = child_mut(service, "spec") {
        set(spec, "sessionAffinity", "None");
        set(spec, "type", "ClusterIP");
        affinity(spec);
        let kind = spec["type"].as_str().unwrap_or_default().to_owned();
        for port in items(spec, "ports") {
            set(port, "protocol", "TCP");
            if port.get("targetPort").is_none_or(|target| target.is_null() || *target == 0 || *target == "") {
                let own = port.get("port").cloned().unwrap_or(Value::from(0));
                port.insert("targetPort".to_owned(), own);
            }
        }
        let has_external =
            spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        let is_external = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
        if is_external || (kind == "ClusterIP" && has_external) {
            set(spec, "externalTrafficPolicy", "Cluster");
        }
        if is_external || kind == "ClusterIP" {
            set(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true);
        }
    }
    if let Some(status) = child_mut(service, "status") {
        set(status, "loadBalancer", json!({}));
    }
}

fn affinity(spec: &mut Map<String, Value>) {
    if spec["sessionAffinity"] == "ClientIP" {
        if let Some(client) =
            child_mut(spec, "sessionAffinityConfig").and_then(|config| child_mut(config, "clientIP"))
        {
            set(client, "timeoutSeconds", AFFINITY_S);
        }
    } else if spec["sessionAffinity"] == "None" {
        spec.remove("sessionAffinityConfig");
    }
}

pub(super) fn endpoints(object: &mut Value) {
    let Some(endpoints) = object.as_object_mut() else { return };
    for subset in items(endpoints, "subsets") {
        for port in items(subset, "ports") {
            set(port, "protocol", "TCP");
        }
    }
}

pub(super) fn endpoint_slice(object: &mut Value) {
    let Some(slice) = object.as_object_mut() else { return };
    for port in items(slice, "ports") {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

/// Rules of egress are meant only where there are some.
pub(super) fn network_policy(object: &mut Value) {
    let Some(spec) = object.as_object_mut().and_then(|policy| child(policy, "spec")) else { return };
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let has_egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".to_owned(), types);
    }
}

pub(super) fn ingress_class(object: &mut Value) {
    let spec = object.as_object_mut().and_then(|class| child(class, "spec"));
    if let Some(parameters) = spec.and_then(|spec| child(spec, "parameters")) {
        set(parameters, "scope", "Cluster");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_says_where_its_ports_lead_and_which_way_requests_go() {
        let mut plain = json!({"spec": {"ports": [{"port": 80}]}});
        service(&mut plain);
        assert_eq!(plain["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(plain["spec"]["internalTrafficPolicy"], "Cluster");
        assert!(plain["spec"].get("externalTrafficPolicy").is_none());
        let mut balanced =
            json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": []}});
        service(&mut balanced);
        assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(balanced["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
        assert_eq!(balanced["status"], json!({"loadBalancer": {}}));
        let mut elsewhere = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
        service(&mut elsewhere);
        assert!(elsewhere["spec"].get("internalTrafficPolicy").is_none());
    }

    #[test]
    fn a_policy_concerns_egress_where_it_has_rules_for_it() {
        let types = |spec: Value| {
            let mut policy = json!({"spec": spec});
            network_policy(&mut policy);
            policy["spec"]["policyTypes"].clone()
        };
        assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"egress": [{}], "policyTypes": ["Egress"]})), json!(["Egress"]));
    }
}
