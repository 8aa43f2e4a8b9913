//! A pod as the scheduler sees it: everything that rules ask for, read once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodSpec};

use crate::resources::{InvalidQuantity, Resources, ScoredRequest, pod_requests};
use crate::selector::{InvalidSelector, NodeTerm};
use crate::taints::Toleration;

/// A pod that the scheduler cannot place because it cannot read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPod {
    /// The object has no uid or no name.
    #[error("the pod has no {field}")]
    Missing {
        /// The field that is missing.
        field: &'static str,
    },
    /// A request or the overhead is not a quantity.
    #[error("invalid request: {0}")]
    Quantity(#[from] InvalidQuantity),
    /// A node affinity term cannot be read.
    #[error("invalid node affinity: {0}")]
    Selector(#[from] InvalidSelector),
}

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The address bound; `0.0.0.0`: every one.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    const ANY: &'static str = "0.0.0.0";

    /// Whether both cannot be had at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == Self::ANY || other.ip == Self::ANY)
    }
}

/// Where a pod's volumes let it run. Comes from other objects than the pod, so the shell says it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodVolumes {
    /// Why the pod can run nowhere yet.
    pub problem: Option<String>,
    /// For each volume that is not everywhere: one of its terms must match the node.
    pub terms: Vec<Vec<NodeTerm>>,
}

/// A pod, read.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// `metadata.uid`: the pod's identity in queue and cache.
    pub uid: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.resourceVersion` of the object read.
    pub resource_version: String,
    /// `spec.priority`, 0 without.
    pub priority: i32,
    /// `spec.nodeName`, if the pod is bound.
    pub node_name: Option<Arc<str>>,
    /// `spec.schedulerName`.
    pub scheduler_name: String,
    /// What the pod takes on its node.
    pub requests: Resources,
    pub(crate) scored: ScoredRequest,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node that it takes.
    pub host_ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity: one of the terms must match; `None`: no such rule.
    pub required_terms: Option<Vec<NodeTerm>>,
    /// Preferred node affinity with weights.
    pub preferred_terms: Vec<(i64, NodeTerm)>,
    /// Where its volumes let it run.
    pub volumes: PodVolumes,
    /// Whether the pod is done (phase Succeeded or Failed) and holds nothing any more.
    pub finished: bool,
    /// Whether deletion has begun.
    pub terminating: bool,
    /// Whether a scheduling gate holds the pod back.
    pub gated: bool,
}

impl PodInfo {
    /// Reads a pod.
    pub fn new(pod: &Pod) -> Result<Self, InvalidPod> {
        let meta = &pod.metadata;
        let uid = meta.uid.as_deref().ok_or(InvalidPod::Missing { field: "metadata.uid" })?;
        let name = meta.name.as_deref().ok_or(InvalidPod::Missing { field: "metadata.name" })?;
        let spec = pod.spec.as_ref().ok_or(InvalidPod::Missing { field: "spec" })?;
        let (requests, scored) = pod_requests(spec)?;
        let (required_terms, preferred_terms) = node_affinity(spec.affinity.as_ref())?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Ok(Self {
            uid: Arc::from(uid),
            namespace: Arc::from(meta.namespace.as_deref().unwrap_or_default()),
            name: Arc::from(name),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            node_name: spec.node_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
            scheduler_name: spec.scheduler_name.clone().unwrap_or_default(),
            requests,
            scored,
            tolerations: spec.tolerations.iter().flatten().filter_map(Toleration::new).collect(),
            host_ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_terms,
            preferred_terms,
            volumes: PodVolumes::default(),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            terminating: meta.deletion_timestamp.is_some(),
            gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
        })
    }

    /// Whether the pod requests neither CPU nor memory nor anything else.
    pub fn requests_nothing(&self) -> bool {
        self.requests == Resources::default()
    }

    /// Whether the scheduler of this name has to find a node for the pod now.
    pub fn waits_for(&self, scheduler_name: &str) -> bool {
        self.node_name.is_none()
            && !self.finished
            && !self.terminating
            && !self.gated
            && self.scheduler_name == scheduler_name
    }

    /// Whether a change from `old` to this pod can alter where it fits.
    pub(crate) fn differs_for_scheduling(&self, old: &Self) -> bool {
        self.priority != old.priority
            || self.requests != old.requests
            || self.tolerations != old.tolerations
            || self.host_ports != old.host_ports
            || self.node_selector != old.node_selector
            || self.required_terms != old.required_terms
            || self.preferred_terms != old.preferred_terms
            || self.volumes != old.volumes
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        for port in container.ports.iter().flatten() {
            let Some(host_port) = port.host_port.filter(|&port| port > 0) else { continue };
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or(HostPort::ANY);
            let protocol = port.protocol.as_deref().filter(|text| !text.is_empty()).unwrap_or("TCP");
            ports.push(HostPort { ip: ip.to_owned(), protocol: protocol.to_owned(), port: host_port });
        }
    }
    ports
}

type NodeAffinityTerms = (Option<Vec<NodeTerm>>, Vec<(i64, NodeTerm)>);

fn node_affinity(affinity: Option<&Affinity>) -> Result<NodeAffinityTerms, InvalidSelector> {
    let Some(rules) = affinity.and_then(|affinity| affinity.node_affinity.as_ref()) else {
        return Ok((None, Vec::new()));
    };
    let required = rules
        .required_during_scheduling_ignored_during_execution
        .as_ref()
        .map(|selector| selector.node_selector_terms.iter().map(NodeTerm::new).collect())
        .transpose()?;
    let mut preferred = Vec::new();
    for term in rules.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
        let read = NodeTerm::new(&term.preference)?;
        if term.weight != 0 && !read.is_empty() {
            preferred.push((i64::from(term.weight), read));
        }
    }
    Ok((required, preferred))
}
