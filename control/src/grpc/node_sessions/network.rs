//! What nodes are told of the cluster's network: every Service, EndpointSlice, Ingress and NetworkPolicy, to every node; while
//! there is any policy, also what policies ask about: the labels of namespaces, and of pods the labels, addresses and
//! names of ports.
//!
//! Owns the order in which that is told, and what of an object is told. A leader begins with an index, keys and revisions;
//! the node asks for what it lacks or has in another revision, and hears of every change after that. So a new leader costs
//! a node what changed meanwhile, not everything. As with pods nothing is queued: a key stands in the mailbox once, and
//! what is told is what the copy holds when the telling happens. The policies of a pod's namespace are told once more
//! ahead of the pod, out of this replica's own store: the copies of two kinds do not move together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::Kind;
use api::kinds::by_kind;
use bytes::Bytes;
use proto::node::{NetworkChanges, NetworkIndex, NetworkObject, ObjectKey, to_node};
use ring::digest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{NodeSessions, entrances};
use crate::leader::Epoch;
use crate::object_store::SharedStore;
use crate::reflector::{Delta, Feed, Reflector};
use crate::registry::{ListOptions, Object};

/// The kinds that the cluster's network is made of.
pub(crate) const NETWORK_KINDS: [&str; 7] =
    ["Service", "EndpointSlice", "Ingress", "IngressClass", POLICY, "Namespace", "Pod"];
const POLICY: &str = "NetworkPolicy";
/// Those of which nodes hear a part, and only while there is any policy.
const PEER_KINDS: [&str; 2] = ["Namespace", "Pod"];
/// Most objects in one message: with the largest slices it stays well below what a node takes.
pub(super) const CHANGES_MAX: usize = 512;

/// The address of one of them; copies share the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NetworkKey {
    kind: &'static str,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl NetworkKey {
    /// `None`: the network is not made of this kind.
    pub(super) fn parse(key: ObjectKey) -> Option<Self> {
        let kind = NETWORK_KINDS.into_iter().find(|kind| *kind == key.kind)?;
        Some(Self { kind, namespace: key.namespace.into(), name: key.name.into() })
    }

    fn of(object: &Object) -> Self {
        let kind: &'static Kind = object.kind();
        Self { kind: kind.kind, namespace: object.namespace().into(), name: object.name().into() }
    }

    fn wire(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind.to_owned(),
            namespace: self.namespace.to_string(),
            name: self.name.to_string(),
        }
    }
}

impl NodeSessions {
    /// Tells sessions of changes of the cluster's network, until cancelled.
    pub(super) async fn route_network(&self) {
        let feeds = self.inner.network.iter().map(|copy| self.route_kind(copy));
        futures_util::future::join_all(feeds).await;
    }

    async fn route_kind(&self, copy: &Reflector<SharedStore>) {
        let mut feed = Feed::new(copy.clone());
        let mut told: BTreeMap<NetworkKey, u64> = BTreeMap::new();
        let (is_policy, is_peer) = (copy.kind().kind == POLICY, is_peer(copy.kind()));
        let mut has_policies = false;
        let decides_certificates = entrances::KINDS.contains(&copy.kind().kind);
        loop {
            let delta = feed.next().await;
            let key = NetworkKey::of(delta.object());
            if is_peer {
                // What nodes hear of it seldom changes when it does.
                let revision = match &delta {
                    Delta::Applied(object) => text(object).map(|(revision, _)| revision),
                    Delta::Deleted(_) => None,
                };
                let before = match revision {
                    Some(revision) => told.insert(key.clone(), revision),
                    None => told.remove(&key),
                };
                if before == revision || !self.has_policies() {
                    continue;
                }
            }
            if decides_certificates {
                self.tell_certificates();
            }
            let had_policies = std::mem::replace(&mut has_policies, self.has_policies());
            for mailbox in self.mailboxes().values() {
                if is_policy && had_policies != has_policies {
                    mailbox.network_anew();
                }
                mailbox.network_object(&key);
            }
        }
    }

    fn has_policies(&self) -> bool {
        self.inner.network.iter().any(|copy| copy.kind().kind == POLICY && copy.any())
    }

    /// Every object with its revision.
    pub(super) fn network_index(&self, epoch: Epoch) -> to_node::Message {
        let has_policies = self.has_policies();
        let told = self.inner.network.iter().filter(|copy| has_policies || !is_peer(copy.kind()));
        let entry = |object: Arc<Object>| {
            let (revision, _) = text(&object)?;
            Some(NetworkObject {
                key: Some(NetworkKey::of(&object).wire()),
                revision,
                object_json: Bytes::new(),
            })
        };
        let objects = told.flat_map(Reflector::list).filter_map(entry).collect();
        to_node::Message::NetworkIndex(NetworkIndex { epoch: epoch.0, objects })
    }

