//! A node as the scheduler sees it: what it offers, what is taken, by whom.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::cluster_event::ClusterEvent;
use crate::pod_info::{HostPort, PodInfo};
use crate::resources::{InvalidQuantity, Resources, ScoredRequest};
use crate::taints::{Effect, Taint};

/// A node with the pods on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Sum of what its pods request; `pods` counts them.
    pub requested: Resources,
    pub(crate) scored: ScoredRequest,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// Taints that keep pods away.
    pub hard_taints: Vec<Taint>,
    /// Taints that make the node less wanted.
    pub soft_taints: Vec<Taint>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    host_ports: Vec<HostPort>,
    pods: HashMap<Arc<str>, Arc<PodInfo>>,
}

impl NodeInfo {
    /// Reads a node that has no pods yet.
    pub fn new(node: &Node) -> Result<Self, InvalidQuantity> {
        let mut info = Self::unknown(Arc::from(node.metadata.name.as_deref().unwrap_or_default()));
        info.update(node)?;
        Ok(info)
    }

    /// A node of which only pods are known: the pods were seen before the node, or it is gone.
    pub(crate) fn unknown(name: Arc<str>) -> Self {
        Self {
            name,
            allocatable: Resources::default(),
            requested: Resources::default(),
            scored: ScoredRequest::default(),
            unschedulable: false,
            hard_taints: Vec::new(),
            soft_taints: Vec::new(),
            labels: BTreeMap::new(),
            host_ports: Vec::new(),
            pods: HashMap::new(),
        }
    }

    /// Takes over a newer version of the node object and says what changed for waiting pods.
    pub(crate) fn update(&mut self, node: &Node) -> Result<Vec<ClusterEvent>, InvalidQuantity> {
        let mut changes = Vec::new();
        let allocatable = match node.status.as_ref().and_then(|status| status.allocatable.as_ref()) {
            Some(list) => Resources::from_quantities(list)?,
            None => Resources::default(),
        };
        if allocatable != self.allocatable {
            self.allocatable = allocatable;
            changes.push(ClusterEvent::NodeAllocatableChanged);
        }
        let labels = node.metadata.labels.clone().unwrap_or_default();
        if labels != self.labels {
            self.labels = labels;
            changes.push(ClusterEvent::NodeLabelsChanged);
        }
        let spec = node.spec.as_ref();
        let unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let (soft, hard): (Vec<_>, Vec<_>) =
            taints.filter_map(Taint::new).partition(|taint| taint.effect == Effect::PreferNoSchedule);
        if unschedulable != self.unschedulable || hard != self.hard_taints || soft != self.soft_taints {
            self.unschedulable = unschedulable;
            self.hard_taints = hard;
            self.soft_taints = soft;
            changes.push(ClusterEvent::NodeTaintsChanged);
        }
        Ok(changes)
    }

    /// The pods on the node.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.pods.values()
    }

    /// Whether one of the ports is taken.
    pub fn has_port_conflict(&self, wanted: &[HostPort]) -> bool {
        wanted.iter().any(|port| self.host_ports.iter().any(|taken| taken.conflicts(port)))
    }

    pub(crate) fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.requested.pods += 1;
        self.scored.add(pod.scored);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.requested.pods -= 1;
        self.scored.subtract(pod.scored);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|taken| taken == port) {
                self.host_ports.swap_remove(at);
            }
        }
        Some(pod)
    }
}
