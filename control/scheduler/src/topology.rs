//! Domains: the nodes that share a label's value, and sums over them.
//!
//! Owns the mapping from nodes to domains for one label key and a number per domain, kept up to date node by
//! node. Where every node is a domain of its own (`kubernetes.io/hostname`), the facet of a node is the
//! number itself, so that nodes with equal numbers are judged together; otherwise it is the domain.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::labels::{LabelSet, Namespaces, PodSelector};
use crate::snapshot::Snapshot;

/// The facet of nodes that do not carry the key.
pub(crate) const NO_DOMAIN: i64 = -1;
/// Remembered answers of a selector; beyond, they are forgotten and asked again.
const ANSWERS_MAX: usize = 1 << 14;

/// One label key's domains with a sum each.
#[derive(Debug)]
pub(crate) struct Domains {
    key: String,
    /// Whether no two nodes share a value.
    single: bool,
    /// By node: its domain, if it carries the key.
    of_node: Vec<Option<u32>>,
    /// By node: what it adds to its domain; `None`: it does not take part.
    here: Vec<Option<i64>>,
    sums: Vec<i64>,
    /// By domain: how many of its nodes take part.
    members: Vec<u32>,
    /// How many domains with members have each sum.
    histogram: BTreeMap<i64, u32>,
    total: i64,
}

impl Domains {
    /// The domains of a key as the cluster's nodes are labelled now. Nothing is counted yet.
    pub(crate) fn new(key: &str, cluster: Snapshot<'_>) -> Self {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut single = true;
        let mut of_node = Vec::with_capacity(cluster.nodes().len());
        for node in cluster.nodes() {
            let domain = node.object.labels.get(key).map(|value| {
                let next = numbers.len() as u32;
                let number = *numbers.entry(value.as_str()).or_insert(next);
                single &= number == next;
                number
            });
            of_node.push(domain);
        }
        let domains = numbers.len();
        Self {
            key: key.to_owned(),
            single,
            here: vec![None; of_node.len()],
            of_node,
            sums: vec![0; domains],
            members: vec![0; domains],
            histogram: BTreeMap::new(),
            total: 0,
        }
    }

    /// The label key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Whether a facet is a number already.
    pub(crate) fn is_single(&self) -> bool {
        self.single
    }

    /// Whether the node carries the key.
    pub(crate) fn has(&self, at: usize) -> bool {
        self.of_node.get(at).is_some_and(Option::is_some)
    }

    /// Sets what a node adds to its domain; `None`: it does not take part.
    pub(crate) fn set(&mut self, at: usize, amount: Option<i64>) {
        let Some(Some(domain)) = self.of_node.get(at).copied() else { return };
        let before = std::mem::replace(&mut self.here[at], amount);
        if before == amount {
            return;
        }
        let domain = domain as usize;
        let (sum, members) = (self.sums[domain], self.members[domain]);
        self.sums[domain] += amount.unwrap_or(0) - before.unwrap_or(0);
        self.total += amount.unwrap_or(0) - before.unwrap_or(0);
        self.members[domain] = members + u32::from(amount.is_some()) - u32::from(before.is_some());
        self.move_in_histogram((sum, members), (self.sums[domain], self.members[domain]));
    }

    fn move_in_histogram(&mut self, (old, old_members): (i64, u32), (new, new_members): (i64, u32)) {
        if old == new && (old_members > 0) == (new_members > 0) {
            return;
        }
        if old_members > 0
            && let Some(count) = self.histogram.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.histogram.remove(&old);
            }
        }
        if new_members > 0 {
            *self.histogram.entry(new).or_default() += 1;
        }
    }

    /// The node's facet.
    pub(crate) fn facet(&self, at: usize) -> i64 {
        match self.of_node.get(at).copied().flatten() {
            None => NO_DOMAIN,
            Some(domain) if self.single => self.sums[domain as usize],
            Some(domain) => i64::from(domain),
        }
    }

    /// The sum of the domain of nodes with this facet, which is not [`NO_DOMAIN`].
    pub(crate) fn sum(&self, facet: i64) -> i64 {
        if self.single {
            return facet;
        }
        usize::try_from(facet).ok().and_then(|domain| self.sums.get(domain)).copied().unwrap_or(0)
    }

    /// The smallest sum of a domain with members.
    pub(crate) fn min(&self) -> Option<i64> {
        self.histogram.keys().next().copied()
    }

    /// How many domains have members.
    pub(crate) fn count(&self) -> usize {
        self.histogram.values().map(|count| *count as usize).sum()
    }

    /// The sum over all domains.
    pub(crate) fn total(&self) -> i64 {
        self.total
    }
}

