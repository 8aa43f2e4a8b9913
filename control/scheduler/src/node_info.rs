//! A node as the scheduler sees it: what it offers, what is taken, by whom.
//!
//! What comes from the node's object and what its pods take are kept apart: the first is shared, so that a
//! [`NodeInfo::trial`] copy (to ask "what if these pods were gone") is cheap.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::cluster_event::Change;
use crate::labels::LabelSet;
use crate::pod_class::{PodClass, full_image_name};
use crate::pod_info::{HostPort, PodInfo};
use crate::resources::{InvalidQuantity, Resources, ScoredRequest};
use crate::taints::{Effect, Taint};

/// What the node's object says.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// Taints that keep pods away.
    pub hard_taints: Vec<Taint>,
    /// Taints that make the node less wanted.
    pub soft_taints: Vec<Taint>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `status.images`: size in bytes by name.
    pub images: BTreeMap<String, i64>,
}

impl NodeObject {
    fn unknown(name: Arc<str>) -> Self {
        Self {
            name,
            allocatable: Resources::default(),
            unschedulable: false,
            hard_taints: Vec::new(),
            soft_taints: Vec::new(),
            labels: BTreeMap::new(),
            images: BTreeMap::new(),
        }
    }

    fn read(name: Arc<str>, node: &Node) -> Result<Self, InvalidQuantity> {
        let status = node.status.as_ref();
        let allocatable = match status.and_then(|status| status.allocatable.as_ref()) {
            Some(list) => Resources::from_quantities(list)?,
            None => Resources::default(),
        };
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let (soft_taints, hard_taints) =
            taints.filter_map(Taint::new).partition(|taint| taint.effect == Effect::PreferNoSchedule);
        let images = status.and_then(|status| status.images.as_ref()).into_iter().flatten();
        let images = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (full_image_name(name), size))
        });
        Ok(Self {
            name,
            allocatable,
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            hard_taints,
            soft_taints,
            labels: node.metadata.labels.clone().unwrap_or_default(),
            images: images.collect(),
        })
    }
}

/// How many pods of a node carry the same labels.
#[derive(Debug, Clone)]
pub struct LabelCount {
    /// The labels.
    pub labels: Arc<LabelSet>,
    /// Pods with them.
    pub pods: i64,
    /// Those of them that are being deleted.
    pub terminating: i64,
}

