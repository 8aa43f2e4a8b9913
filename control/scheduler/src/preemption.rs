//! Displacing pods of lower priority for one that fits nowhere.
//!
//! Owns the choice of a node and of the pods that have to leave it: as few and as unimportant as possible,
//! those whose disruption budgets allow it before others. It only decides; its caller tells the shell, which
//! lets them go gracefully. Where no rule looks beyond a node, what was found out for each node is kept, so
//! that the next equal pod costs one look at each node that changed meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::selector::LabelSelector;

use crate::cache::Cache;
use crate::framework::PreemptionArgs;
use crate::index::ClassIndex;
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

/// Moves priorities, which may be negative, above zero, so that more victims weigh more.
const PRIORITY_OFFSET: i64 = 1 << 31;

/// A disruption budget: how many more of its pods may be disrupted now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// The namespace whose pods it speaks of.
    pub namespace: String,
    /// Its pods. An empty selector picks none here.
    pub selector: LabelSelector,
    /// `status.disruptionsAllowed`.
    pub allowed: i64,
    /// Pods by name whose disruption it has counted already.
    pub disrupted: BTreeSet<String>,
}

impl Budget {
    fn protects(&self, pod: &PodInfo) -> bool {
        *self.namespace == *pod.namespace
            && !pod.labels.labels.is_empty()
            && !self.selector.is_everything()
            && self.selector.matches(&pod.labels.labels)
            && !self.disrupted.contains(&*pod.name)
    }
}

/// Pods that have to leave a node so that another fits.
#[derive(Debug, Clone)]
pub struct Displacement {
    /// The node.
    pub node: Arc<str>,
    /// Those who have to leave, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// Less important pods for which room was kept there, and is no more.
    pub passed_over: Vec<Arc<PodInfo>>,
}

/// How bad it is to displace pods on a node: violated budgets, highest priority, sum of priorities, number,
/// and (the later, the better) when the most important of them started.
type Cost = (usize, i32, i64, usize, Reverse<i64>);

#[derive(Debug)]
struct Victims {
    pods: Vec<Arc<PodInfo>>,
    violations: usize,
}

impl Victims {
    fn cost(&self) -> Cost {
        let highest = self.pods.iter().map(|pod| pod.class.priority).max().unwrap_or(i32::MIN);
        let sum = self.pods.iter().map(|pod| i64::from(pod.class.priority) + PRIORITY_OFFSET).sum();
        let top = self.pods.iter().filter(|pod| pod.class.priority == highest);
        let started = top.map(|pod| started(pod)).min().unwrap_or(i64::MAX);
        (self.violations, highest, sum, self.pods.len(), Reverse(started))
    }
}

/// A pod that has not started yet is the youngest.
fn started(pod: &PodInfo) -> i64 {
    pod.started_ms.unwrap_or(i64::MAX)
}

/// What displacing would cost on each node, for one class of pods.
#[derive(Debug)]
pub(crate) struct Candidates {
    layout: u64,
    seen: u64,
    budgets: u64,
    costs: HashMap<u32, Cost>,
    best: BTreeSet<(Cost, u32)>,
}

/// Budgets, with a number that changes when they do.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    pub(crate) all: Vec<Budget>,
    pub(crate) version: u64,
}

/// One search for a node.
pub(crate) struct Search<'a> {
    pub(crate) index: &'a mut ClassIndex,
    pub(crate) cache: &'a Cache,
    pub(crate) budgets: &'a Budgets,
    pub(crate) pod: &'a PodInfo,
}

