//! What the rules say of one node: as it is, with others that room is kept for, or changed in thought.

use super::rejections::Rejections;
use super::{ClassIndex, NO_GROUP, Verdict};
use crate::fit_error::FitError;
use crate::framework::{Framework, Group, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

/// A node that a rule left out because the pod names others.
const NOT_NAMED: &str = "node(s) didn't match Pod's node affinity/selector";

impl ClassIndex {
    /// What the filters that look at one node say.
    pub(super) fn check_node(&self, node: &NodeInfo) -> Verdict {
        let mut rules = self.filters.iter().filter_map(|(member, plugin)| Some((*member, plugin.filter()?)));
        rules.try_for_each(|(member, rule)| rule.filter(&self.pod, node).map_err(|no| (member, no)))
    }

    /// What the filters that look at domains say of nodes with these facets.
    pub(super) fn check_facets(&self, facets: &[i64]) -> Verdict {
        let mut rules = self.filter_states.iter();
        rules.try_for_each(|rule| {
            rule.state.filter(&facets[rule.facets.clone()]).map_err(|no| (rule.member, no))
        })
    }

    pub(super) fn keeps_room_for_others(&self, node: &NodeInfo) -> bool {
        node.nominated().iter().any(|other| self.yields_to(other))
    }

    fn yields_to(&self, other: &PodInfo) -> bool {
        other.class.priority >= self.pod.class.priority
    }

    /// The node as if the pods for which it keeps room were there.
    pub(super) fn with_nominated(&self, node: &NodeInfo) -> NodeInfo {
        let mut trial = node.trial();
        node.nominated().iter().filter(|other| self.yields_to(other)).for_each(|other| trial.count(other));
        trial
    }

    /// Whether the node, changed in thought, takes the pod. Afterwards the index stands as before.
    pub(crate) fn takes(&mut self, at: usize, trials: &[&NodeInfo], cluster: Snapshot<'_>) -> Verdict {
        let mut verdict = Ok(());
        for trial in trials {
            verdict = self.check_node(trial);
            if verdict.is_ok() && self.has_filter_states() {
                verdict = self.check_states(at, trial, cluster);
            }
            if verdict.is_err() {
                break;
            }
        }
        if self.has_filter_states() {
            for rule in &mut self.filter_states {
                rule.state.recount(at, &cluster.nodes()[at], cluster);
            }
        }
        verdict
    }

    fn check_states(&mut self, at: usize, trial: &NodeInfo, cluster: Snapshot<'_>) -> Verdict {
        let mut facets = Vec::new();
        for rule in &mut self.filter_states {
            rule.state.recount(at, trial, cluster);
            facets.clear();
            rule.state.facets(at, trial, &mut facets);
            rule.state.filter(&facets).map_err(|no| (rule.member, no))?;
        }
        Ok(())
    }

    /// Whether the node takes this pod, with room kept for others but not for the pod itself.
    pub(crate) fn takes_nominated(&mut self, at: usize, pod: &PodInfo, cluster: Snapshot<'_>) -> Verdict {
        if let Some((member, _)) = self.only.as_ref().filter(|_| !self.is_among(at)) {
            return Err((*member, Rejection::unresolvable(Reason::Text(NOT_NAMED))));
        }
        let node = &cluster.nodes()[at];
        let mut others = node.trial();
        let nominated = node.nominated().iter().filter(|other| self.yields_to(other) && other.uid != pod.uid);
        let count = nominated.map(|other| others.count(other)).count();
        match count {
            0 => self.takes(at, &[node], cluster),
            _ => self.takes(at, &[node, &others], cluster),
        }
    }

    /// What every filter says of a node as it is.
    pub(crate) fn verdict(&mut self, at: usize, cluster: Snapshot<'_>) -> Verdict {
        if let Some((member, _)) = self.only.as_ref().filter(|_| !self.is_among(at)) {
            return Err((*member, Rejection::unresolvable(Reason::Text(NOT_NAMED))));
        }
        let node = &cluster.nodes()[at];
        self.check_node(node)?;
        if self.has_filter_states() {
            let mut facets = Vec::new();
            self.facets(at, node, &mut facets);
            self.check_facets(&facets)?;
        }
        match self.keeps_room_for_others(node) {
            false => Ok(()),
            true => {
                let with = self.with_nominated(node);
                self.takes(at, &[&with], cluster)
            }
        }
    }

    /// Why no node takes the pod.
    pub(crate) fn fit_error(&mut self, cluster: Snapshot<'_>) -> FitError {
        if let Some(known) = &self.rejections {
            return known.error();
        }
        let nodes = cluster.nodes().len();
        let mut rejections = Rejections::of(nodes);
        for at in 0..nodes {
            rejections.set(at, self.verdict(at, cluster));
        }
        let error = rejections.error();
        self.rejections = Some(rejections);
        error
    }

    /// The weighted score of every group that passes, and of each rule on its own, for explanations.
    pub(crate) fn scores_by_rule(
        &self,
        framework: &Framework,
        cluster: Snapshot<'_>,
        at: usize,
    ) -> Vec<(String, i64)> {
        let Some(entry) = self.entries.get(at).filter(|entry| entry.group != NO_GROUP) else {
            return Vec::new();
        };
        let feasible: Vec<usize> = (0..self.groups.len())
            .filter(|at| self.groups[*at].count > 0 && self.check_facets(&self.groups[*at].facets).is_ok())
            .collect();
        let Some(own) = feasible.iter().position(|at| *at == entry.group as usize) else { return Vec::new() };
        let mut found = Vec::new();
        for rule in &self.score_states {
            let group = |&at: &usize| Group {
                facets: &self.groups[at].facets[rule.facets.clone()],
                nodes: self.groups[at].count,
            };
            let groups: Vec<Group<'_>> = feasible.iter().map(group).collect();
            let mut scores = vec![0; groups.len()];
            rule.state.score(&groups, &mut scores);
            found.push((framework.plugin_name(rule.member).to_owned(), scores[own] * rule.weight));
        }
        let node = &cluster.nodes()[at];
        for (weight, plugin) in &self.scores {
            if let Some(rule) = plugin.score() {
                found.push((plugin.name().to_owned(), weight * rule.score(&self.pod, node)));
            }
        }
        found
    }
}
