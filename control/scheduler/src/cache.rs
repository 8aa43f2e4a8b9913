//! The node cache: every node with what its pods take, kept up to date change by change.
//!
//! A pod counts on its node from the moment the scheduler *assumes* it there, before the binding is stored,
//! so that the next cycle does not give the same room away twice. The watch later *confirms* it, or the
//! binding fails and the pod is *forgotten*. Pods of nodes that are not (or no longer) known are kept aside
//! and count again as soon as the node appears.
//!
//! Whoever keeps something per node asks which nodes changed since he looked last ([`Cache::changed_since`]):
//! the cost of a cycle follows the changes, not the nodes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::cluster_event::Change;
use crate::interner::Interner;
use crate::labels::Namespaces;
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::queue::{GroupKey, group_of};
use crate::resources::InvalidQuantity;
use crate::snapshot::Snapshot;

/// How many changes of nodes are remembered; who is further behind looks at every node again.
const CHANGES_MAX: usize = 1 << 16;

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

/// What [`Cache::place`] changed for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placed {
    /// A node got room back.
    pub released: bool,
    /// The pod counts where it did not count before.
    pub added: bool,
    /// It carries other labels than before.
    pub relabelled: bool,
}

/// Nodes, and pods by where they count.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: Vec<NodeInfo>,
    index: HashMap<Arc<str>, usize>,
    /// Pods whose node is not known, under the node's name.
    unknown: HashMap<Arc<str>, NodeInfo>,
    pods: HashMap<Arc<str>, Placement>,
    nominations: HashMap<Arc<str>, Arc<str>>,
    /// Pods that count on nodes, by group.
    groups: HashMap<GroupKey, usize>,
    namespaces: Namespaces,
    interner: Interner,
    holders: usize,
    /// Nodes in the order in which they changed.
    changes: VecDeque<u32>,
    /// How many changes were dropped from the front of `changes`.
    changes_dropped: u64,
    layout: u64,
}

