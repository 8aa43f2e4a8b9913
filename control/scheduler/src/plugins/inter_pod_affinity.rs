//! InterPodAffinity: pods attract or repel each other within a node, a zone or another domain.
//!
//! Both sides speak: the terms of the pod that is placed, and the terms of those that run already (their
//! anti-affinity keeps it away as well).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{
    FilterState, Group, Plugin, PreFilter, PreFiltered, PreScore, Reason, Recount, Rejection, SCORE_MAX,
    ScoreState,
};
use crate::labels::{AffinityTerm, LabelSet, Namespaces};
use crate::node_info::NodeInfo;
use crate::pod_class::PodClass;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::topology::{Domains, NO_DOMAIN, Picker};

/// Arguments of InterPodAffinity.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InterPodAffinityArgs {
    hard_pod_affinity_weight: i64,
    ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinityArgs {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

/// Rejects nodes in whose domains required terms do not hold; prefers those in whose domains preferred
/// ones do.
#[derive(Debug, Clone)]
pub struct InterPodAffinity {
    args: InterPodAffinityArgs,
}

impl InterPodAffinity {
    /// The plugin with these arguments.
    pub fn new(args: InterPodAffinityArgs) -> Result<Self, String> {
        if !(0..=100).contains(&args.hard_pod_affinity_weight) {
            let weight = args.hard_pod_affinity_weight;
            return Err(format!("hardPodAffinityWeight: {weight} is not in 0 to 100"));
        }
        Ok(Self { args })
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn helped_by(&self) -> &'static [Change] {
        use Change::{Namespace, NodeLabels, PodAdded, PodLabels, PodRemoved};
        &[PodAdded, PodRemoved, PodLabels, NodeLabels, Namespace]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        let Some(other) = event.pod else { return true };
        // Without the namespaces' labels a selector of namespaces may mean any.
        let may_pick = |term: &AffinityTerm, set: &LabelSet| {
            term.pods.labels.matches(&set.labels)
                && (term.pods.namespace_selector.is_some() || term.pods.namespaces.contains(&*set.namespace))
        };
        match event.change {
            Change::PodAdded => pod.class.affinity.iter().any(|term| may_pick(term, &other.labels)),
            Change::PodRemoved => {
                pod.class.anti_affinity.iter().any(|term| may_pick(term, &other.labels))
                    || other.class.anti_affinity.iter().any(|term| may_pick(term, &pod.labels))
            }
            _ => true,
        }
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

/// What a class of running pods says about the pod, by topology key.
type Says = BTreeMap<String, i64>;

/// Remembers what classes of running pods say, by their address.
#[derive(Debug, Default)]
struct Opinions {
    known: Vec<(Arc<PodClass>, Says)>,
}

impl Opinions {
    fn of(&mut self, class: &Arc<PodClass>, ask: impl FnOnce(&PodClass) -> Says) -> &Says {
        let at = match self.known.iter().position(|(known, _)| Arc::ptr_eq(known, class)) {
            Some(at) => at,
            None => {
                self.known.push((class.clone(), ask(class)));
                self.known.len() - 1
            }
        };
        &self.known[at].1
    }
}

/// The domains of a key, made when it is first needed. The second value: whether that was now.
fn domains_of<'a>(all: &'a mut Vec<Domains>, key: &str, cluster: Snapshot<'_>) -> (&'a mut Domains, bool) {
    let (at, is_new) = match all.iter().position(|domains| domains.key() == key) {
        Some(at) => (at, false),
        None => {
            all.push(Domains::new(key, cluster));
            (all.len() - 1, true)
        }
    };
    (&mut all[at], is_new)
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Result<PreFiltered, Rejection> {
        let class = &pod.class;
        if class.affinity.is_empty() && class.anti_affinity.is_empty() && cluster.holders() == 0 {
            return Ok(PreFiltered::default());
        }
        let all = class.affinity.iter().map(|term| term.pods.clone()).collect();
        let wanted = Picker::new(all);
        let own_match = wanted.picks_unseen(&pod.labels, cluster.namespaces());
        let state = Required {
            labels: pod.labels.clone(),
            wanted,
            own_match,
            affinity: class.affinity.iter().map(|term| Domains::new(&term.topology_key, cluster)).collect(),
            anti: class
                .anti_affinity
                .iter()
                .map(|term| (Picker::new(vec![term.pods.clone()]), Domains::new(&term.topology_key, cluster)))
                .collect(),
            theirs: Vec::new(),
            opinions: Opinions::default(),
        };
        Ok(PreFiltered { nodes: None, state: Some(Box::new(state)) })
    }
}

#[derive(Debug)]
struct Required {
    labels: Arc<LabelSet>,
    /// Picks pods that meet every affinity term.
    wanted: Picker,
    /// Whether the pod itself does: then the first of its kind may go anywhere.
    own_match: bool,
    affinity: Vec<Domains>,
    anti: Vec<(Picker, Domains)>,
    /// By topology key: running pods that keep the pod away.
    theirs: Vec<Domains>,
    opinions: Opinions,
}

fn keeps_away(class: &PodClass, labels: &LabelSet, namespaces: &Namespaces) -> Says {
    let mut says = Says::new();
    for term in class.anti_affinity.iter().filter(|term| term.pods.picks(labels, namespaces)) {
        *says.entry(term.topology_key.clone()).or_default() += 1;
    }
    says
}

impl FilterState for Required {
    fn recount(&mut self, at: usize, node: &NodeInfo, cluster: Snapshot<'_>) -> Recount {
        let namespaces = cluster.namespaces();
        if !self.affinity.is_empty() {
            let mut sum = 0;
            for count in &node.label_counts {
                if self.wanted.picks(&count.labels, namespaces) {
                    sum += count.pods;
                }
            }
            self.affinity.iter_mut().for_each(|domains| domains.set(at, Some(sum)));
        }
        for (picker, domains) in &mut self.anti {
            let mut sum = 0;
            for count in &node.label_counts {
                if picker.picks(&count.labels, namespaces) {
                    sum += count.pods;
                }
            }
            domains.set(at, Some(sum));
        }
        let mut sums = Says::new();
        for (class, pods) in &node.holders {
            let says = self.opinions.of(class, |class| keeps_away(class, &self.labels, namespaces));
            for (key, times) in says {
                *sums.entry(key.clone()).or_default() += times * pods;
            }
        }
        let mut recount = Recount::Kept;
        for key in sums.keys() {
            if domains_of(&mut self.theirs, key, cluster).1 {
                recount = Recount::Reshaped;
            }
        }
        for domains in &mut self.theirs {
            let sum = sums.get(domains.key()).copied().unwrap_or(0);
            domains.set(at, Some(sum));
        }
        recount
    }

    fn facets(&self, at: usize, _node: &NodeInfo, facets: &mut Vec<i64>) {
        let anti = self.anti.iter().map(|(_, domains)| domains);
        for domains in self.affinity.iter().chain(anti).chain(&self.theirs) {
            // Only whether there is any matters here: fewer different facets, fewer groups.
            let facet = domains.facet(at);
            facets.push(if domains.is_single() { facet.min(1) } else { facet });
        }
    }

    fn filter(&self, facets: &[i64]) -> Result<(), Rejection> {
        let (affinity, rest) = facets.split_at(self.affinity.len());
        let (anti, theirs) = rest.split_at(self.anti.len());
        let counted = self.affinity.iter().zip(affinity);
        let has_keys = affinity.iter().all(|facet| *facet != NO_DOMAIN);
        let all_there =
            counted.clone().all(|(domains, facet)| *facet != NO_DOMAIN && domains.sum(*facet) > 0);
        let is_first = self.own_match && self.affinity.iter().all(|domains| domains.total() == 0);
        let holds = affinity.is_empty() || all_there || (has_keys && is_first);
        if !holds {
            let text = "node(s) didn't match pod affinity rules";
            return Err(Rejection::unresolvable(Reason::Text(text)));
        }
        let hit = |(domains, facet): (&Domains, &i64)| *facet != NO_DOMAIN && domains.sum(*facet) > 0;
        if self.anti.iter().map(|(_, domains)| domains).zip(anti).any(hit) {
            let text = "node(s) didn't match pod anti-affinity rules";
            return Err(Rejection::resolvable(Reason::Text(text)));
        }
        if self.theirs.iter().zip(theirs).any(hit) {
            let text = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Rejection::resolvable(Reason::Text(text)));
        }
        Ok(())
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Option<Box<dyn ScoreState>> {
        let own = &pod.class.preferred_affinity;
        let asks_others =
            cluster.holders() > 0 && !(own.is_empty() && self.args.ignore_preferred_terms_of_existing_pods);
        if own.is_empty() && !asks_others {
            return None;
        }
        let own = own
            .iter()
            .map(|(weight, term)| (*weight, Picker::new(vec![term.pods.clone()]), term.topology_key.clone()));
        Some(Box::new(Preferred {
            labels: pod.labels.clone(),
            own: own.collect(),
            hard_weight: self.args.hard_pod_affinity_weight,
            asks_others,
            domains: Vec::new(),
            opinions: Opinions::default(),
        }))
    }
}

#[derive(Debug)]
struct Preferred {
    labels: Arc<LabelSet>,
    own: Vec<(i64, Picker, String)>,
    /// What the required affinity of a running pod weighs.
    hard_weight: i64,
    asks_others: bool,
    /// By topology key: everything that speaks for the domain, less what speaks against it.
    domains: Vec<Domains>,
    opinions: Opinions,
}

fn likes(class: &PodClass, labels: &LabelSet, hard_weight: i64, namespaces: &Namespaces) -> Says {
    let required = class.affinity.iter().map(|term| (hard_weight, term));
    let preferred = class.preferred_affinity.iter().map(|(weight, term)| (*weight, term));
    let mut says = Says::new();
    for (weight, term) in required.chain(preferred) {
        if weight != 0 && term.pods.picks(labels, namespaces) {
            *says.entry(term.topology_key.clone()).or_default() += weight;
        }
    }
    says
}

impl ScoreState for Preferred {
    fn recount(&mut self, at: usize, node: &NodeInfo, cluster: Snapshot<'_>) -> Recount {
        let namespaces = cluster.namespaces();
        let mut sums = Says::new();
        for (weight, picker, key) in &mut self.own {
            let mut pods = 0;
            for count in &node.label_counts {
                if picker.picks(&count.labels, namespaces) {
                    pods += count.pods;
                }
            }
            *sums.entry(key.clone()).or_default() += pods * *weight;
        }
        if self.asks_others {
            for (class, pods) in &node.holders {
                let ask = |class: &PodClass| likes(class, &self.labels, self.hard_weight, namespaces);
                for (key, weight) in self.opinions.of(class, ask) {
                    *sums.entry(key.clone()).or_default() += pods * weight;
                }
            }
        }
        let mut recount = Recount::Kept;
        for key in sums.keys() {
            if domains_of(&mut self.domains, key, cluster).1 {
                recount = Recount::Reshaped;
            }
        }
        for domains in &mut self.domains {
            let sum = sums.get(domains.key()).copied().unwrap_or(0);
            domains.set(at, Some(sum));
        }
        recount
    }

    /// The sum over domains of single nodes, then each other domain; whether the key is there at all
    /// makes no difference to a sum.
    fn facets(&self, at: usize, _node: &NodeInfo, facets: &mut Vec<i64>) {
        let (single, shared): (Vec<_>, Vec<_>) = self.domains.iter().partition(|domains| domains.is_single());
        let singles = single.iter().filter(|domains| domains.has(at)).map(|domains| domains.facet(at));
        facets.push(singles.sum());
        facets.extend(shared.iter().map(|domains| domains.facet(at)));
    }

    fn score(&self, groups: &[Group<'_>], scores: &mut [i64]) {
        let shared: Vec<&Domains> = self.domains.iter().filter(|domains| !domains.is_single()).collect();
        for (group, score) in groups.iter().zip(scores.iter_mut()) {
            let domains = shared.iter().zip(&group.facets[1..]);
            let there = domains.filter(|(_, facet)| **facet != NO_DOMAIN);
            *score = group.facets[0] + there.map(|(domains, facet)| domains.sum(*facet)).sum::<i64>();
        }
        let (least, most) = scores
            .iter()
            .fold((i64::MAX, i64::MIN), |(least, most), score| (least.min(*score), most.max(*score)));
        for score in scores {
            *score = if most > least {
                (SCORE_MAX as f64 * ((*score - least) as f64 / (most - least) as f64)) as i64
            } else {
                0
            };
        }
    }
}
