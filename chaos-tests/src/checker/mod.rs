//! Judges histories.
//!
//! Owns one module per property, each a pure function from a history to [`Verdict`]s; none knows a cluster, a
//! clock or a file. They promise that a history which a correct store can make is never rejected, and that a
//! rejection shows the operations that contradict each other. Where a bound is reached before the answer, the
//! verdict is *unknown* and says which; a run in which nothing happened is rejected ([`vacuity`]).
//!
//! | module | property |
//! |---|---|
//! | [`linearizable`] | one register per key: reads, writes, compare-and-set |
//! | [`append`] | transactions over append lists: serializable in the order of real time |
//! | [`set`] | nothing acknowledged is lost, nothing appears that nobody added |
//! | [`bank`] | the sum of all accounts is the same in each read |
//! | [`lock`] | one holder, fencing tokens only rise |
//! | [`lease`] | no key goes before its lease may end |
//! | [`watch`] | ordered, unique, atomic, reliable, resumable, bookmarks, previous values |
//! | [`revisions`] | revisions never go back; each answer shows the state at its revision |
//! | [`hashes`] | all members hash the same revision to the same value |
//! | [`pods`] | one binding per pod, no node over its capacity, nothing comes back, all that was asked for is there at the end |
//! | [`gangs`] | groups of pods are bound as a whole or not at all |
//! | [`instances`] | of each identity one pod runs at most, where it is bound; nothing runs on |
//! | [`liveness`] | after healing there is an answer within a bound |

pub mod append;
pub mod bank;
pub mod gangs;
mod graph;
pub mod hashes;
pub mod instances;
pub mod lease;
pub mod linearizable;
pub mod liveness;
pub mod lock;
pub mod pods;
pub mod registers;
pub mod revisions;
pub mod set;
pub mod vacuity;
pub mod watch;

use serde::Serialize;

use crate::history::{History, Operation};

/// Operations that a counter-example shows at most.
pub const SHOWN_MAX: usize = 16;

/// What a checker found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The property holds in this history.
    Valid,
    /// It does not.
    Invalid,
    /// A bound was reached first.
    Unknown,
}

/// Operations that cannot all be right, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CounterExample {
    /// In the order of their beginnings.
    pub operations: Vec<Operation>,
    /// What must come before what; positions in `operations`.
    pub edges: Vec<Edge>,
}

/// One *must come before*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The earlier one.
    pub from: usize,
    /// The later one.
    pub to: usize,
    /// Why.
    pub label: String,
}

/// One property of one history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Its name, as in `linearizable`.
    pub property: String,
    /// Whether it holds.
    pub outcome: Outcome,
    /// One line for people.
    pub explanation: String,
    /// How many operations, events or answers it rests on.
    pub checked: usize,
    /// What contradicts it.
    pub counter_example: Option<CounterExample>,
}

impl Verdict {
    /// It holds.
    pub fn valid(property: &str, checked: usize, explanation: impl Into<String>) -> Self {
        Self::of(property, Outcome::Valid, checked, explanation)
    }

    /// A bound was reached.
    pub fn unknown(property: &str, checked: usize, explanation: impl Into<String>) -> Self {
        Self::of(property, Outcome::Unknown, checked, explanation)
    }

    /// It does not hold.
    pub fn invalid(property: &str, checked: usize, explanation: impl Into<String>) -> Self {
        Self::of(property, Outcome::Invalid, checked, explanation)
    }

    fn of(property: &str, outcome: Outcome, checked: usize, explanation: impl Into<String>) -> Self {
        let (property, explanation) = (property.to_owned(), explanation.into());
        Self { property, outcome, explanation, checked, counter_example: None }
    }

    /// Shows these operations.
    #[must_use]
    pub fn showing<'a>(mut self, operations: impl IntoIterator<Item = &'a Operation>) -> Self {
        let operations: Vec<Operation> = operations.into_iter().take(SHOWN_MAX).cloned().collect();
        self.counter_example = Some(CounterExample { operations, edges: Vec::new() });
        self
    }

    /// Whether the property holds.
    pub fn is_valid(&self) -> bool {
        self.outcome == Outcome::Valid
    }
}

/// The sum of several verdicts: invalid if one is, else unknown if one is.
pub fn overall<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> Outcome {
    let mut sum = Outcome::Valid;
    for verdict in verdicts {
        match verdict.outcome {
            Outcome::Invalid => return Outcome::Invalid,
            Outcome::Unknown => sum = Outcome::Unknown,
            Outcome::Valid => {}
        }
    }
    sum
}

/// Judges a history by every property that its operations are about.
///
/// # Errors
/// When the history contradicts itself.
pub fn check(history: &History) -> Result<Vec<Verdict>, crate::history::Error> {
    let operations = history.operations()?;
    let has = |names: &[&str]| operations.iter().any(|operation| names.contains(&operation.f.as_str()));
    let mut verdicts = vec![vacuity::acknowledged(&operations)];
    if has(&["read", "write", "cas"]) {
        verdicts.push(registers::check(&operations));
    }
    if has(&["txn"]) {
        verdicts.push(append::check(&operations));
    }
    if has(&["add"]) {
        verdicts.push(set::check(&operations));
    }
    if has(&["transfer"]) {
        verdicts.push(bank::check(&operations));
    }
    if has(&["acquire", "guarded-write"]) {
        verdicts.extend(lock::check(&operations));
    }
    if has(&["grant"]) {
        verdicts.push(lease::check(&operations));
    }
    if has(&["watch"]) {
        verdicts.extend(watch::check(&operations));
    }
    if has(&["put", "get"]) {
        verdicts.extend(revisions::check(&operations));
    }
    if has(&["hash"]) {
        verdicts.push(hashes::check(&operations));
    }
    if has(&["pods"]) {
        verdicts.extend(pods::check(&operations));
    }
    if operations.iter().any(|operation| operation.asked["group"].is_string()) {
        verdicts.push(gangs::check(&operations));
    }
    if has(&["instances"]) {
        verdicts.extend(instances::check(&operations));
    }
    Ok(verdicts)
}
