//! The node cache: every node with what its pods take, kept up to date change by change.
//!
//! A pod counts on its node from the moment the scheduler *assumes* it there, before the binding is stored,
//! so that the next cycle does not give the same room away twice. The watch later *confirms* it, or the
//! binding fails and the pod is *forgotten*. Pods of nodes that are not (or no longer) known are kept aside
//! and count again as soon as the node appears.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::cluster_event::ClusterEvent;
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::resources::InvalidQuantity;
use crate::snapshot::Snapshot;

/// Why a pod cannot be assumed on a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssumeError {
    /// The node is not in the cache.
    #[error("node {node} is not known")]
    UnknownNode {
        /// Its name.
        node: String,
    },
    /// The pod already counts on a node.
    #[error("pod {uid} already counts on node {node}")]
    AlreadyPlaced {
        /// The pod.
        uid: String,
        /// Where it counts.
        node: String,
    },
}

#[derive(Debug)]
struct Placement {
    node: Arc<str>,
    assumed: bool,
}

/// Nodes, and pods by where they count.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: Vec<NodeInfo>,
    index: HashMap<Arc<str>, usize>,
    /// Pods whose node is not known, under the node's name.
    unknown: HashMap<Arc<str>, NodeInfo>,
    pods: HashMap<Arc<str>, Placement>,
}

