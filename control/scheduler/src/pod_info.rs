//! A pod as the scheduler sees it: everything that rules ask for, read once.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::labels::LabelSet;
use crate::pod_class::PodClass;
use crate::resources::InvalidQuantity;
use crate::selector::{InvalidSelector, NodeTerm};

/// The label that makes a pod a member of a group which is scheduled as a whole or not at all.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";
/// On a member: how many members the group needs at least.
pub const POD_GROUP_MIN_ANNOTATION: &str = "pod-group.scheduling.sigs.k8s.io/min-available";

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
    /// A label selector of a spread constraint or an affinity term cannot be read.
    #[error("invalid label selector: {reason}")]
    Labels {
        /// What is wrong with it.
        reason: String,
    },
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
    pub(crate) const ANY: &'static str = "0.0.0.0";

    /// Whether both cannot be had at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == Self::ANY || other.ip == Self::ANY)
    }
}

/// Where a pod's volumes let it run. Comes from other objects than the pod, so the shell says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PodVolumes {
    /// Why the pod can run nowhere yet.
    pub problem: Option<String>,
    /// For each volume that is not everywhere: one of its terms must match the node.
    pub terms: Vec<Vec<NodeTerm>>,
    /// For each volume that belongs to zones: the label and the values of which the node must carry one.
    pub zones: Vec<(String, Vec<String>)>,
}

/// The group that a pod belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The group's name; it lies in the pod's namespace.
    pub name: Arc<str>,
    /// How many members the pod itself says the group needs; a group object says more.
    pub min: Option<usize>,
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
    pub resource_version: Arc<str>,
    /// What it has in common with equal pods. Shared by address once the scheduler knows the pod.
    pub class: Arc<PodClass>,
    /// Its labels. Shared like the class.
    pub labels: Arc<LabelSet>,
    /// `spec.nodeName`, if the pod is bound.
    pub node_name: Option<Arc<str>>,
    /// `status.nominatedNodeName`: where pods are being displaced for it.
    pub nominated_node: Option<Arc<str>>,
    /// `spec.schedulerName`.
    pub scheduler_name: Arc<str>,
    /// Whether the pod is done (phase Succeeded or Failed) and holds nothing any more.
    pub finished: bool,
    /// Whether deletion has begun.
    pub terminating: bool,
    /// `status.startTime`, in milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// `spec.schedulingGates`: what holds the pod back.
    pub gates: Vec<String>,
    /// The group it belongs to.
    pub group: Option<GroupMember>,
}

impl PodInfo {
    /// Reads a pod without volumes of its own.
    pub fn new(pod: &Pod) -> Result<Self, InvalidPod> {
        Self::with_volumes(pod, PodVolumes::default())
    }

    /// Reads a pod.
    pub fn with_volumes(pod: &Pod, volumes: PodVolumes) -> Result<Self, InvalidPod> {
        let meta = &pod.metadata;
        let uid = meta.uid.as_deref().ok_or(InvalidPod::Missing { field: "metadata.uid" })?;
        let name = meta.name.as_deref().ok_or(InvalidPod::Missing { field: "metadata.name" })?;
        let spec = pod.spec.as_ref().ok_or(InvalidPod::Missing { field: "spec" })?;
        let namespace: Arc<str> = Arc::from(meta.namespace.as_deref().unwrap_or_default());
        let status = pod.status.as_ref();
        let named = |name: &Option<String>| name.as_deref().filter(|name| !name.is_empty()).map(Arc::from);
        let gates = spec.scheduling_gates.iter().flatten().map(|gate| gate.name.clone());
        let started = status.and_then(|status| status.start_time.as_ref());
        Ok(Self {
            uid: Arc::from(uid),
            name: Arc::from(name),
            resource_version: Arc::from(meta.resource_version.as_deref().unwrap_or_default()),
            class: Arc::new(PodClass::new(pod, spec, volumes)?),
            labels: Arc::new(LabelSet {
                namespace: namespace.clone(),
                labels: meta.labels.clone().unwrap_or_default(),
            }),
            namespace,
            node_name: named(&spec.node_name),
            nominated_node: status.and_then(|status| named(&status.nominated_node_name)),
            scheduler_name: Arc::from(spec.scheduler_name.as_deref().unwrap_or_default()),
            finished: matches!(
                status.and_then(|status| status.phase.as_deref()),
                Some("Succeeded" | "Failed")
            ),
            terminating: meta.deletion_timestamp.is_some(),
            started_ms: started.map(|time| time.0.as_millisecond()),
            gates: gates.collect(),
            group: group(pod),
        })
    }

    /// Whether a scheduler has to find a node for the pod.
    pub fn is_pending(&self) -> bool {
        self.node_name.is_none() && !self.finished && !self.terminating
    }

    /// Whether a change from `old` to this pod can alter where it fits, or whether it may be tried.
    pub(crate) fn differs_for_scheduling(&self, old: &Self) -> bool {
        !Arc::ptr_eq(&self.class, &old.class) && self.class != old.class
            || !Arc::ptr_eq(&self.labels, &old.labels) && self.labels != old.labels
            || self.gates != old.gates
            || self.group != old.group
    }
}

fn group(pod: &Pod) -> Option<GroupMember> {
    let label = |key: &str| pod.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let note = |key: &str| pod.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let name = label(POD_GROUP_LABEL).filter(|name| !name.is_empty())?;
    let min = note(POD_GROUP_MIN_ANNOTATION).or_else(|| label(POD_GROUP_MIN_ANNOTATION));
    Some(GroupMember { name: Arc::from(name), min: min.and_then(|min| min.parse().ok()) })
}
