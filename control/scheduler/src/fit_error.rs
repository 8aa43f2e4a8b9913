//! Why a pod fits nowhere, in the words that users know from kube-scheduler.

use std::collections::BTreeMap;
use std::fmt;

use crate::framework::{Reason, Rejection};

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// What displacing others would do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Displacing {
    /// Nobody asked: the profile does not displace, or a node was found.
    Unasked,
    /// The pod may not displace anybody, for this reason.
    NotEligible(&'static str),
    /// It was looked for, and nothing was found.
    Nothing,
}

/// A pod fits nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FitError {
    /// How many nodes there are.
    pub nodes: usize,
    /// What keeps the pod from running on any node, whichever there are.
    pub pod_reason: Option<String>,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<Reason, usize>,
    /// On how many nodes removing pods would not help.
    pub unresolvable: usize,
    /// What displacing others would do about it.
    pub displacing: Displacing,
    /// The plugins that rejected a node, as a bit set.
    pub rejected_by: u64,
}

impl FitError {
    /// Nobody has said no yet.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            pod_reason: None,
            reasons: BTreeMap::new(),
            unresolvable: 0,
            displacing: Displacing::Unasked,
            rejected_by: 0,
        }
    }

    /// A rule says no before any node was looked at.
    pub fn everywhere(nodes: usize, member: usize, rejection: Rejection) -> Self {
        let reasons: Vec<String> = rejection.reasons.iter().map(ToString::to_string).collect();
        let mut error = Self::new(nodes);
        error.pod_reason = Some(reasons.join(", "));
        error.unresolvable = nodes;
        error.rejected_by = 1 << member;
        error
    }
}

/// "2 Insufficient cpu, 1 node(s) were unschedulable": sorted as text, as kube-scheduler sorts.
fn histogram(counts: &BTreeMap<Reason, usize>) -> String {
    let mut parts: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort_unstable();
    parts.join(", ")
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes;
        if nodes == 0 && self.pod_reason.is_none() {
            return f.write_str("no nodes available to schedule pods");
        }
        match &self.pod_reason {
            Some(reason) => write!(f, "0/{nodes} nodes are available: {reason}.")?,
            None => write!(f, "0/{nodes} nodes are available: {}.", histogram(&self.reasons))?,
        }
        match self.displacing {
            Displacing::Unasked => Ok(()),
            Displacing::NotEligible(why) => write!(f, " preemption: {why}"),
            Displacing::Nothing => {
                let hopeful = nodes.saturating_sub(self.unresolvable);
                let counts = [(NO_VICTIMS, hopeful), (NOT_HELPFUL, self.unresolvable)];
                let counts = counts.into_iter().filter(|(_, count)| *count > 0);
                let counts = counts.map(|(text, count)| (Reason::Text(text), count)).collect();
                write!(f, " preemption: 0/{nodes} nodes are available: {}.", histogram(&counts))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_sorted_as_text() {
        let reasons = BTreeMap::from([
            (Reason::Text("node(s) were unschedulable"), 2),
            (Reason::Insufficient("cpu".into()), 10),
            (Reason::UntoleratedTaint { key: "key".into(), value: "value".into() }, 1),
        ]);
        let mut error = FitError { reasons, unresolvable: 3, ..FitError::new(13) };
        let words = "0/13 nodes are available: 1 node(s) had untolerated taint {key: value}, \
                     10 Insufficient cpu, 2 node(s) were unschedulable.";
        assert_eq!(error.to_string(), words);
        error.displacing = Displacing::Nothing;
        let more = "preemption: 0/13 nodes are available: 10 No preemption victims found for incoming pod, \
                    3 Preemption is not helpful for scheduling.";
        assert_eq!(error.to_string(), format!("{words} {more}"));
        error.displacing = Displacing::NotEligible("not eligible due to preemptionPolicy=Never.");
        let more = "preemption: not eligible due to preemptionPolicy=Never.";
        assert_eq!(error.to_string(), format!("{words} {more}"));
        assert_eq!(FitError::new(0).to_string(), "no nodes available to schedule pods");
    }
}
