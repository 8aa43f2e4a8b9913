//! What EndpointSlices and Endpoints say, given ports and pods. Pure.

use std::collections::BTreeMap;

use api::object;
use serde_json::{Value, json};

/// Endpoints of one slice; Kubernetes' own number.
const ENDPOINTS_MAX: usize = 100;
/// Addresses of one Endpoints object; Kubernetes' own number.
const ADDRESSES_MAX: usize = 1000;

/// A pod that stands behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) name: String,
    namespace: String,
    uid: String,
    node: String,
    hostname: Option<String>,
    addresses: Vec<String>,
    is_ready: bool,
    is_serving: bool,
    is_terminating: bool,
    /// Named ports of its containers: by protocol and name.
    ports: BTreeMap<(String, String), i64>,
}

impl Backend {
    /// `None`: it has no address yet, or is through.
    pub(super) fn of(pod: &Value, publishes_all: bool) -> Option<Self> {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let ips = status["podIPs"].as_array().into_iter().flatten().filter_map(|ip| ip["ip"].as_str());
        let addresses: Vec<String> = ips.map(str::to_owned).collect();
        if addresses.is_empty() || matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let is_terminating = object::deletion_timestamp(pod).is_some();
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let is_serving = conditions
            .into_iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let mut ports = BTreeMap::new();
        for container in spec["containers"].as_array().into_iter().flatten() {
            for port in container["ports"].as_array().into_iter().flatten() {
                let (Some(name), Some(number)) = (port["name"].as_str(), port["containerPort"].as_i64())
                else {
                    continue;
                };
                let protocol = port["protocol"].as_str().unwrap_or("TCP");
                ports.entry((protocol.to_owned(), name.to_owned())).or_insert(number);
            }
        }
        let has_subdomain = spec["subdomain"].as_str().is_some_and(|text| !text.is_empty());
        Some(Self {
            name: object::name(pod).to_owned(),
            namespace: object::namespace(pod).to_owned(),
            uid: object::uid(pod).to_owned(),
            node: spec["nodeName"].as_str().unwrap_or_default().to_owned(),
            hostname: spec["hostname"].as_str().filter(|_| has_subdomain).map(str::to_owned),
            addresses,
            is_ready: publishes_all || (is_serving && !is_terminating),
            is_serving,
            is_terminating,
            ports,
        })
    }

    fn address(&self, is_v6: bool) -> Option<&str> {
        self.addresses.iter().map(String::as_str).find(|address| address.contains(':') == is_v6)
    }

    /// The ports of a Service as this pod has them; a name that it does not know is left out.
    fn resolve(&self, ports: &[Value]) -> Vec<Value> {
        let resolved = ports.iter().filter_map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let number = match &port["targetPort"] {
                Value::String(name) => *self.ports.get(&(protocol.to_owned(), name.clone()))?,
                other => other.as_i64().filter(|number| *number > 0).or_else(|| port["port"].as_i64())?,
            };
            let mut out = json!({"name": port["name"].as_str().unwrap_or_default(), "port": number,
                "protocol": protocol});
            if let Some(app) = port.get("appProtocol") {
                out["appProtocol"] = app.clone();
            }
            Some(out)
        });
        resolved.collect()
    }

    fn reference(&self) -> Value {
        json!({"kind": "Pod", "namespace": self.namespace, "name": self.name, "uid": self.uid})
    }
}

/// Whether a slice names that pod.
pub(super) fn names(slice: &Value, pod: &str) -> bool {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints.into_iter().any(|endpoint| endpoint["targetRef"]["name"] == pod)
}

/// The slices: one set for each family and each way in which named ports resolve.
pub(super) fn of(ports: &[Value], backends: &[Backend]) -> Vec<Value> {
    let mut out = Vec::new();
    for is_v6 in [false, true] {
        let mut groups: Vec<(Vec<Value>, Vec<Value>)> = Vec::new();
        for backend in backends {
            let Some(address) = backend.address(is_v6) else { continue };
            let own = backend.resolve(ports);
            let endpoint = endpoint(backend, address);
            match groups.iter_mut().find(|(known, _)| *known == own) {
                Some((_, endpoints)) => endpoints.push(endpoint),
                None => groups.push((own, vec![endpoint])),
            }
        }
        if groups.is_empty() && !is_v6 {
            // A Service with nobody behind it says so.
            groups.push((Vec::new(), Vec::new()));
        }
        for (ports, endpoints) in groups {
            let chunks: Vec<&[Value]> = match endpoints.is_empty() {
                true => vec![&[]],
                false => endpoints.chunks(ENDPOINTS_MAX).collect(),
            };
            for chunk in chunks {
                out.push(json!({"addressType": if is_v6 { "IPv6" } else { "IPv4" },
                    "endpoints": chunk, "ports": ports}));
            }
        }
    }
    out
}