/// A node with the pods on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// What its object says.
    pub object: Arc<NodeObject>,
    /// Sum of what its pods request; `pods` counts them.
    pub requested: Resources,
    pub(crate) scored: ScoredRequest,
    /// Its pods by their labels.
    pub label_counts: Vec<LabelCount>,
    /// Its pods that attract or repel others, by class.
    pub holders: Vec<(Arc<PodClass>, i64)>,
    host_ports: Vec<HostPort>,
    pods: Vec<Arc<PodInfo>>,
    nominated: Vec<Arc<PodInfo>>,
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
            object: Arc::new(NodeObject::unknown(name)),
            requested: Resources::default(),
            scored: ScoredRequest::default(),
            label_counts: Vec::new(),
            holders: Vec::new(),
            host_ports: Vec::new(),
            pods: Vec::new(),
            nominated: Vec::new(),
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &Arc<str> {
        &self.object.name
    }

    /// Takes over a newer version of the node object and says what changed for waiting pods.
    pub(crate) fn update(&mut self, node: &Node) -> Result<Vec<Change>, InvalidQuantity> {
        let new = NodeObject::read(self.object.name.clone(), node)?;
        let old = &self.object;
        let mut changes = Vec::new();
        if new.allocatable != old.allocatable {
            changes.push(Change::NodeAllocatable);
        }
        if new.labels != old.labels {
            changes.push(Change::NodeLabels);
        }
        if new.unschedulable != old.unschedulable
            || new.hard_taints != old.hard_taints
            || new.soft_taints != old.soft_taints
        {
            changes.push(Change::NodeTaints);
        }
        if new.images != old.images {
            changes.push(Change::NodeImages);
        }
        if !changes.is_empty() {
            self.object = Arc::new(new);
        }
        Ok(changes)
    }

    /// The pods on the node.
    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    /// Pods for which room is being made here.
    pub fn nominated(&self) -> &[Arc<PodInfo>] {
        &self.nominated
    }

    /// Whether one of the ports is taken.
    pub fn has_port_conflict(&self, wanted: &[HostPort]) -> bool {
        wanted.iter().any(|port| self.host_ports.iter().any(|taken| taken.conflicts(port)))
    }

    /// A copy with the same sums whose list of pods is empty: for [`Self::count`] and [`Self::uncount`].
    pub(crate) fn trial(&self) -> Self {
        Self {
            object: self.object.clone(),
            requested: self.requested.clone(),
            scored: self.scored,
            label_counts: self.label_counts.clone(),
            holders: self.holders.clone(),
            host_ports: self.host_ports.clone(),
            pods: Vec::new(),
            nominated: Vec::new(),
        }
    }

    pub(crate) fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.count(&pod);
        self.pods.push(pod);
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| &*pod.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        self.uncount(&pod);
        Some(pod)
    }

    /// Takes over a newer version of a pod that counts the same. Says whether there was one.
    pub(crate) fn replace_equal(&mut self, pod: &Arc<PodInfo>) -> bool {
        let known = self.pods.iter_mut().find(|known| known.uid == pod.uid);
        match known {
            Some(known)
                if Arc::ptr_eq(&known.class, &pod.class)
                    && Arc::ptr_eq(&known.labels, &pod.labels)
                    && known.terminating == pod.terminating =>
            {
                *known = pod.clone();
                true
            }
            _ => false,
        }
    }

    pub(crate) fn nominate(&mut self, pod: Arc<PodInfo>) {
        self.nominated.push(pod);
    }

    pub(crate) fn end_nomination(&mut self, uid: &str) {
        self.nominated.retain(|pod| &*pod.uid != uid);
    }

    /// Adds what a pod takes to the sums.
    pub(crate) fn count(&mut self, pod: &PodInfo) {
        let class = &pod.class;
        self.requested.add(&class.requests);
        self.requested.pods += 1;
        self.scored.add(class.scored);
        self.host_ports.extend(class.host_ports.iter().cloned());
        let known = self.label_counts.iter_mut().find(|count| Arc::ptr_eq(&count.labels, &pod.labels));
        let terminating = i64::from(pod.terminating);
        match known {
            Some(count) => {
                count.pods += 1;
                count.terminating += terminating;
            }
            None => self.label_counts.push(LabelCount { labels: pod.labels.clone(), pods: 1, terminating }),
        }
        if class.holds_terms() {
            match self.holders.iter_mut().find(|(known, _)| Arc::ptr_eq(known, class)) {
                Some((_, pods)) => *pods += 1,
                None => self.holders.push((class.clone(), 1)),
            }
        }
    }

    /// Takes what a pod takes off the sums.
    pub(crate) fn uncount(&mut self, pod: &PodInfo) {
        let class = &pod.class;
        self.requested.subtract(&class.requests);
        self.requested.pods -= 1;
        self.scored.subtract(class.scored);
        for port in &class.host_ports {
            if let Some(at) = self.host_ports.iter().position(|taken| taken == port) {
                self.host_ports.swap_remove(at);
            }
        }
        if let Some(at) = self.label_counts.iter().position(|count| Arc::ptr_eq(&count.labels, &pod.labels)) {
            let count = &mut self.label_counts[at];
            count.pods -= 1;
            count.terminating -= i64::from(pod.terminating);
            if count.pods == 0 {
                self.label_counts.swap_remove(at);
            }
        }
        if class.holds_terms()
            && let Some(at) = self.holders.iter().position(|(known, _)| Arc::ptr_eq(known, class))
        {
            self.holders[at].1 -= 1;
            if self.holders[at].1 == 0 {
                self.holders.swap_remove(at);
            }
        }
    }
}