/// A conjunction of pod selectors that remembers its answers by label set.
#[derive(Debug)]
pub(crate) struct Picker {
    selectors: Vec<PodSelector>,
    picked: HashSet<Held>,
    passed: HashSet<Held>,
}

/// A label set by its address; it is held, so that the address stays its own.
#[derive(Debug, Clone)]
struct Held(Arc<LabelSet>);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl std::hash::Hash for Held {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Picker {
    pub(crate) fn new(selectors: Vec<PodSelector>) -> Self {
        Self { selectors, picked: HashSet::new(), passed: HashSet::new() }
    }

    /// Whether every selector picks pods with these labels.
    pub(crate) fn picks(&mut self, set: &Arc<LabelSet>, namespaces: &Namespaces) -> bool {
        let held = Held(set.clone());
        if self.picked.contains(&held) {
            return true;
        }
        if self.passed.contains(&held) {
            return false;
        }
        if self.picked.len() + self.passed.len() >= ANSWERS_MAX {
            self.picked.clear();
            self.passed.clear();
        }
        let picks = self.picks_unseen(set, namespaces);
        if picks {
            self.picked.insert(held)
        } else {
            self.passed.insert(held)
        };
        picks
    }

    /// The same, without remembering.
    pub(crate) fn picks_unseen(&self, set: &LabelSet, namespaces: &Namespaces) -> bool {
        self.selectors.iter().all(|selector| selector.picks(set, namespaces))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;

    fn cluster(zones: &[Option<&str>]) -> Cache {
        let mut cache = Cache::default();
        for (at, zone) in zones.iter().enumerate() {
            let labels = zone.map(|zone| [("zone".to_owned(), zone.to_owned())].into());
            let metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some(format!("n{at}")),
                labels,
                ..Default::default()
            };
            let node = k8s_openapi::api::core::v1::Node { metadata, ..Default::default() };
            cache.upsert_node(&node).expect("valid node");
        }
        cache
    }

    #[test]
    fn sums_minimum_and_number_of_domains_follow_the_nodes() {
        let cache = cluster(&[Some("a"), Some("b"), Some("a"), None]);
        let mut domains = Domains::new("zone", cache.snapshot());
        assert!(!domains.is_single());
        assert_eq!((domains.min(), domains.count()), (None, 0), "nobody takes part yet");
        for (at, amount) in [(0, 2), (1, 5), (2, 1), (3, 9)] {
            domains.set(at, Some(amount));
        }
        assert_eq!((domains.min(), domains.count(), domains.total()), (Some(3), 2, 8));
        assert_eq!((domains.sum(domains.facet(0)), domains.sum(domains.facet(1))), (3, 5));
        assert_eq!(domains.facet(3), NO_DOMAIN);
        domains.set(1, None);
        assert_eq!((domains.min(), domains.count(), domains.total()), (Some(3), 1, 3));
        domains.set(0, Some(0));
        assert_eq!(domains.min(), Some(1));
    }

    #[test]
    fn where_each_node_is_a_domain_the_facet_is_the_sum() {
        let cache = cluster(&[Some("a"), Some("b")]);
        let mut domains = Domains::new("zone", cache.snapshot());
        assert!(domains.is_single());
        domains.set(0, Some(7));
        domains.set(1, Some(7));
        assert_eq!((domains.facet(0), domains.facet(1), domains.sum(7)), (7, 7, 7));
    }
}