fn endpoint(backend: &Backend, address: &str) -> Value {
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": backend.is_ready, "serving": backend.is_serving,
            "terminating": backend.is_terminating},
        "targetRef": backend.reference(),
    });
    if !backend.node.is_empty() {
        endpoint["nodeName"] = json!(backend.node);
    }
    if let Some(hostname) = &backend.hostname {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

/// The same in the older form: those that are ready and those that are not, by ports. Null where there are none.
pub(super) fn subsets(ports: &[Value], backends: &[Backend]) -> Value {
    let mut groups: Vec<(Vec<Value>, Vec<Value>, Vec<Value>)> = Vec::new();
    for backend in backends.iter().take(ADDRESSES_MAX) {
        let Some(ip) = backend.addresses.first().filter(|_| !backend.is_terminating || backend.is_ready)
        else {
            continue;
        };
        let own = backend.resolve(ports);
        let mut address = json!({"ip": ip, "targetRef": backend.reference()});
        if !backend.node.is_empty() {
            address["nodeName"] = json!(backend.node);
        }
        if let Some(hostname) = &backend.hostname {
            address["hostname"] = json!(hostname);
        }
        let index = groups.iter().position(|(known, ..)| *known == own).unwrap_or_else(|| {
            groups.push((own, Vec::new(), Vec::new()));
            groups.len() - 1
        });
        let (_, ready, others) = &mut groups[index];
        if backend.is_ready { ready.push(address) } else { others.push(address) }
    }
    let subsets = groups.into_iter().map(|(ports, ready, others)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|mut port| {
                if port["name"] == ""
                    && let Some(port) = port.as_object_mut()
                {
                    port.remove("name");
                }
                port
            })
            .collect();
        let mut subset = json!({});
        for (field, list) in [("addresses", ready), ("notReadyAddresses", others), ("ports", ports)] {
            if !list.is_empty() {
                subset[field] = json!(list);
            }
        }
        subset
    });
    let subsets: Vec<Value> = subsets.collect();
    if subsets.is_empty() { Value::Null } else { Value::from(subsets) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ip: &str, port: i64, ready: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[test]
    fn named_ports_resolve_pod_by_pod() {
        let ports = [json!({"name": "web", "port": 80, "protocol": "TCP", "targetPort": "http"})];
        let backends: Vec<Backend> = [
            pod("a", "10.0.0.1", 8080, "True"),
            pod("b", "10.0.0.2", 9090, "True"),
            pod("c", "10.0.0.3", 8080, "False"),
        ]
        .iter()
        .filter_map(|pod| Backend::of(pod, false))
        .collect();
        let slices = of(&ports, &backends);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0]["ports"], json!([{"name": "web", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(slices[0]["endpoints"][1]["conditions"]["ready"], false);
        assert_eq!(slices[1]["endpoints"][0]["addresses"], json!(["10.0.0.2"]));
        let subsets = subsets(&ports, &backends);
        assert_eq!(subsets[0]["notReadyAddresses"][0]["ip"], "10.0.0.3");
        assert_eq!(subsets[1]["ports"][0]["port"], 9090);
    }

    #[test]
    fn many_endpoints_take_several_slices_and_none_take_one() {
        let ports = [json!({"port": 80, "protocol": "TCP", "targetPort": 80})];
        let backends: Vec<Backend> = (0..250)
            .filter_map(|n| {
                Backend::of(
                    &pod(&format!("p{n}"), &format!("10.0.{}.{}", n / 200, n % 200 + 1), 80, "True"),
                    false,
                )
            })
            .collect();
        let sizes: Vec<usize> = of(&ports, &backends)
            .iter()
            .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
            .collect();
        assert_eq!(sizes, [100, 100, 50]);
        let none = of(&ports, &[]);
        assert_eq!((none.len(), &none[0]["endpoints"]), (1, &json!([])));
        assert_eq!(subsets(&ports, &[]), Value::Null);
    }
}
