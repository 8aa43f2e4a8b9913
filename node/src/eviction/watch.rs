//! Which thresholds are met, since when, and what follows from it: the pure core of eviction.
//!
//! ```text
//! available < threshold ─► condition at once ─► (soft: its grace period) ─► due: reclaim, then evict
//!        ▲                        │
//!        └ met until threshold + minimum reclaim    condition stays for the transition period
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::threshold::{Observation, Signal, Threshold};
use crate::node_state::Pressure;

/// What was observed, by signal; a signal that cannot be measured is missing and meets nothing.
pub(crate) type Observations = BTreeMap<Signal, Observation>;

/// Keeps what thresholds and conditions need to remember.
#[derive(Debug)]
pub(crate) struct Watch {
    thresholds: Vec<Threshold>,
    transition_period: Duration,
    /// Thresholds by index, since they are met.
    met: BTreeMap<usize, Instant>,
    /// When a condition was last true.
    seen: BTreeMap<Pressure, Instant>,
}

/// What a look at the node says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    /// Conditions that hold.
    pub(crate) pressure: BTreeSet<Pressure>,
    /// Thresholds on which to act, the most urgent first.
    pub(crate) due: Vec<Threshold>,
}

impl Watch {
    pub(crate) fn new(thresholds: Vec<Threshold>, transition_period: Duration) -> Self {
        Self { thresholds, transition_period, met: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// Takes a look's result in.
    pub(crate) fn observe(&mut self, observations: &Observations, now: Instant) -> Verdict {
        let mut met = BTreeMap::new();
        for (index, threshold) in self.thresholds.iter().enumerate() {
            let before = self.met.get(&index);
            if is_met(threshold, observations, before.is_some()) {
                met.insert(index, before.copied().unwrap_or(now));
            }
        }
        self.met = met;
        for index in self.met.keys() {
            self.seen.insert(self.thresholds[*index].signal.pressure(), now);
        }
        let held = self.seen.iter().filter(|(pressure, at)| {
            let holds = self.met.keys().any(|index| self.thresholds[*index].signal.pressure() == **pressure);
            holds || now.duration_since(**at) < self.transition_period
        });
        let pressure = held.map(|(pressure, _)| *pressure).collect();
        let due = self.met.iter().filter(|(index, since)| {
            self.thresholds[**index].soft_grace.is_none_or(|grace| now.duration_since(**since) >= grace)
        });
        let mut due: Vec<Threshold> = due.map(|(index, _)| self.thresholds[*index].clone()).collect();
        // Of one signal the hard threshold decides: it leaves pods no time.
        due.sort_by_key(|threshold| (threshold.signal, threshold.soft_grace.is_some()));
        Verdict { pressure, due }
    }
}

/// Whether there is still too little; `was_met` asks for the minimum reclaim as well.
pub(crate) fn is_met(threshold: &Threshold, observations: &Observations, was_met: bool) -> bool {
    let Some(observed) = observations.get(&threshold.signal) else { return false };
    let reclaim = threshold.minimum_reclaim.filter(|_| was_met).map_or(0, |r| r.of(observed.capacity));
    observed.available < threshold.value.of(observed.capacity).saturating_add(reclaim)
}

#[cfg(test)]
mod tests {
    use super::super::threshold::Amount;
    use super::*;

    fn threshold(signal: Signal, value: u64) -> Threshold {
        Threshold { signal, value: Amount::Of(value), soft_grace: None, minimum_reclaim: None }
    }

    fn available(signal: Signal, available: u64) -> Observations {
        [(signal, Observation { available, capacity: 1000 })].into()
    }

    const MEMORY: Signal = Signal::MemoryAvailable;

    #[test]
    fn a_hard_threshold_is_due_at_once_and_its_condition_lasts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(vec![threshold(MEMORY, 100)], Duration::from_secs(60));
        assert_eq!(watch.observe(&available(MEMORY, 100), at(0)), Verdict::default());
        let verdict = watch.observe(&available(MEMORY, 99), at(1));
        assert_eq!((verdict.pressure.len(), verdict.due.len()), (1, 1));
        let verdict = watch.observe(&available(MEMORY, 500), at(60));
        assert_eq!((verdict.pressure.len(), verdict.due.len()), (1, 0));
        assert_eq!(watch.observe(&available(MEMORY, 500), at(61)), Verdict::default());
        assert_eq!(watch.observe(&Observations::new(), at(62)), Verdict::default());
    }

    #[test]
    fn a_soft_threshold_must_last_but_its_condition_shows_at_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let soft = Threshold { soft_grace: Some(Duration::from_secs(30)), ..threshold(MEMORY, 100) };
        let mut watch = Watch::new(vec![soft], Duration::from_secs(0));
        let verdict = watch.observe(&available(MEMORY, 50), at(0));
        assert_eq!((verdict.pressure.len(), verdict.due.len()), (1, 0));
        assert!(watch.observe(&available(MEMORY, 150), at(20)).pressure.is_empty());
        assert!(watch.observe(&available(MEMORY, 50), at(29)).due.is_empty(), "it begins anew");
        assert!(watch.observe(&available(MEMORY, 50), at(58)).due.is_empty());
        assert_eq!(watch.observe(&available(MEMORY, 50), at(59)).due.len(), 1);
    }

    #[test]
    fn reclaiming_goes_on_beyond_the_threshold() {
        let now = Instant::now();
        let reclaim = Threshold { minimum_reclaim: Some(Amount::Percent(10.0)), ..threshold(MEMORY, 100) };
        let mut watch = Watch::new(vec![reclaim], Duration::from_secs(0));
        assert!(watch.observe(&available(MEMORY, 150), now).due.is_empty());
        assert_eq!(watch.observe(&available(MEMORY, 99), now).due.len(), 1);
        assert_eq!(watch.observe(&available(MEMORY, 199), now).due.len(), 1);
        assert!(watch.observe(&available(MEMORY, 200), now).due.is_empty());
        assert!(watch.observe(&available(MEMORY, 150), now).due.is_empty());
    }

    #[test]
    fn memory_comes_first_and_hard_before_soft() {
        let soft = Threshold { soft_grace: Some(Duration::ZERO), ..threshold(MEMORY, 200) };
        let all = vec![threshold(Signal::NodeFsAvailable, 100), soft, threshold(MEMORY, 100)];
        let mut watch = Watch::new(all, Duration::ZERO);
        let mut observed = available(MEMORY, 1);
        observed.extend(available(Signal::NodeFsAvailable, 1));
        let due = watch.observe(&observed, Instant::now()).due;
        let order: Vec<_> = due.iter().map(|t| (t.signal, t.soft_grace.is_some())).collect();
        assert_eq!(order, [(MEMORY, false), (MEMORY, true), (Signal::NodeFsAvailable, false)]);
    }
}
