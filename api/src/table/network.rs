//! Tables of Services, of what stands behind them, of ways in and of who may reach whom.

use jiff::Timestamp;
use serde_json::Value;

use super::workload::labels;
use super::{AGE, Column, NAME, age, list_at, name, or, text, text_at, wide};

/// Most addresses that a cell shows.
const ENDPOINTS_SHOWN_MAX: usize = 3;

pub(super) const SERVICE: &[Column] = &[
    NAME,
    text("Type", "How it can be reached."),
    text("Cluster-IP", "Its address inside the cluster."),
    text("External-IP", "Its addresses outside."),
    text("Port(s)", "Its ports, with those of the nodes."),
    AGE,
    wide(text("Selector", "Which pods stand behind it.")),
];
pub(super) const ENDPOINTS: &[Column] = &[NAME, text("Endpoints", "Addresses and ports."), AGE];
pub(super) const SLICE: &[Column] = &[
    NAME,
    text("AddressType", "Of which family its addresses are."),
    text("Ports", "The ports of each endpoint."),
    text("Endpoints", "The addresses of the endpoints."),
    AGE,
];
pub(super) const INGRESS: &[Column] = &[
    NAME,
    text("Class", "Who answers for it."),
    text("Hosts", "The names that it answers to."),
    text("Address", "Where it can be reached."),
    text("Ports", "On which ports."),
    AGE,
];
pub(super) const INGRESS_CLASS: &[Column] = &[
    NAME,
    text("Controller", "Who answers for ingresses of the class."),
    text("Parameters", "An object with more about it."),
    AGE,
];
pub(super) const POLICY: &[Column] = &[NAME, text("Pod-Selector", "The pods that it is about."), AGE];

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let kind = text_at(object, "/spec/type");
    let cluster_ip = match text_at(object, "/spec/clusterIP") {
        "" if kind == "ExternalName" => "<none>",
        other => other,
    };
    vec![
        name(object),
        kind.into(),
        or(cluster_ip, "<none>"),
        external(object, kind).into(),
        or(&ports(object), "<none>"),
        age(object, now),
        labels(&object["spec"]["selector"], "<none>"),
    ]
}

fn external(object: &Value, kind: &str) -> String {
    let own = list_at(object, "/spec/externalIPs").iter().filter_map(Value::as_str);
    let balancers = list_at(object, "/status/loadBalancer/ingress").iter();
    let given = balancers.filter_map(|one| one["ip"].as_str().or_else(|| one["hostname"].as_str()));
    match kind {
        "ExternalName" => text_at(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let all: Vec<&str> = given.chain(own).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => {
            let all: Vec<&str> = own.collect();
            if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
        }
    }
}

fn ports(object: &Value) -> String {
    let each = list_at(object, "/spec/ports").iter().map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = port["port"].as_i64().unwrap_or(0);
        match port["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    each.collect::<Vec<_>>().join(",")
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list_at(object, "/subsets") {
        let ports = list_at(subset, "/ports");
        for address in list_at(subset, "/addresses").iter().filter_map(|address| address["ip"].as_str()) {
            if ports.is_empty() {
                all.push(address.to_owned());
            }
            all.extend(ports.iter().map(|port| {
                let number = port["port"].as_i64().unwrap_or(0);
                if address.contains(':') {
                    format!("[{address}]:{number}")
                } else {
                    format!("{address}:{number}")
                }
            }));
        }
    }
    vec![name(object), shown(&all, "<none>").into(), age(object, now)]
}

/// The first few, and how many more there are.
fn shown(all: &[String], none: &str) -> String {
    if all.is_empty() {
        return none.to_owned();
    }
    let more = all.len().saturating_sub(ENDPOINTS_SHOWN_MAX);
    let text = all[..all.len() - more].join(",");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

pub(super) fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list_at(object, "/ports")
        .iter()
        .map(|port| port["port"].as_i64().map_or_else(|| "*".to_owned(), |number| number.to_string()))
        .collect();
    let addresses: Vec<String> = list_at(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| list_at(endpoint, "/addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    vec![
        name(object),
        text_at(object, "/addressType").into(),
        shown(&ports, "<unset>").into(),
        shown(&addresses, "<unset>").into(),
        age(object, now),
    ]
}

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let hosts: Vec<String> = list_at(object, "/spec/rules")
        .iter()
        .filter_map(|rule| rule["host"].as_str().filter(|host| !host.is_empty()))
        .map(str::to_owned)
        .collect();
    let addresses = list_at(object, "/status/loadBalancer/ingress").iter();
    let addresses = addresses.filter_map(|one| one["ip"].as_str().or_else(|| one["hostname"].as_str()));
    let ports = if list_at(object, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(object),
        or(text_at(object, "/spec/ingressClassName"), "<none>"),
        shown(&hosts, "*").into(),
        addresses.collect::<Vec<_>>().join(",").into(),
        ports.into(),
        age(object, now),
    ]
}

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &object["spec"]["parameters"];
    let parameters = match (parameters["kind"].as_str(), parameters["name"].as_str()) {
        (Some(kind), Some(name)) => match parameters["apiGroup"].as_str().filter(|group| !group.is_empty()) {
            Some(group) => format!("{kind}.{group}/{name}"),
            None => format!("{kind}/{name}"),
        },
        _ => "<none>".to_owned(),
    };
    vec![name(object), text_at(object, "/spec/controller").into(), parameters.into(), age(object, now)]
}

pub(super) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let selector = super::workload::selector(&object["spec"]["podSelector"]);
    let selector = if selector == "" { "<none>".into() } else { selector };
    vec![name(object), selector, age(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_shows_how_it_is_reached() {
        let now = "2024-01-01T00:00:10Z".parse().unwrap();
        let cells = |spec: Value, status: Value| {
            let object = json!({"metadata": {"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": spec, "status": status});
            Value::from(service(&object, now)[1..6].to_vec())
        };
        let ports = json!([{"port": 8080, "nodePort": 30838, "protocol": "TCP"}]);
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": ports});
        assert_eq!(
            cells(spec.clone(), json!({})),
            json!(["LoadBalancer", "10.0.0.1", "<pending>", "8080:30838/TCP", "10s"])
        );
        let given = json!({"loadBalancer": {"ingress": [{"ip": "35.1.2.3"}]}});
        assert_eq!(cells(spec, given)[2], "35.1.2.3");
        let plain =
            json!({"type": "ClusterIP", "clusterIP": "None", "ports": [{"port": 1, "protocol": "UDP"}]});
        assert_eq!(cells(plain, json!({})), json!(["ClusterIP", "None", "<none>", "1/UDP", "10s"]));
        let name = json!({"type": "ExternalName", "externalName": "a.example"});
        assert_eq!(cells(name, json!({})), json!(["ExternalName", "<none>", "a.example", "<none>", "10s"]));
    }

    #[test]
    fn many_endpoints_are_counted_after_three() {
        let addresses: Vec<Value> = (1..6).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let object = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        let cells = endpoints(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
        assert_eq!(endpoints(&json!({}), Timestamp::UNIX_EPOCH)[1], "<none>");
    }
}