impl Cache {
    /// The cluster as it is now.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::new(&self.nodes, &self.namespaces, self.holders)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|&at| &self.nodes[at])
    }

    /// Where a node stands in the snapshot.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Counts how often nodes came, went or were labelled anew, and namespaces were: what is kept by node
    /// is void when it changes.
    pub fn layout(&self) -> u64 {
        self.layout
    }

    /// How many changes there have been.
    pub fn change_count(&self) -> u64 {
        self.changes_dropped + self.changes.len() as u64
    }

    /// The nodes that changed after so many changes, maybe repeatedly. `None`: not remembered so far back.
    pub fn changed_since(&self, count: u64) -> Option<impl Iterator<Item = usize> + '_> {
        let skip = usize::try_from(count.checked_sub(self.changes_dropped)?).ok()?;
        Some(self.changes.range(skip.min(self.changes.len())..).map(|&at| at as usize))
    }

    /// The pod, sharing what it has in common with others.
    pub fn intern(&mut self, pod: PodInfo) -> Arc<PodInfo> {
        Arc::new(self.interner.intern(pod))
    }

    /// Takes over a node object and says what changed for waiting pods. An object that cannot be read
    /// changes nothing.
    pub fn upsert_node(&mut self, node: &Node) -> Result<Vec<Change>, InvalidQuantity> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if let Some(&at) = self.index.get(name) {
            let changes = self.nodes[at].update(node)?;
            if changes.contains(&Change::NodeLabels) {
                self.layout += 1;
            }
            if !changes.is_empty() {
                self.touch(at);
            }
            return Ok(changes);
        }
        let mut info = NodeInfo::new(node)?;
        if let Some(aside) = self.unknown.remove(name) {
            aside.pods().iter().for_each(|pod| info.add_pod(pod.clone()));
            aside.nominated().iter().for_each(|pod| info.nominate(pod.clone()));
        }
        self.index.insert(info.name().clone(), self.nodes.len());
        self.nodes.push(info);
        self.layout += 1;
        Ok(vec![Change::NodeAdded])
    }

    /// Drops a node. Its pods stay known: they count again if a node of this name comes back. Says whether
    /// there was one.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(at) = self.index.remove(name) else { return false };
        let removed = self.nodes.swap_remove(at);
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.name().clone(), at);
        }
        self.layout += 1;
        if !removed.pods().is_empty() || !removed.nominated().is_empty() {
            let mut aside = NodeInfo::unknown(removed.name().clone());
            removed.pods().iter().for_each(|pod| aside.add_pod(pod.clone()));
            removed.nominated().iter().for_each(|pod| aside.nominate(pod.clone()));
            self.unknown.insert(aside.name().clone(), aside);
        }
        true
    }

    /// Takes over a namespace's labels; `None`: it is gone. Says whether they changed.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        let changed = match labels {
            Some(labels) if self.namespaces.get(name) == Some(&labels) => false,
            Some(labels) => {
                self.namespaces.insert(Arc::from(name), labels);
                true
            }
            None => self.namespaces.remove(name).is_some(),
        };
        self.layout += u64::from(changed);
        changed
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
        let pod = self.interner.intern_shared(pod);
        let name = self.nodes[at].name().clone();
        self.pods.insert(pod.uid.clone(), Placement { node: name.clone(), assumed: true });
        self.add(&name, pod);
        Ok(())
    }

    /// Takes an assumed pod off its node again. Gives the pod, if there was one.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        self.remove_assumed(uid).map(|(_, pod)| pod)
    }

    /// The same; gives where it was as well.
    pub fn remove_assumed(&mut self, uid: &str) -> Option<(Arc<str>, Arc<PodInfo>)> {
        if self.is_assumed(uid) { self.remove_pod(uid) } else { None }
    }

    /// How many members of a pod group count on nodes.
    pub fn group_members(&self, group: &GroupKey) -> usize {
        self.groups.get(group).copied().unwrap_or(0)
    }

    /// Whether the pod counts on a node although its binding has not been seen yet.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placement| placement.assumed)
    }

    /// Whether the pod counts on a node.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The uids of all assumed pods.
    pub fn assumed(&self) -> Vec<Arc<str>> {
        self.pods.iter().filter(|(_, placement)| placement.assumed).map(|(uid, _)| uid.clone()).collect()
    }

    /// Counts a pod that the store says is bound: confirms an assumed one, corrects one that changed or is
    /// elsewhere than assumed.
    pub fn place(&mut self, pod: Arc<PodInfo>) -> Placed {
        let Some(node) = pod.node_name.clone() else { return Placed::default() };
        let pod = self.interner.intern_shared(pod);
        if let Some(placement) = self.pods.get_mut(&pod.uid)
            && placement.node == node
        {
            let place = match self.index.get(&node) {
                Some(&at) => Some(&mut self.nodes[at]),
                None => self.unknown.get_mut(&node),
            };
            if place.is_some_and(|place| place.replace_equal(&pod)) {
                placement.assumed = false;
                return Placed::default();
            }
        }
        let before = self.remove_pod(&pod.uid);
        let placed = match &before {
            None => Placed { added: true, ..Placed::default() },
            Some((was_on, was)) => Placed {
                released: *was_on != node || was.class.requests != pod.class.requests,
                added: *was_on != node,
                relabelled: was.labels != pod.labels,
            },
        };
        self.pods.insert(pod.uid.clone(), Placement { node: node.clone(), assumed: false });
        self.add(&node, pod);
        placed
    }

    /// Takes a pod off its node: it ended or its object is gone. Gives where it counted, and the pod.
    pub fn remove_pod(&mut self, uid: &str) -> Option<(Arc<str>, Arc<PodInfo>)> {
        let placement = self.pods.remove(uid)?;
        let pod = match self.index.get(&placement.node) {
            Some(&at) => {
                self.touch(at);
                self.nodes[at].remove_pod(uid)
            }
            None => {
                let aside = self.unknown.get_mut(&placement.node)?;
                let pod = aside.remove_pod(uid);
                self.drop_unknown_if_empty(&placement.node);
                pod
            }
        }?;
        self.holders -= usize::from(pod.class.holds_terms());
        if let Some(group) = group_of(&pod)
            && let Some(members) = self.groups.get_mut(&group)
        {
            *members -= 1;
            if *members == 0 {
                self.groups.remove(&group);
            }
        }
        Some((placement.node, pod))
    }

    /// Keeps room on a node for a pod that displaces others there.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.end_nomination(&pod.uid);
        let pod = self.interner.intern_shared(pod);
        let uid = pod.uid.clone();
        let name = match self.index.get(node) {
            Some(&at) => {
                self.touch(at);
                self.nodes[at].nominate(pod);
                self.nodes[at].name().clone()
            }
            None => {
                let name: Arc<str> = Arc::from(node);
                let aside = self.unknown.entry(name.clone());
                aside.or_insert_with(|| NodeInfo::unknown(name.clone())).nominate(pod);
                name
            }
        };
        self.nominations.insert(uid, name);
    }

    /// Where room is kept for a pod.
    pub fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominations.get(uid)
    }

    /// Keeps no room for a pod any more. Says where it was.
    pub fn end_nomination(&mut self, uid: &str) -> Option<Arc<str>> {
        let node = self.nominations.remove(uid)?;
        match self.index.get(&node) {
            Some(&at) => {
                self.touch(at);
                self.nodes[at].end_nomination(uid);
            }
            None => {
                if let Some(aside) = self.unknown.get_mut(&node) {
                    aside.end_nomination(uid);
                    self.drop_unknown_if_empty(&node);
                }
            }
        }
        Some(node)
    }

    fn add(&mut self, node: &Arc<str>, pod: Arc<PodInfo>) {
        self.holders += usize::from(pod.class.holds_terms());
        if let Some(group) = group_of(&pod) {
            *self.groups.entry(group).or_default() += 1;
        }
        match self.index.get(node) {
            Some(&at) => {
                self.touch(at);
                self.nodes[at].add_pod(pod);
            }
            None => {
                let aside = self.unknown.entry(node.clone());
                aside.or_insert_with_key(|name| NodeInfo::unknown(name.clone())).add_pod(pod);
            }
        }
    }

    fn drop_unknown_if_empty(&mut self, node: &str) {
        if self.unknown.get(node).is_some_and(|aside| aside.pods().is_empty() && aside.nominated().is_empty())
        {
            self.unknown.remove(node);
        }
    }

    fn touch(&mut self, at: usize) {
        // Positions beyond u32 would need four billion nodes.
        self.changes.push_back(at as u32);
        if self.changes.len() > CHANGES_MAX {
            self.changes.pop_front();
            self.changes_dropped += 1;
        }
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
        assert_eq!(cache.upsert_node(&node("a", "4")), Ok(vec![Change::NodeAdded]));
        assert_eq!(cache.upsert_node(&node("a", "4")), Ok(vec![]));
        assert_eq!(cache.upsert_node(&node("a", "8")), Ok(vec![Change::NodeAllocatable]));

        cache.assume(pod("p", "1", None), "a").expect("room");
        assert_eq!(taken(&cache, "a"), (1000, 1));
        assert!(cache.assume(pod("p", "1", None), "a").is_err());
        assert!(cache.forget("p").is_some());
        assert!(cache.forget("p").is_none());
        assert_eq!(taken(&cache, "a"), (0, 0));

        cache.assume(pod("p", "1", None), "a").expect("room");
        assert_eq!(cache.place(pod("p", "1", Some("a"))), Placed::default(), "confirming frees nothing");
        assert!(cache.forget("p").is_none(), "a confirmed pod is not forgotten");
        assert_eq!(taken(&cache, "a"), (1000, 1));
        assert!(cache.place(pod("p", "500m", Some("a"))).released, "asking for less frees room");
        assert_eq!(taken(&cache, "a"), (500, 1));
        assert!(cache.remove_pod("p").is_some());
        assert_eq!(taken(&cache, "a"), (0, 0));
    }

    #[test]
    fn a_pod_bound_elsewhere_than_assumed_moves() {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            cache.upsert_node(&node(name, "4")).expect("valid node");
        }
        cache.assume(pod("p", "1", None), "a").expect("room");
        assert!(cache.place(pod("p", "1", Some("b"))).released);
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
        assert!(cache.remove_pod("early").is_some());
        cache.upsert_node(&node("a", "4")).expect("valid node");
        assert_eq!(taken(&cache, "a"), (0, 0));
    }
}
