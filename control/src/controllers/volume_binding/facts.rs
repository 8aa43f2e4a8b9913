//! What a look at claims and volumes sees: everything that the decisions need, read once.

use std::collections::{BTreeMap, BTreeSet};

use api::LabelSelector;
use api::Quantity;
use api::local_volume;
use api::object;
use api::references;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use scheduler::NodeTerm;
use serde_json::Value;

use crate::controllers::Context;

/// Keeps a claim while a pod uses it.
pub(super) const PROTECTION_OF_CLAIM: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim has it.
pub(super) const PROTECTION_OF_VOLUME: &str = "kubernetes.io/pv-protection";

/// Which claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClaimKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A claim.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) key: ClaimKey,
    pub(crate) volume: String,
    pub(crate) class: String,
    /// The room that it asks for, as it was written, and in bytes.
    pub(crate) asked: Value,
    pub(crate) bytes: i64,
    pub(crate) modes: Vec<String>,
    pub(crate) mode: String,
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) is_completed: bool,
    pub(crate) is_deleting: bool,
    pub(crate) finalizers: Vec<String>,
    pub(crate) status: Value,
}

/// A volume.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) claim: Option<ClaimKey>,
    pub(crate) class: String,
    pub(crate) bytes: i64,
    pub(crate) capacity: Value,
    pub(crate) modes: Vec<String>,
    pub(crate) mode: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) policy: String,
    /// One of the terms must match the node; `None`: every node will do.
    pub(crate) nodes: Option<Vec<NodeTerm>>,
    /// The handle and the node of one that lies on a node's own disk.
    pub(crate) local: Option<(String, String)>,
    pub(crate) is_deleting: bool,
    pub(crate) finalizers: Vec<String>,
    pub(crate) status: Value,
}

/// What matters of a StorageClass.
#[derive(Debug, Clone)]
pub(super) struct Class {
    /// Claims are bound where their first pod runs.
    pub(super) waits: bool,
    pub(super) provisioner: String,
    /// Claims may ask for more room.
    pub(super) expands: bool,
    pub(super) reclaim_policy: String,
}

impl Class {
    fn read(class: &Value) -> Self {
        let word = |name: &str| class[name].as_str().unwrap_or_default().to_owned();
        Self {
            waits: class["volumeBindingMode"] == "WaitForFirstConsumer",
            provisioner: word("provisioner"),
            expands: class["allowVolumeExpansion"] == true,
            reclaim_policy: word("reclaimPolicy"),
        }
    }
}

/// A node that a pod with a waiting claim was bound to.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) node: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) claims: Vec<Claim>,
    pub(super) volumes: Vec<Volume>,
    /// Claims (namespace, name) that a pod uses which has not ended.
    pub(super) used: BTreeSet<(String, String)>,
    /// Where the first such pod runs.
    pub(super) places: BTreeMap<(String, String), Place>,
    /// Classes by name.
    pub(super) classes: BTreeMap<String, Class>,
    /// The handles of volumes whose data lies on a node's own disk, by what the nodes say.
    pub(super) kept: BTreeSet<String>,
}