impl Search<'_> {
    /// The cheapest node, from what is kept for the class.
    pub(crate) fn best_kept(&mut self, kept: &mut Option<Candidates>) -> Option<Displacement> {
        let is_current = kept
            .as_ref()
            .is_some_and(|kept| kept.layout == self.cache.layout() && kept.budgets == self.budgets.version);
        let changed: Option<Vec<usize>> = match kept.as_ref().filter(|_| is_current) {
            Some(kept) => self.cache.changed_since(kept.seen).map(Iterator::collect),
            None => None,
        };
        let every = changed.is_none();
        let mut changed = changed.unwrap_or_else(|| (0..self.cache.snapshot().nodes().len()).collect());
        changed.sort_unstable();
        changed.dedup();
        let kept = match kept {
            Some(kept) if !every => kept,
            _ => kept.insert(Candidates {
                layout: self.cache.layout(),
                seen: 0,
                budgets: self.budgets.version,
                costs: HashMap::new(),
                best: BTreeSet::new(),
            }),
        };
        for at in changed {
            let cost = self.victims_on(at).map(|victims| victims.cost());
            let number = at as u32;
            if let Some(old) = kept.costs.remove(&number) {
                kept.best.remove(&(old, number));
            }
            if let Some(cost) = cost {
                kept.costs.insert(number, cost);
                kept.best.insert((cost, number));
            }
        }
        kept.seen = self.cache.change_count();
        let at = kept.best.first().map(|(_, at)| *at as usize)?;
        let victims = self.victims_on(at)?;
        Some(self.displacement(at, victims))
    }

    /// The cheapest of as many candidates as the arguments ask for, from a node on.
    pub(crate) fn best_of_some(&mut self, args: PreemptionArgs, start: usize) -> Option<Displacement> {
        let nodes = self.cache.snapshot().nodes().len();
        let enough = (nodes * args.candidates_percent_min / 100).max(args.candidates_min).max(1);
        let mut best: Option<(Cost, usize, Victims)> = None;
        let mut found = 0;
        let start = start.min(nodes);
        for at in (start..nodes).chain(0..start) {
            let Some(victims) = self.victims_on(at) else { continue };
            let cost = victims.cost();
            if best.as_ref().is_none_or(|(known, known_at, _)| (cost, at) < (*known, *known_at)) {
                best = Some((cost, at, victims));
            }
            found += 1;
            if found >= enough {
                break;
            }
        }
        best.map(|(_, at, victims)| self.displacement(at, victims))
    }

    fn displacement(&self, at: usize, victims: Victims) -> Displacement {
        let node = &self.cache.snapshot().nodes()[at];
        let lower = node.nominated().iter().filter(|other| other.class.priority < self.pod.class.priority);
        Displacement {
            node: node.name().clone(),
            victims: victims.pods,
            passed_over: lower.cloned().collect(),
        }
    }

    /// Who has to leave the node so that the pod fits; `None`: it would not help, or nobody has to.
    fn victims_on(&mut self, at: usize) -> Option<Victims> {
        let cluster = self.cache.snapshot();
        let node = &cluster.nodes()[at];
        let priority = self.pod.class.priority;
        if !node.pods().iter().any(|other| other.class.priority < priority) {
            return None;
        }
        match self.index.verdict(at, cluster) {
            Err((_, rejection)) if rejection.resolvable => {}
            _ => return None,
        }
        let mut lower: Vec<&Arc<PodInfo>> =
            node.pods().iter().filter(|other| other.class.priority < priority).collect();
        lower.sort_unstable_by_key(|pod| (Reverse(pod.class.priority), started(pod), pod.uid.clone()));
        let mut trial = node.trial();
        lower.iter().for_each(|pod| trial.uncount(pod));
        if !self.fits(at, &trial, node, cluster) {
            return None;
        }
        let (violating, allowed) = self.split_by_budgets(&lower);
        let mut victims = Victims { pods: Vec::new(), violations: 0 };
        for (pods, violates) in [(violating, true), (allowed, false)] {
            for pod in pods {
                trial.count(pod);
                if !self.fits(at, &trial, node, cluster) {
                    trial.uncount(pod);
                    victims.pods.push(pod.clone());
                    victims.violations += usize::from(violates);
                }
            }
        }
        victims.pods.sort_by_key(|pod| (Reverse(pod.class.priority), started(pod)));
        (!victims.pods.is_empty()).then_some(victims)
    }

    fn fits(&mut self, at: usize, trial: &NodeInfo, node: &NodeInfo, cluster: Snapshot<'_>) -> bool {
        let pod = self.pod;
        let mut others = node
            .nominated()
            .iter()
            .filter(|other| other.class.priority >= pod.class.priority && other.uid != pod.uid);
        let verdict = match others.next() {
            None => self.index.takes(at, &[trial], cluster),
            Some(first) => {
                let mut with = trial.clone();
                with.count(first);
                others.for_each(|other| with.count(other));
                self.index.takes(at, &[trial, &with], cluster)
            }
        };
        verdict.is_ok()
    }

    /// Those whose displacement would break a budget, and the others; in the given order.
    fn split_by_budgets<'b>(
        &self,
        pods: &[&'b Arc<PodInfo>],
    ) -> (Vec<&'b Arc<PodInfo>>, Vec<&'b Arc<PodInfo>>) {
        let mut left: Vec<i64> = self.budgets.all.iter().map(|budget| budget.allowed).collect();
        pods.iter().partition(|pod| {
            let mut violates = false;
            for (budget, left) in self.budgets.all.iter().zip(&mut left) {
                if budget.protects(pod) {
                    *left -= 1;
                    violates |= *left < 0;
                }
            }
            violates
        })
    }
}