impl Cache {
    /// The nodes as they are now.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::new(&self.nodes)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|&at| &self.nodes[at])
    }

    /// Takes over a node object and says what changed for waiting pods. An object that cannot be read
    /// changes nothing.
    pub fn upsert_node(&mut self, node: &Node) -> Result<Vec<ClusterEvent>, InvalidQuantity> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if let Some(&at) = self.index.get(name) {
            return self.nodes[at].update(node);
        }
        let mut info = NodeInfo::new(node)?;
        for pod in self.unknown.remove(name).iter().flat_map(NodeInfo::pods) {
            info.add_pod(pod.clone());
        }
        self.index.insert(info.name.clone(), self.nodes.len());
        self.nodes.push(info);
        Ok(vec![ClusterEvent::NodeAdded])
    }

    /// Drops a node. Its pods stay known: they count again if a node of this name comes back.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.index.remove(name) else { return };
        let removed = self.nodes.swap_remove(at);
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.name.clone(), at);
        }
        if removed.pods().next().is_some() {
            let mut aside = NodeInfo::unknown(removed.name.clone());
            for pod in removed.pods() {
                aside.add_pod(pod.clone());
            }
            self.unknown.insert(aside.name.clone(), aside);
        }
    }

    /// Counts a pod on the node chosen for it, ahead of the binding.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) -> Result<(), AssumeError> {
        if let Some(placement) = self.pods.get(&pod.uid) {
            return Err(AssumeError::AlreadyPlaced {
                uid: pod.uid.to_string(),
                node: placement.node.to_string(),
            });
        }
        let Some(&at) = self.index.get(node) else {
            return Err(AssumeError::UnknownNode { node: node.to_owned() });
        };
        let name = self.nodes[at].name.clone();
        self.pods.insert(pod.uid.clone(), Placement { node: name, assumed: true });
        self.nodes[at].add_pod(pod);
        Ok(())
    }

    /// Takes an assumed pod off its node again. Says whether there was one.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.is_assumed(uid) && self.remove_pod(uid)
    }

    /// Whether the pod counts on a node although its binding has not been seen yet.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placement| placement.assumed)
    }

    /// The uids of all assumed pods.
    pub fn assumed(&self) -> Vec<Arc<str>> {
        self.pods.iter().filter(|(_, placement)| placement.assumed).map(|(uid, _)| uid.clone()).collect()
    }

    /// Counts a pod that the store says is bound: confirms an assumed one, corrects one that changed or is
    /// elsewhere than assumed. Says whether its node got room back.
    pub fn place(&mut self, pod: Arc<PodInfo>) -> bool {
        let Some(node) = pod.node_name.clone() else { return false };
        let before = self.take(&pod.uid);
        let released = before.is_some_and(|(was_on, was)| was_on != node || was.requests != pod.requests);
        self.pods.insert(pod.uid.clone(), Placement { node: node.clone(), assumed: false });
        match self.index.get(&node) {
            Some(&at) => self.nodes[at].add_pod(pod),
            None => self
                .unknown
                .entry(node)
                .or_insert_with_key(|name| NodeInfo::unknown(name.clone()))
                .add_pod(pod),
        }
        released
    }

    /// Takes a pod off its node: it ended or its object is gone. Says whether it counted anywhere.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.take(uid).is_some()
    }

    fn take(&mut self, uid: &str) -> Option<(Arc<str>, Arc<PodInfo>)> {
        let placement = self.pods.remove(uid)?;
        let pod = match self.index.get(&placement.node) {
            Some(&at) => self.nodes[at].remove_pod(uid),
            None => {
                let aside = self.unknown.get_mut(&placement.node)?;
                let pod = aside.remove_pod(uid);
                if aside.pods().next().is_none() {
                    self.unknown.remove(&placement.node);
                }
                pod
            }
        };
        pod.map(|pod| (placement.node, pod))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::{Container, NodeStatus, Pod, PodSpec, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn node(name: &str, cpu: &str) -> Node {
        let list = BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("pods".to_owned(), Quantity("10".to_owned())),
        ]);
        Node {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
            status: Some(NodeStatus { allocatable: Some(list), ..Default::default() }),
            ..Default::default()
        }
    }

    fn pod(uid: &str, cpu: &str, node: Option<&str>) -> Arc<PodInfo> {
        let requests = BTreeMap::from([("cpu".to_owned(), Quantity(cpu.to_owned()))]);
        let container = Container {
            resources: Some(ResourceRequirements { requests: Some(requests), ..Default::default() }),
            ..Default::default()
        };
        let pod = Pod {
            metadata: ObjectMeta {
                uid: Some(uid.to_owned()),
                name: Some(uid.to_owned()),
                ..Default::default()
            },
            spec: Some(PodSpec {
                containers: vec![container],
                node_name: node.map(str::to_owned),
                ..Default::default()
            }),
            ..Default::default()
        };
        Arc::new(PodInfo::new(&pod).expect("valid pod"))
    }

    fn taken(cache: &Cache, node: &str) -> (i64, i64) {
        let node = cache.node(node).expect("known node");
        (node.requested.milli_cpu, node.requested.pods)
    }

    #[test]
    fn assume_forget_confirm() {
        let mut cache = Cache::default();
        assert_eq!(cache.upsert_node(&node("a", "4")), Ok(vec![ClusterEvent::NodeAdded]));
        assert_eq!(cache.upsert_node(&node("a", "4")), Ok(vec![]));
        assert_eq!(cache.upsert_node(&node("a", "8")), Ok(vec![ClusterEvent::NodeAllocatableChanged]));

        cache.assume(pod("p", "1", None), "a").expect("room");
        assert_eq!(taken(&cache, "a"), (1000, 1));
        assert!(cache.assume(pod("p", "1", None), "a").is_err());
        assert!(cache.forget("p"));
        assert!(!cache.forget("p"));
        assert_eq!(taken(&cache, "a"), (0, 0));

        cache.assume(pod("p", "1", None), "a").expect("room");
        assert!(!cache.place(pod("p", "1", Some("a"))), "confirming frees nothing");
        assert!(!cache.forget("p"), "a confirmed pod is not forgotten");
        assert_eq!(taken(&cache, "a"), (1000, 1));
        assert!(cache.place(pod("p", "500m", Some("a"))), "asking for less frees room");
        assert_eq!(taken(&cache, "a"), (500, 1));
        assert!(cache.remove_pod("p"));
        assert_eq!(taken(&cache, "a"), (0, 0));
    }

    #[test]
    fn a_pod_bound_elsewhere_than_assumed_moves() {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            cache.upsert_node(&node(name, "4")).expect("valid node");
        }
        cache.assume(pod("p", "1", None), "a").expect("room");
        assert!(cache.place(pod("p", "1", Some("b"))));
        assert_eq!(taken(&cache, "a"), (0, 0));
        assert_eq!(taken(&cache, "b"), (1000, 1));
    }

    #[test]
    fn pods_outlive_their_node_and_count_when_it_returns() {
        let mut cache = Cache::default();
        cache.place(pod("early", "1", Some("a")));
        for name in ["a", "b"] {
            cache.upsert_node(&node(name, "4")).expect("valid node");
        }
        assert_eq!(taken(&cache, "a"), (1000, 1));
        cache.remove_node("a");
        assert!(cache.node("a").is_none());
        assert_eq!(taken(&cache, "b"), (0, 0));
        cache.upsert_node(&node("a", "4")).expect("valid node");
        assert_eq!(taken(&cache, "a"), (1000, 1));
        cache.remove_node("a");
        assert!(cache.remove_pod("early"));
        cache.upsert_node(&node("a", "4")).expect("valid node");
        assert_eq!(taken(&cache, "a"), (0, 0));
    }
}
