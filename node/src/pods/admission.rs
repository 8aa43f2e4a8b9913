//! Whether the node takes a pod on: the kubelet's rules about pressure, shutdown and host ports. Pure.
//!
//! A pod that is refused is Failed before anything of it exists; a pod that runs is not asked again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::object::MIRROR_ANNOTATION;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::qos::{self, QosClass};
use crate::node_state::Pressure;

/// Where a pod came from: `file`, or absent for the API.
pub(crate) const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// From here on pods are what the node itself needs.
pub(crate) const PRIORITY_CRITICAL: i32 = 2_000_000_000;
const TAINT_MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// Why a pod is not taken on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What admission goes by.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) pressure: BTreeSet<Pressure>,
    pub(crate) shutting_down: bool,
    /// Pods of which something may still run.
    pub(crate) pods: &'a [std::sync::Arc<Pod>],
}

/// Takes a new pod on, or says why not.
pub(crate) fn admit(pod: &Pod, node: &Node<'_>) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if node.shutting_down {
        let message = "Pod was rejected as the node is shutting down.".to_owned();
        return Err(Refusal { reason: "NodeShutdown", message });
    }
    if !is_critical(pod) && !tolerates(spec, &node.pressure) {
        let conditions: Vec<&str> = node.pressure.iter().map(|pressure| pressure.condition()).collect();
        let message = format!("The node had condition: [{}]. ", conditions.join(" "));
        return Err(Refusal { reason: "Evicted", message });
    }
    let wanted = host_ports(spec);
    let others = node.pods.iter().filter(|other| other.metadata.uid != pod.metadata.uid);
    let mut taken = others.filter_map(|other| other.spec.as_ref()).flat_map(host_ports);
    if taken.any(|taken| wanted.iter().any(|wanted| wanted.conflicts(&taken))) {
        let message =
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Refusal { reason: "NodePorts", message: message.to_owned() });
    }
    Ok(())
}

/// Whether the node may take a pod on although it is short of these.
fn tolerates(spec: &PodSpec, pressure: &BTreeSet<Pressure>) -> bool {
    let only_memory = pressure.iter().all(|kind| *kind == Pressure::Memory);
    let tolerated = spec.tolerations.iter().flatten().any(|toleration| {
        let any_value = matches!(toleration.operator.as_deref(), Some("Exists"));
        let no_value = toleration.value.as_deref().unwrap_or_default().is_empty();
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        (key == TAINT_MEMORY_PRESSURE || (key.is_empty() && any_value))
            && (any_value || no_value)
            && matches!(effect, "" | "NoSchedule")
    });
    pressure.is_empty() || (only_memory && (qos::class(spec) != QosClass::BestEffort || tolerated))
}

/// Whether the node needs the pod itself: static ones, and those of a system priority.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || is_mirror(pod) || priority(pod) >= PRIORITY_CRITICAL
}

/// How much the pod matters.
pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Whether the pod comes from a file of this node.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE_ANNOTATION).is_some_and(|source| source != "api") && !is_mirror(pod)
}

/// Whether the object only shows a static pod.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR_ANNOTATION).is_some()
}

/// One annotation of a pod.
pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A port of the host that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) protocol: String,
    /// The one address of the host, or every one.
    pub(crate) address: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        let apart = |a: Option<IpAddr>, b: Option<IpAddr>| a.is_some() && b.is_some() && a != b;
        self.host_port == other.host_port
            && self.protocol == other.protocol
            && !apart(self.address, other.address)
    }
}

/// The ports of the host that a pod's containers ask for. Init containers that end ask for none.
pub(crate) fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten());
    let asked = ports.filter_map(|port| {
        let address: Option<IpAddr> = port.host_ip.as_deref().and_then(|text| text.parse().ok());
        Some(HostPort {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            address: address.filter(|address| !address.is_unspecified()),
            host_port: port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?,
            container_port: u16::try_from(port.container_port).ok()?,
        })
    });
    asked.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "uid": "p"}, "spec": {"containers": [{"name": "c"}]}});
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn under(pressure: &[Pressure], pod: &Pod) -> Result<(), Refusal> {
        admit(pod, &Node { pressure: pressure.iter().copied().collect(), shutting_down: false, pods: &[] })
    }

    fn burstable(pod: &mut Value) {
        pod["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("1Mi");
    }

    #[test]
    fn under_memory_pressure_only_best_effort_pods_are_refused() {
        let memory = [Pressure::Memory];
        let refusal = under(&memory, &pod(|_| ())).unwrap_err();
        assert_eq!(refusal.reason, "Evicted");
        assert_eq!(refusal.message, "The node had condition: [MemoryPressure]. ");
        assert!(under(&memory, &pod(burstable)).is_ok());
        let key = "node.kubernetes.io/memory-pressure";
        for (tolerations, taken) in [
            (json!([{"key": key, "operator": "Exists"}]), true),
            (json!([{"operator": "Exists"}]), true),
            (json!([{"key": key, "operator": "Exists", "effect": "NoExecute"}]), false),
            (json!([{"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}]), false),
        ] {
            let tolerating = pod(|pod| pod["spec"]["tolerations"] = tolerations.clone());
            assert_eq!(under(&memory, &tolerating).is_ok(), taken, "{tolerations}");
        }
    }

    #[test]
    fn other_pressure_refuses_all_but_critical_pods() {
        let both = [Pressure::Memory, Pressure::Disk];
        let refusal = under(&both, &pod(burstable)).unwrap_err();
        assert_eq!(refusal.message, "The node had condition: [MemoryPressure DiskPressure]. ");
        assert!(under(&[Pressure::Pid], &pod(burstable)).is_err());
        assert!(under(&both, &pod(|pod| pod["spec"]["priority"] = json!(2_000_001_000))).is_ok());
        let from_file = json!({"kubernetes.io/config.source": "file"});
        assert!(under(&both, &pod(|pod| pod["metadata"]["annotations"] = from_file)).is_ok());
    }

    #[test]
    fn a_host_port_belongs_to_one_pod() {
        let with = |uid: &str, ports: Value| {
            pod(|pod| {
                pod["metadata"]["uid"] = json!(uid);
                pod["spec"]["containers"][0]["ports"] = ports;
            })
        };
        let taken = [Arc::new(with("a", json!([{"containerPort": 1, "hostPort": 80}])))];
        let admitted = |ports: Value| {
            let node = Node { pressure: BTreeSet::new(), shutting_down: false, pods: &taken };
            admit(&with("b", ports), &node)
        };
        let refusal =
            admitted(json!([{"containerPort": 9, "hostPort": 80, "hostIP": "10.0.0.1"}])).unwrap_err();
        assert_eq!(refusal.reason, "NodePorts");
        assert!(admitted(json!([{"containerPort": 9, "hostPort": 80, "protocol": "UDP"}])).is_ok());
        assert!(admitted(json!([{"containerPort": 80}])).is_ok());
        let node = Node { pressure: BTreeSet::new(), shutting_down: false, pods: &taken };
        assert!(admit(&taken[0], &node).is_ok(), "it does not stand in its own way");
    }

    #[test]
    fn a_node_that_shuts_down_takes_nothing() {
        let node = Node { pressure: BTreeSet::new(), shutting_down: true, pods: &[] };
        let critical = pod(|pod| pod["spec"]["priority"] = json!(2_000_001_000));
        assert_eq!(admit(&critical, &node).unwrap_err().reason, "NodeShutdown");
    }
}
