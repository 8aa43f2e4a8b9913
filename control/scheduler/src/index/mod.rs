//! What is known about equal pods, node by node: who fits, and how good each node is.
//!
//! One index serves every pod of a class. A change of a node costs one look at that node; a decision costs
//! one look at each *group* of nodes that the rules cannot tell apart, and there are few: one, if no rule
//! looks at domains. Every node always counts: nothing is sampled.
//!
//! ```text
//!  node ─► filters of one node ─► facets (what rules of many nodes see) ─► group ─► by score of one node
//!  choice: groups whose facets pass ─► scores over groups + best of each group ─► one of the best nodes
//! ```

mod rejections;
mod verdicts;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use self::rejections::Rejections;
use crate::cache::Cache;
use crate::framework::{FilterState, Framework, Group, Plugin, Recount, Rejection, ScoreState};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::random::Random;
use crate::snapshot::Snapshot;

/// Not in any group.
const NO_GROUP: u32 = u32::MAX;

/// A filter's no, with who says it.
pub(crate) type Verdict = Result<(), (usize, Rejection)>;

#[derive(Debug, Clone, Copy)]
struct Entry {
    group: u32,
    /// Where it stands in its row of the group.
    position: u32,
    score: i64,
}

impl Entry {
    const NONE: Self = Self { group: NO_GROUP, position: 0, score: 0 };
}

/// Nodes with equal facets, by their own score.
#[derive(Debug)]
struct Nodes {
    facets: Box<[i64]>,
    by_score: BTreeMap<i64, Vec<u32>>,
    count: usize,
}

#[derive(Debug)]
struct Stateful<T: ?Sized> {
    member: usize,
    weight: i64,
    facets: Range<usize>,
    state: Box<T>,
}

/// A node that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Where it stands in the snapshot.
    pub(crate) at: usize,
    /// How many nodes passed the filters.
    pub(crate) feasible: usize,
    /// Its whole score.
    pub(crate) score: i64,
}

/// The index of one class of pods.
#[derive(Debug)]
pub(crate) struct ClassIndex {
    pod: PodInfo,
    layout: u64,
    seen: u64,
    filters: Vec<(usize, Arc<dyn Plugin>)>,
    filter_states: Vec<Stateful<dyn FilterState>>,
    scores: Vec<(i64, Arc<dyn Plugin>)>,
    score_states: Vec<Stateful<dyn ScoreState>>,
    /// Only these nodes can take the pod, says a rule that did not look at nodes, and which.
    only: Option<(usize, Vec<usize>)>,
    entries: Vec<Entry>,
    groups: Vec<Nodes>,
    free: Vec<u32>,
    by_facets: HashMap<Box<[i64]>, u32>,
    /// Nodes where room is kept for others, when that has to be asked of states as well.
    reserved: Vec<u32>,
    scratch: Vec<i64>,
    rejections: Option<Rejections>,
}

impl ClassIndex {
    /// What the profile's rules find out about pods like this one. `Err`: a rule says that it can run
    /// nowhere.
    pub(crate) fn build(
        framework: &Framework,
        pod: &PodInfo,
        cache: &Cache,
    ) -> Result<Self, (usize, Rejection)> {
        let cluster = cache.snapshot();
        let mut filter_states = Vec::new();
        let mut only: Option<(usize, Vec<usize>)> = None;
        for (member, rule) in framework.pre_filters() {
            let found = rule.pre_filter(pod, cluster).map_err(|no| (member, no))?;
            if let Some(state) = found.state {
                filter_states.push(Stateful { member, weight: 0, facets: 0..0, state });
            }
            if let Some(names) = found.nodes {
                let mut nodes: Vec<usize> = names.iter().filter_map(|name| cache.position(name)).collect();
                if let Some((_, known)) = &only {
                    nodes.retain(|at| known.contains(at));
                }
                nodes.sort_unstable();
                only = Some((member, nodes));
            }
        }
        // Where there is no choice, nothing is ranked.
        let is_choice = only.as_ref().is_none_or(|(_, nodes)| nodes.len() > 1);
        let ranking = framework.pre_scores().filter(|_| is_choice);
        let score_states = ranking.filter_map(|(member, rule, weight)| {
            let state = rule.pre_score(pod, cluster)?;
            Some(Stateful { member, weight, facets: 0..0, state })
        });
        let mut index = Self {
            pod: pod.clone(),
            layout: cache.layout(),
            seen: cache.change_count(),
            filters: framework.filters_for(pod),
            filter_states,
            scores: framework.scores_for(pod),
            score_states: score_states.collect(),
            only,
            entries: Vec::new(),
            groups: Vec::new(),
            free: Vec::new(),
            by_facets: HashMap::new(),
            reserved: Vec::new(),
            scratch: Vec::new(),
            rejections: None,
        };
        index.count_all(cluster);
        index.reshape(cluster);
        Ok(index)
    }