impl Facts {
    /// Reads it all from this replica's copies.
    pub(super) async fn gather(context: &Context) -> Self {
        let claims = context.claims.list();
        let volumes = context.volumes.list();
        let mut facts = Self {
            claims: claims
                .iter()
                .filter_map(|claim| Claim::read(claim.decode().ok()?, claim.value()))
                .collect(),
            volumes: volumes
                .iter()
                .filter_map(|volume| Volume::read(volume.decode().ok()?, volume.value()))
                .collect(),
            ..Self::default()
        };
        facts.claims.sort_by(|a, b| a.key.cmp(&b.key));
        facts.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        if !facts.claims.is_empty() {
            facts.add_pods(context);
        }
        let kind = api::kinds::by_kind("storage.k8s.io", "v1", "StorageClass");
        let kind = kind.expect("the table of kinds has StorageClass");
        let names: BTreeSet<String> = facts.claims.iter().map(|claim| claim.class.clone()).collect();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            if let Ok(Some(class)) = context.registry.get_local(kind, "", &name).await {
                facts.classes.insert(name, Class::read(class.value()));
            }
        }
        facts.add_kept(context);
        facts
    }

    fn add_kept(&mut self, context: &Context) {
        let nodes: BTreeSet<&str> =
            self.volumes.iter().filter_map(|volume| Some(volume.local.as_ref()?.1.as_str())).collect();
        for node in nodes.into_iter().filter_map(|node| context.nodes.get("", node)) {
            let names = node.value()["status"]["volumesInUse"].as_array().into_iter().flatten();
            let handles = names.filter_map(|name| local_volume::handle_in_use(name.as_str()?));
            self.kept.extend(handles.map(str::to_owned));
        }
    }

    fn add_pods(&mut self, context: &Context) {
        for pod in context.pods.list() {
            let Ok(pod) = pod.decode::<Pod>() else { continue };
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let Some(spec) = pod.spec.filter(|_| !matches!(phase, Some("Succeeded" | "Failed"))) else {
                continue;
            };
            let namespace = pod.metadata.namespace.unwrap_or_default();
            let name = pod.metadata.name.unwrap_or_default();
            for volume in spec.volumes.iter().flatten() {
                let Some(claim) = references::claim_of(&name, volume) else { continue };
                let key = (namespace.clone(), claim.into_owned());
                self.used.insert(key.clone());
                let node = spec.node_name.as_deref().filter(|node| !node.is_empty());
                if let Some(object) = node.and_then(|node| context.nodes.get("", node)) {
                    let place =
                        Place { node: object.name().to_owned(), labels: object::labels(object.value()) };
                    self.places.entry(key).or_insert(place);
                }
            }
        }
    }
}

impl Claim {
    pub(crate) fn read(claim: PersistentVolumeClaim, value: &Value) -> Option<Self> {
        let (meta, spec) = (claim.metadata, claim.spec?);
        let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
        let bytes = requests.get("storage").and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.value());
        let selector =
            spec.selector.as_ref().and_then(|selector| LabelSelector::from_typed(Some(selector)).ok());
        Some(Self {
            key: ClaimKey { namespace: meta.namespace?, name: meta.name?, uid: meta.uid? },
            volume: spec.volume_name.unwrap_or_default(),
            class: spec.storage_class_name.unwrap_or_default(),
            asked: value["spec"]["resources"]["requests"]["storage"].clone(),
            bytes,
            modes: spec.access_modes.unwrap_or_default(),
            mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".to_owned()),
            selector,
            is_completed: object::annotation(value, super::BIND_COMPLETED).is_some(),
            is_deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.unwrap_or_default(),
            status: value["status"].clone(),
        })
    }
}

impl Volume {
    pub(crate) fn read(volume: PersistentVolume, value: &Value) -> Option<Self> {
        let handle = local_volume::source(&volume).map(|source| source.volume_handle.clone());
        let local = handle.zip(local_volume::node_of(value).map(str::to_owned));
        let (meta, spec) = (volume.metadata, volume.spec?);
        let capacity = spec.capacity.unwrap_or_default();
        let bytes = capacity.get("storage").and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.value());
        let claim = spec.claim_ref.map(|claim| ClaimKey {
            namespace: claim.namespace.unwrap_or_default(),
            name: claim.name.unwrap_or_default(),
            uid: claim.uid.unwrap_or_default(),
        });
        let required = spec.node_affinity.and_then(|affinity| affinity.required);
        // Terms that cannot be read match no node.
        let nodes = required.map(|selector| {
            selector.node_selector_terms.iter().filter_map(|term| NodeTerm::new(term).ok()).collect()
        });
        Some(Self {
            name: meta.name?,
            claim,
            class: spec.storage_class_name.unwrap_or_default(),
            bytes,
            capacity: value["spec"]["capacity"].clone(),
            modes: spec.access_modes.unwrap_or_default(),
            mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".to_owned()),
            labels: meta.labels.unwrap_or_default(),
            policy: spec.persistent_volume_reclaim_policy.unwrap_or_else(|| "Retain".to_owned()),
            nodes,
            local,
            is_deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.unwrap_or_default(),
            status: value["status"].clone(),
        })
    }

    /// Whether pods on that node can use the volume.
    pub(super) fn is_usable_on(&self, place: &Place) -> bool {
        let matches = |term: &NodeTerm| term.matches(&place.node, &place.labels);
        self.nodes.as_ref().is_none_or(|terms| terms.iter().any(matches))
    }
}
