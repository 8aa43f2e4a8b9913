//! Who says no to a class of pods, node by node, and how many say so.

use std::collections::BTreeMap;

use super::Verdict;
use crate::fit_error::FitError;
use crate::framework::{Reason, Rejection};

/// Who says no to the pod, counted; kept up to date where no rule looks beyond a node.
#[derive(Debug)]
pub(super) struct Rejections {
    by_node: Vec<Option<(usize, Rejection)>>,
    by_member: BTreeMap<usize, usize>,
    reasons: BTreeMap<Reason, usize>,
    unresolvable: usize,
}

impl Rejections {
    /// Of so many nodes, of which nothing is known yet.
    pub(super) fn of(nodes: usize) -> Self {
        Self {
            by_node: vec![None; nodes],
            by_member: BTreeMap::new(),
            reasons: BTreeMap::new(),
            unresolvable: 0,
        }
    }

    /// Takes over what is said of a node now.
    pub(super) fn set(&mut self, at: usize, verdict: Verdict) {
        if let Some((member, old)) = self.by_node[at].take() {
            self.unresolvable -= usize::from(!old.resolvable);
            decrement(&mut self.by_member, &member);
            old.reasons.iter().for_each(|reason| decrement(&mut self.reasons, reason));
        }
        if let Err((member, new)) = verdict {
            self.unresolvable += usize::from(!new.resolvable);
            *self.by_member.entry(member).or_default() += 1;
            for reason in &new.reasons {
                match self.reasons.get_mut(reason) {
                    Some(count) => *count += 1,
                    None => {
                        self.reasons.insert(reason.clone(), 1);
                    }
                }
            }
            self.by_node[at] = Some((member, new));
        }
    }

    /// Why no node takes the pod.
    pub(super) fn error(&self) -> FitError {
        FitError {
            reasons: self.reasons.clone(),
            unresolvable: self.unresolvable,
            rejected_by: self.by_member.keys().fold(0, |bits, member| bits | 1 << member),
            ..FitError::new(self.by_node.len())
        }
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