    /// Whether rules look at more than the node itself.
    pub(crate) fn has_filter_states(&self) -> bool {
        !self.filter_states.is_empty()
    }

    /// Whether a rule left all but some named nodes out.
    pub(crate) fn names_nodes(&self) -> bool {
        self.only.is_some()
    }

    /// Takes over what changed. `false`: the index is void, build another.
    pub(crate) fn refresh(&mut self, cache: &Cache) -> bool {
        if self.layout != cache.layout() {
            return false;
        }
        let Some(changed) = cache.changed_since(self.seen) else { return false };
        let cluster = cache.snapshot();
        let mut before = usize::MAX;
        let mut any = false;
        for at in changed {
            // One pod's life on a node often makes several changes in a row.
            if at != before {
                self.recount(at, cluster);
                if !self.has_filter_states()
                    && let Some(mut rejections) = self.rejections.take()
                {
                    rejections.set(at, self.verdict(at, cluster));
                    self.rejections = Some(rejections);
                }
                before = at;
                any = true;
            }
        }
        self.seen = cache.change_count();
        if any && self.has_filter_states() {
            self.rejections = None;
        }
        true
    }

    fn count_all(&mut self, cluster: Snapshot<'_>) {
        if self.filter_states.is_empty() && self.score_states.is_empty() {
            return;
        }
        for (at, node) in cluster.nodes().iter().enumerate() {
            for rule in &mut self.filter_states {
                rule.state.recount(at, node, cluster);
            }
            for rule in &mut self.score_states {
                rule.state.recount(at, node, cluster);
            }
        }
    }

    fn recount(&mut self, at: usize, cluster: Snapshot<'_>) {
        let node = &cluster.nodes()[at];
        let mut is_reshaped = false;
        for rule in &mut self.filter_states {
            is_reshaped |= rule.state.recount(at, node, cluster) == Recount::Reshaped;
        }
        for rule in &mut self.score_states {
            is_reshaped |= rule.state.recount(at, node, cluster) == Recount::Reshaped;
        }
        if is_reshaped {
            self.reshape(cluster);
        } else if self.is_among(at) {
            self.enter(at, node);
        }
    }

    fn is_among(&self, at: usize) -> bool {
        self.only.as_ref().is_none_or(|(_, nodes)| nodes.binary_search(&at).is_ok())
    }

    /// Puts every node into its group anew.
    fn reshape(&mut self, cluster: Snapshot<'_>) {
        self.groups.clear();
        self.free.clear();
        self.by_facets.clear();
        self.reserved.clear();
        self.entries.clear();
        self.entries.resize(cluster.nodes().len(), Entry::NONE);
        match self.only.take() {
            Some((member, nodes)) => {
                nodes.iter().for_each(|&at| self.enter(at, &cluster.nodes()[at]));
                self.only = Some((member, nodes));
            }
            None => cluster.nodes().iter().enumerate().for_each(|(at, node)| self.enter(at, node)),
        }
    }

    /// Puts one node where it belongs now.
    fn enter(&mut self, at: usize, node: &NodeInfo) {
        self.leave(at);
        let keeps_room = self.keeps_room_for_others(node);
        if keeps_room && self.has_filter_states() {
            self.reserved.push(at as u32);
            return;
        }
        if self.check_node(node).is_err()
            || (keeps_room && self.check_node(&self.with_nominated(node)).is_err())
        {
            return;
        }
        let mut facets = std::mem::take(&mut self.scratch);
        self.facets(at, node, &mut facets);
        let score = self.own_score(node);
        let group = self.group(&facets);
        self.scratch = facets;
        let row = self.groups[group as usize].by_score.entry(score).or_default();
        self.entries[at] = Entry { group, position: row.len() as u32, score };
        row.push(at as u32);
        self.groups[group as usize].count += 1;
    }

    fn leave(&mut self, at: usize) {
        let Entry { group, position, score } = std::mem::replace(&mut self.entries[at], Entry::NONE);
        if group == NO_GROUP {
            self.reserved.retain(|other| *other as usize != at);
            return;
        }
        let nodes = &mut self.groups[group as usize];
        nodes.count -= 1;
        if let Some(row) = nodes.by_score.get_mut(&score) {
            row.swap_remove(position as usize);
            if let Some(moved) = row.get(position as usize) {
                self.entries[*moved as usize].position = position;
            }
            if row.is_empty() {
                nodes.by_score.remove(&score);
            }
        }
        if nodes.count == 0 {
            let facets = std::mem::take(&mut nodes.facets);
            self.by_facets.remove(&facets);
            self.free.push(group);
        }
    }

