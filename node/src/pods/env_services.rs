//! Variables that name the Services of a pod's namespace, and the API's own, as Kubernetes' kubelet sets them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;

use crate::network::cluster::ClusterNetwork;

/// How long a container waits for Services that a leader has named and not yet told.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(2);
/// The API's Service: every pod is told of it.
const API: (&str, &str) = ("default", "kubernetes");

/// The variables of a pod. Without a leader's word there are none: the pod is one that runs without masters.
pub(crate) fn variables(
    network: &ClusterNetwork,
    namespace: &str,
    has_links: bool,
) -> BTreeMap<String, String> {
    if !network.wait_complete(SERVICES_TIMEOUT) {
        tracing::debug!(
            namespace,
            "a container starts without variables of Services: no leader has told them yet"
        );
    }
    let mut all = BTreeMap::new();
    if let Some(api) = network.get(API.0, API.1).and_then(|known| known.service) {
        of_service(&api, &mut all);
    }
    if has_links {
        network.of_namespace(namespace).iter().for_each(|service| of_service(service, &mut all));
    }
    all
}

fn of_service(service: &Service, into: &mut BTreeMap<String, String>) {
    let (Some(spec), Some(name)) = (&service.spec, &service.metadata.name) else { return };
    let Some(address) = spec.cluster_ip.as_deref().filter(|address| !matches!(*address, "" | "None")) else {
        return;
    };
    let prefix = name.replace('-', "_").to_uppercase();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let mut set = |suffix: &str, value: String| drop(into.insert(format!("{prefix}_{suffix}"), value));
    set("SERVICE_HOST", address.to_owned());
    set("SERVICE_PORT", first.port.to_string());
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            set(&format!("SERVICE_PORT_{}", name.replace('-', "_").to_uppercase()), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            set("PORT", url.clone());
        }
        let of_port = format!("PORT_{}_{protocol}", port.port);
        set(&of_port, url);
        set(&format!("{of_port}_PROTO"), protocol.to_lowercase());
        set(&format!("{of_port}_PORT"), port.port.to_string());
        set(&format!("{of_port}_ADDR"), address.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::network::cluster::{Key, Kind};

    #[test]
    fn a_pod_is_told_of_its_namespace_and_of_the_api() {
        let network = ClusterNetwork::default();
        network.index(BTreeMap::new());
        for (namespace, name, address) in [
            ("default", "kubernetes", "10.96.0.1"),
            ("default", "other", "10.96.0.2"),
            ("shop", "my-db", "10.96.0.3"),
            ("shop", "head", "None"),
        ] {
            let ports =
                json!([{"name": "sql-main", "port": 5432}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
            let service = json!({"metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": address, "ports": ports}});
            let key = Key { kind: Kind::Service, namespace: namespace.to_owned(), name: name.to_owned() };
            network.apply([(key, Some((1, service.to_string().into())))]);
        }
        let all = variables(&network, "shop", true);
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("MY_DB_SERVICE_HOST", "10.96.0.3"),
            ("MY_DB_SERVICE_PORT", "5432"),
            ("MY_DB_SERVICE_PORT_SQL_MAIN", "5432"),
            ("MY_DB_PORT", "tcp://10.96.0.3:5432"),
            ("MY_DB_PORT_53_UDP", "udp://10.96.0.3:53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
            ("MY_DB_PORT_5432_TCP_ADDR", "10.96.0.3"),
        ] {
            assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!all.keys().any(|name| name.starts_with("OTHER") || name.starts_with("HEAD")), "{all:?}");
        let few = variables(&network, "shop", false);
        assert!(few.contains_key("KUBERNETES_SERVICE_PORT") && !few.contains_key("MY_DB_PORT"), "{few:?}");
    }
}
