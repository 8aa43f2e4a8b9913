//! One scheduling cycle: the best node for one pod, or why there is none, or who has to leave for it.
//!
//! Owns the indexes of the classes seen lately. Equal calls give equal decisions: among equally good nodes a
//! generator chooses whose numbers follow from the seed.

use std::sync::Arc;

use crate::cache::Cache;
use crate::fit_error::{Displacing, FitError};
use crate::framework::Framework;
use crate::index::ClassIndex;
use crate::labels::LabelSet;
use crate::pod_class::PodClass;
use crate::pod_info::PodInfo;
use crate::preemption::{Budgets, Candidates, Displacement, Search};
use crate::random::Random;

/// How many classes of pods have an index at the same time.
const INDEXES_MAX: usize = 32;
const NEVER: &str = "not eligible due to preemptionPolicy=Never.";
pub(crate) const VICTIMS_LEAVE: &str = "not eligible due to a terminating pod on the nominated node.";

/// Where a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The node's name.
    pub node: Arc<str>,
    /// How many nodes passed the filters.
    pub feasible: usize,
    /// The node's score.
    pub score: i64,
}

#[derive(Debug)]
struct Slot {
    class: Arc<PodClass>,
    /// The labels, where they matter.
    labels: Option<Arc<LabelSet>>,
    /// Whether pods that attract or repel others were there when it was built: some rules say nothing else.
    with_holders: bool,
    used: u64,
    index: ClassIndex,
    candidates: Option<Candidates>,
}

/// What lives from cycle to cycle.
#[derive(Debug)]
pub struct Cycle {
    random: Random,
    slots: Vec<Slot>,
    clock: u64,
}

impl Cycle {
    /// Cycles whose tie-breaks follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), slots: Vec::new(), clock: 0 }
    }

    /// Finds the best node for a pod.
    pub fn schedule_one(
        &mut self,
        framework: &Framework,
        cache: &Cache,
        pod: &PodInfo,
    ) -> Result<Decision, FitError> {
        let cluster = cache.snapshot();
        let slot = match self.slot(framework, cache, pod) {
            Ok(slot) => slot,
            Err((member, rejection)) => {
                return Err(FitError::everywhere(cluster.nodes().len(), member, rejection));
            }
        };
        let index = &mut self.slots[slot].index;
        if let Some(at) = cache.nomination(&pod.uid).and_then(|node| cache.position(node))
            && index.takes_nominated(at, pod, cluster).is_ok()
        {
            return Ok(Decision { node: cluster.nodes()[at].name().clone(), feasible: 1, score: 0 });
        }
        match index.choose(&mut self.random, cluster) {
            Some(choice) => Ok(Decision {
                node: cluster.nodes()[choice.at].name().clone(),
                feasible: choice.feasible,
                score: choice.score,
            }),
            None => Err(index.fit_error(cluster)),
        }
    }

    /// Finds pods to displace for one that fits nowhere. `Err`: what to say about it.
    pub(crate) fn displace(
        &mut self,
        framework: &Framework,
        cache: &Cache,
        budgets: &Budgets,
        pod: &PodInfo,
    ) -> Result<Displacement, Displacing> {
        let Some(rule) = framework.post_filter() else { return Err(Displacing::Unasked) };
        if !pod.class.preempts {
            return Err(Displacing::NotEligible(NEVER));
        }
        let nominated = cache.nomination(&pod.uid).and_then(|node| cache.node(node));
        if nominated.is_some_and(|node| {
            node.pods().iter().any(|other| other.terminating && other.class.priority < pod.class.priority)
        }) {
            return Err(Displacing::NotEligible(VICTIMS_LEAVE));
        }
        let Ok(slot) = self.slot(framework, cache, pod) else { return Err(Displacing::Nothing) };
        let nodes = cache.snapshot().nodes().len();
        let start = self.random.below(nodes);
        let Slot { index, candidates, .. } = &mut self.slots[slot];
        let looks_around = index.has_filter_states();
        let mut search = Search { index, cache, budgets, pod };
        let found = match looks_around {
            true => search.best_of_some(rule.preemption(), start),
            false => search.best_kept(candidates),
        };
        found.ok_or(Displacing::Nothing)
    }

    /// What every filter says of a node, and how it scores, by rule.
    pub(crate) fn examine(
        &mut self,
        framework: &Framework,
        cache: &Cache,
        pod: &PodInfo,
        wanted: &[usize],
    ) -> Vec<Examined> {
        let cluster = cache.snapshot();
        let Ok(slot) = self.slot(framework, cache, pod) else { return Vec::new() };
        let index = &mut self.slots[slot].index;
        let mut found = Vec::with_capacity(wanted.len());
        for &at in wanted {
            let node = &cluster.nodes()[at];
            let (rejected, scores) = match index.verdict(at, cluster) {
                Ok(()) => (None, index.scores_by_rule(framework, cluster, at)),
                Err((member, rejection)) => {
                    let reasons: Vec<String> = rejection.reasons.iter().map(ToString::to_string).collect();
                    (Some((framework.plugin_name(member).to_owned(), reasons.join(", "))), Vec::new())
                }
            };
            found.push(Examined { node: node.name().clone(), rejected, scores });
        }
        found
    }

    /// The index of the pod's class, up to date.
    fn slot(
        &mut self,
        framework: &Framework,
        cache: &Cache,
        pod: &PodInfo,
    ) -> Result<usize, (usize, crate::framework::Rejection)> {
        self.clock += 1;
        let with_holders = cache.snapshot().holders() > 0;
        let labels_matter = with_holders || pod.class.looks_around() || pod.class.owner_selector.is_some();
        let is_alike = |slot: &Slot| {
            Arc::ptr_eq(&slot.class, &pod.class)
                && match &slot.labels {
                    Some(labels) => labels_matter && Arc::ptr_eq(labels, &pod.labels),
                    None => !labels_matter,
                }
        };
        if let Some(at) = self.slots.iter().position(is_alike) {
            self.slots[at].used = self.clock;
            if self.slots[at].with_holders == with_holders && self.slots[at].index.refresh(cache) {
                return Ok(at);
            }
            self.slots.swap_remove(at);
        }
        let index = ClassIndex::build(framework, pod, cache)?;
        // Daemons name their nodes: each is a class of its own, and would crowd out all others.
        let daemon = self.slots.iter().position(|slot| slot.index.names_nodes() && index.names_nodes());
        let oldest = (0..self.slots.len()).min_by_key(|at| self.slots[*at].used);
        let leaves = daemon.or(oldest.filter(|_| self.slots.len() >= INDEXES_MAX));
        if let Some(at) = leaves {
            self.slots.swap_remove(at);
        }
        self.slots.push(Slot {
            class: pod.class.clone(),
            labels: labels_matter.then(|| pod.labels.clone()),
            with_holders,
            used: self.clock,
            index,
            candidates: None,
        });
        Ok(self.slots.len() - 1)
    }
}

/// One node as the rules see it for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The node's name.
    pub node: Arc<str>,
    /// The plugin that rejected it, and why; `None`: it passed.
    pub rejected: Option<(String, String)>,
    /// The weighted score that each plugin gave.
    pub scores: Vec<(String, i64)>,
}