    fn group(&mut self, facets: &[i64]) -> u32 {
        if let Some(group) = self.by_facets.get(facets) {
            return *group;
        }
        let nodes = Nodes { facets: facets.into(), by_score: BTreeMap::new(), count: 0 };
        let group = match self.free.pop() {
            Some(group) => {
                self.groups[group as usize] = nodes;
                group
            }
            None => {
                self.groups.push(nodes);
                (self.groups.len() - 1) as u32
            }
        };
        self.by_facets.insert(facets.into(), group);
        group
    }

    fn facets(&mut self, at: usize, node: &NodeInfo, facets: &mut Vec<i64>) {
        facets.clear();
        for rule in &mut self.filter_states {
            let start = facets.len();
            rule.state.facets(at, node, facets);
            rule.facets = start..facets.len();
        }
        for rule in &mut self.score_states {
            let start = facets.len();
            rule.state.facets(at, node, facets);
            rule.facets = start..facets.len();
        }
    }

    fn own_score(&self, node: &NodeInfo) -> i64 {
        let rules = self.scores.iter().filter_map(|(weight, plugin)| Some((weight, plugin.score()?)));
        rules.map(|(weight, rule)| weight * rule.score(&self.pod, node)).sum()
    }

    /// One of the best nodes, each with the same chance. `None`: no node takes the pod.
    pub(crate) fn choose(&mut self, random: &mut Random, cluster: Snapshot<'_>) -> Option<Choice> {
        let extra = self.admit_reserved(cluster);
        let mut feasible: Vec<usize> = Vec::new();
        let mut count = 0;
        for (at, nodes) in self.groups.iter().enumerate() {
            if nodes.count > 0 && self.check_facets(&nodes.facets).is_ok() {
                feasible.push(at);
                count += nodes.count;
            }
        }
        let chosen = match count {
            0 => None,
            _ => {
                let totals = self.totals(&feasible);
                let (score, at) = self.pick(&feasible, &totals, random);
                Some(Choice { at, feasible: count, score })
            }
        };
        for at in extra {
            self.leave(at);
            self.reserved.push(at as u32);
        }
        chosen
    }

    /// Lets nodes that keep room for others take part for one choice, if they have room for both.
    fn admit_reserved(&mut self, cluster: Snapshot<'_>) -> Vec<usize> {
        let reserved = std::mem::take(&mut self.reserved);
        let mut admitted = Vec::new();
        for at in &reserved {
            let at = *at as usize;
            let node = &cluster.nodes()[at];
            let with = self.with_nominated(node);
            if self.takes(at, &[node, &with], cluster).is_ok() {
                admitted.push(at);
                let mut facets = Vec::new();
                self.facets(at, node, &mut facets);
                let (score, group) = (self.own_score(node), self.group(&facets));
                let row = self.groups[group as usize].by_score.entry(score).or_default();
                self.entries[at] = Entry { group, position: row.len() as u32, score };
                row.push(at as u32);
                self.groups[group as usize].count += 1;
            }
        }
        self.reserved = reserved;
        self.reserved.retain(|at| !admitted.contains(&(*at as usize)));
        admitted
    }

    /// What the rules over groups add to each of them.
    fn totals(&self, feasible: &[usize]) -> Vec<i64> {
        let mut totals = vec![0; feasible.len()];
        let mut scores = vec![0; feasible.len()];
        for rule in &self.score_states {
            let group = |&at: &usize| Group {
                facets: &self.groups[at].facets[rule.facets.clone()],
                nodes: self.groups[at].count,
            };
            let groups: Vec<Group<'_>> = feasible.iter().map(group).collect();
            rule.state.score(&groups, &mut scores);
            totals.iter_mut().zip(&scores).for_each(|(total, score)| *total += score * rule.weight);
        }
        totals
    }

    fn pick(&self, feasible: &[usize], totals: &[i64], random: &mut Random) -> (i64, usize) {
        let mut best = i64::MIN;
        let mut rows: Vec<&[u32]> = Vec::new();
        for (group, total) in feasible.iter().zip(totals) {
            let Some((own, row)) = self.groups[*group].by_score.last_key_value() else { continue };
            let score = total + own;
            if score > best {
                best = score;
                rows.clear();
            }
            if score == best {
                rows.push(row);
            }
        }
        let ties: usize = rows.iter().map(|row| row.len()).sum();
        let mut pick = random.below(ties);
        for row in rows {
            match row.get(pick) {
                Some(at) => return (best, *at as usize),
                None => pick -= row.len(),
            }
        }
        (best, 0)
    }
}
