//! Labels of pods, and the terms that pick pods by them.
//!
//! Many pods carry the same labels (all of a ReplicaSet do), so labels are kept once per namespace and set:
//! [`LabelSet`]. Whether a term picks a set is asked once and remembered by whoever counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::selector::LabelSelector;

/// The labels of every namespace, by its name.
pub type Namespaces = HashMap<Arc<str>, BTreeMap<String, String>>;

/// A namespace together with a pod's labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LabelSet {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

/// Picks pods by namespace and labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodSelector {
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Further namespaces, by their labels.
    pub namespace_selector: Option<LabelSelector>,
    /// The pods in them.
    pub labels: LabelSelector,
}

impl PodSelector {
    /// The pods of one namespace that the selector picks.
    pub fn within(namespace: &str, labels: LabelSelector) -> Self {
        Self { namespaces: BTreeSet::from([namespace.to_owned()]), namespace_selector: None, labels }
    }

    /// Whether pods with these labels are picked.
    pub fn picks(&self, set: &LabelSet, namespaces: &Namespaces) -> bool {
        self.labels.matches(&set.labels)
            && (self.namespaces.contains(&*set.namespace) || self.selects(&set.namespace, namespaces))
    }

    fn selects(&self, namespace: &str, namespaces: &Namespaces) -> bool {
        let Some(selector) = &self.namespace_selector else { return false };
        match namespaces.get(namespace) {
            Some(labels) => selector.matches(labels),
            // A namespace that has not been seen yet has no labels.
            None => selector.is_everything(),
        }
    }
}

/// One term of pod affinity or anti-affinity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    /// The pods that it speaks of.
    pub pods: PodSelector,
    /// The label whose value makes a domain.
    pub topology_key: String,
}