    /// What is true of these objects now.
    pub(super) fn network_changes(&self, epoch: Epoch, keys: &[NetworkKey]) -> to_node::Message {
        let mut changes = NetworkChanges { epoch: epoch.0, ..NetworkChanges::default() };
        for key in keys {
            let copy: Option<&Reflector<SharedStore>> =
                self.inner.network.iter().find(|copy| copy.kind().kind == key.kind);
            let object = copy.and_then(|copy| copy.get(&key.namespace, &key.name));
            match object.and_then(|object| text(&object)) {
                Some((revision, object_json)) => {
                    changes.changed.push(NetworkObject { key: Some(key.wire()), revision, object_json });
                }
                None => changes.removed.push(key.wire()),
            }
        }
        to_node::Message::NetworkChanges(changes)
    }

    /// The policies that may select pods of these namespaces, as this replica's store has them: at least as new as what the
    /// pods were read from. `None`: there are none.
    pub(super) async fn policies_of(
        &self,
        epoch: Epoch,
        namespaces: &BTreeSet<String>,
    ) -> Option<to_node::Message> {
        let kind = by_kind("networking.k8s.io", "v1", POLICY)?;
        let mut changes = NetworkChanges { epoch: epoch.0, ..NetworkChanges::default() };
        for namespace in namespaces {
            let local = ListOptions { resource_version: Some("0".to_owned()), ..ListOptions::default() };
            match self.inner.registry.list(kind, Some(namespace), &local).await {
                Ok(listed) => changes.changed.extend(listed.items.iter().map(|policy| NetworkObject {
                    key: Some(NetworkKey::of(policy).wire()),
                    revision: policy.revision(),
                    object_json: policy.json(),
                })),
                // The store is stopping: so is this session.
                Err(status) => tracing::warn!(namespace, %status, "cannot read policies for a node"),
            }
        }
        (!changes.changed.is_empty()).then_some(to_node::Message::NetworkChanges(changes))
    }
}

fn is_peer(kind: &Kind) -> bool {
    PEER_KINDS.contains(&kind.kind)
}

/// What a node is told of an object, and a number that is the same as long as that is; `None`: nothing.
fn text(object: &Object) -> Option<(u64, Bytes)> {
    if !is_peer(object.kind()) {
        return Some((object.revision(), object.json()));
    }
    // Most changes of pods come before they have an address.
    let has_address = || ["podIP", "podIPs"].iter().any(|name| object.member(&["status", name]).is_some());
    if object.kind().kind == "Pod" && !has_address() {
        return None;
    }
    let peer: Peer = object.decode().ok()?;
    let told = match object.kind().kind {
        "Namespace" => json!({"metadata": peer.metadata.told()}),
        _ => peer.told()?,
    };
    let bytes = Bytes::from(told.to_string());
    let mut number = [0; 8];
    number.copy_from_slice(&digest::digest(&digest::SHA256, &bytes).as_ref()[..8]);
    Some((u64::from_be_bytes(number), bytes))
}

/// What policies ask about, read without keeping the rest.
#[derive(Deserialize)]
struct Peer {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    #[serde(default)]
    labels: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    host_network: Option<bool>,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<Value>>,
    restart_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Value>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

impl Metadata {
    fn told(&self) -> Value {
        json!({"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": self.labels})
    }
}

impl Peer {
    /// A pod that has an address of its own.
    fn told(&self) -> Option<Value> {
        let Status { phase, pod_ips, pod_ip } = &self.status;
        let is_over = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
        let has_address = pod_ip.is_some() || pod_ips.as_ref().is_some_and(|all| !all.is_empty());
        if is_over || !has_address || self.spec.host_network == Some(true) {
            return None;
        }
        let sidecars = self.spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = self
            .spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|container| container.ports.iter().flatten());
        let named: Vec<&Value> = ports.filter(|port| port["name"].is_string()).collect();
        Some(json!({
            "metadata": self.metadata.told(),
            "spec": {"containers": [{"name": "", "ports": named}]},
            "status": {"podIP": pod_ip, "podIPs": pod_ips},
        }))
    }
}

#[cfg(test)]
mod tests {
    use api::kinds;

    use super::*;

    #[test]
    fn only_kinds_of_the_network_are_given() {
        let key = |kind: &str| ObjectKey { kind: kind.into(), namespace: "d".into(), name: "n".into() };
        assert!(NetworkKey::parse(key("Secret")).is_none());
        let parsed = NetworkKey::parse(key("Service")).expect("a kind of the network");
        assert_eq!(parsed.wire(), key("Service"));
        for kind in NETWORK_KINDS {
            assert!(kinds().iter().any(|known| known.kind == kind && !known.virtual_only), "{kind}");
        }
    }
}
