//! The Services that every cluster has: `kubernetes` in the namespace `default`, by which programs inside the cluster
//! reach the API, and `kube-dns` in `kube-system`, at whose address every node answers for names.
//!
//! Owns them, and the Endpoints and EndpointSlice of the first: made where they are missing, put right where somebody
//! changed them. The API's has the first address of the range of Services; behind it stand the masters. Masters that are
//! reached on loopback only, as on one's own machine, stand behind nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::{Kind, Status, object};
use serde_json::{Value, json};

use super::{Context, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::Feed;
use crate::registry::Target;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
const PORT: u16 = 443;
const DNS_NAMESPACE: &str = "kube-system";
const DNS_NAME: &str = "kube-dns";
const DNS_PORT: u16 = 53;
/// How often it is looked at though nothing seems to have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// The wait after a look that failed.
const RETRY: Duration = Duration::from_millis(200);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut services = Feed::new(context.every("", "Service").clone());
    loop {
        let both = async {
            ensure(context, epoch).await?;
            ensure_dns(context, epoch).await
        };
        let wait = match both.await {
            Ok(()) => LOOK_INTERVAL,
            Err(status) => {
                tracing::debug!(%status, "the Services of the API and of names are not as they should be");
                RETRY
            }
        };
        let its_own = async {
            loop {
                let delta = services.next().await;
                let changed = (delta.object().namespace(), delta.object().name());
                if [(NAMESPACE, NAME), (DNS_NAMESPACE, DNS_NAME)].contains(&changed) {
                    return;
                }
            }
        };
        tokio::select! {
            () = its_own => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn ensure(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let port = context.masters.first().map_or(6443, SocketAddr::port);
    let address = context.registry.service_ranges().first().to_string();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let spec = json!({"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "sessionAffinity": "None",
        "ports": [{"name": "https", "port": PORT, "protocol": "TCP", "targetPort": port}]});
    put(
        context,
        epoch,
        core_kind("Service"),
        json!({"metadata": {"name": NAME, "labels": labels}, "spec": spec}),
    )
    .await?;
    let reachable: Vec<IpAddr> =
        context.masters.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
    if reachable.is_empty() {
        return Ok(());
    }
    let ips: Vec<Value> = reachable.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let endpoints = json!({"metadata": {"name": NAME}, "subsets": [{"addresses": ips, "ports": ports}]});
    put(context, epoch, core_kind("Endpoints"), endpoints).await?;
    let slices = context.every("discovery.k8s.io", "EndpointSlice").kind();
    let ready: Vec<Value> = reachable
        .iter()
        .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
        .collect();
    let family = if reachable[0].is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({"metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": family, "ports": ports, "endpoints": ready});
    put(context, epoch, slices, slice).await
}

/// The Service of names has no endpoints: each node answers at its address by itself.
async fn ensure_dns(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let Some(address) = context.registry.service_ranges().tenth().map(|address| address.to_string()) else {
        return Ok(());
    };
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "KubeDNS"});
    let port = |name: &str, protocol: &str| json!({"name": name, "port": DNS_PORT, "protocol": protocol, "targetPort": DNS_PORT});
    let spec = json!({"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "sessionAffinity": "None",
        "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]});
    let service =
        json!({"metadata": {"name": DNS_NAME, "namespace": DNS_NAMESPACE, "labels": labels}, "spec": spec});
    match put(context, epoch, core_kind("Service"), service).await {
        // Somebody's Service has that address already: names are answered there all the same.
        Err(status) if status.reason() == "Invalid" => {
            tracing::debug!(%status, "there is no Service of names");
            Ok(())
        }
        put => put,
    }
}

/// Makes an object, or puts right what of it differs from `wanted`.
async fn put(context: &Context, epoch: Epoch, kind: &'static Kind, wanted: Value) -> Result<(), Status> {
    let registry = &context.registry;
    let namespace = wanted["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE).to_owned();
    let name = object::name(&wanted).to_owned();
    let Some(found) = registry.get_local(kind, &namespace, &name).await? else {
        return match registry.create(kind, &namespace, wanted, &options(epoch)).await {
            Err(status) if status.reason() != "AlreadyExists" => Err(status),
            _ => Ok(()),
        };
    };
    if contains(found.value(), &wanted) || object::deletion_timestamp(found.value()).is_some() {
        return Ok(());
    }
    let change = |value: &mut Value| {
        merge(value, &wanted);
        Ok(())
    };
    settled(registry.modify(Target::new(kind, &namespace, &name), &options(epoch), change).await.map(drop))
}

/// Whether everything wanted is there.
fn contains(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Object(value), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| value.get(key).is_some_and(|value| contains(value, wanted)))
        }
        (Value::Array(value), Value::Array(wanted)) => {
            value.len() == wanted.len()
                && value.iter().zip(wanted).all(|(value, wanted)| contains(value, wanted))
        }
        (value, wanted) => value == wanted,
    }
}

fn merge(value: &mut Value, wanted: &Value) {
    match (value, wanted) {
        (Value::Object(value), Value::Object(wanted)) => {
            for (key, wanted) in wanted {
                merge(value.entry(key.clone()).or_insert(Value::Null), wanted);
            }
        }
        (value, wanted) => *value = wanted.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::Timings;
    use crate::registry::DeleteOptions;
    use crate::test_cluster::TestCluster;

    #[tokio::test]
    async fn the_service_of_the_api_is_there_and_comes_back() {
        let cluster = TestCluster::start(Timings::default()).await;
        let first = cluster.until("Service", NAMESPACE, NAME, |_| true).await;
        assert_eq!(first["spec"]["clusterIP"], "10.96.0.1");
        assert_eq!(first["spec"]["ports"][0]["port"], 443);
        cluster
            .until("Endpoints", NAMESPACE, NAME, |endpoints| {
                endpoints["subsets"][0]["addresses"][0]["ip"] == "192.168.0.1"
            })
            .await;
        let target = Target::new(core_kind("Service"), NAMESPACE, NAME);
        cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
        let second =
            cluster.until("Service", NAMESPACE, NAME, |service| object::uid(service) != object::uid(&first));
        assert_eq!(second.await["spec"]["clusterIP"], "10.96.0.1");
        let names = cluster.until("Service", DNS_NAMESPACE, DNS_NAME, |_| true).await;
        assert_eq!(names["spec"]["clusterIP"], "10.96.0.10");
    }
}
