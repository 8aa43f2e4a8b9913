//! Keeps history bounded: decides what the leader compacts away, and takes it out of memory in small steps.
//!
//! Two policies, etcd's: by period (what is older than it goes) and by revision (the newest so many stay).
//! Every member looks on, so that a new leader knows the past; only the leader proposes. A compaction itself
//! is O(1); what it leaves behind is trimmed beside the writes, a step at a time, each a short hold of the
//! state's lock.

use std::collections::VecDeque;
use std::time::Duration;

use state_machine::Command;

use crate::error::Error;
use crate::store::Store;

/// etcd looks every tenth of the period, or of an hour if that is shorter.
const LOOKS_PER_PERIOD: u32 = 10;
const PERIOD_BETWEEN_MAX: Duration = Duration::from_secs(3600);
/// How often the policy by revision looks, as etcd.
const REVISION_LOOK_PAUSE: Duration = Duration::from_secs(300);

/// Changes trimmed under one hold of the lock: about 0.1 ms.
const TRIM_STEP_EVENTS: usize = 512;
/// Between two steps, so that writes come first.
const TRIM_STEP_PAUSE: Duration = Duration::from_millis(1);
/// Between two looks while there is nothing to trim, or a checkpoint must be written first.
const TRIM_IDLE_PAUSE: Duration = Duration::from_millis(100);

/// What is compacted away by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// Nothing.
    Off,
    /// What is older than this.
    Period(Duration),
    /// All but the newest so many revisions.
    Revisions(u64),
}

impl Compaction {
    fn look_pause(self) -> Option<Duration> {
        match self {
            Self::Period(period) if !period.is_zero() => {
                Some(period.min(PERIOD_BETWEEN_MAX) / LOOKS_PER_PERIOD)
            }
            Self::Revisions(kept) if kept > 0 => Some(REVISION_LOOK_PAUSE),
            _ => None,
        }
    }
}

/// Decides, look by look. Knows no clock.
#[derive(Debug)]
struct Policy {
    compaction: Compaction,
    /// The revision at each of the last looks; one more than fit into the period.
    seen: VecDeque<u64>,
    seen_max: usize,
    /// Looks until the next compaction may be.
    rest: u32,
}

impl Policy {
    fn new(compaction: Compaction) -> Self {
        let looks = match (compaction, compaction.look_pause()) {
            (Compaction::Period(period), Some(pause)) => {
                period.as_nanos().div_ceil(pause.as_nanos().max(1)).max(1)
            }
            _ => 0,
        };
        let seen_max = usize::try_from(looks).unwrap_or(usize::MAX).saturating_add(1);
        Self { compaction, seen: VecDeque::new(), seen_max, rest: 0 }
    }

    /// One look at the store; gives the revision to compact at.
    fn look(&mut self, revision: u64) -> Option<u64> {
        match self.compaction {
            Compaction::Off => None,
            Compaction::Revisions(kept) => revision.checked_sub(kept).filter(|revision| *revision > 0),
            Compaction::Period(_) => {
                self.seen.push_back(revision);
                self.rest = self.rest.saturating_sub(1);
                if self.seen.len() < self.seen_max {
                    return None;
                }
                let due = self.seen.pop_front().filter(|_| self.rest == 0)?;
                self.rest = LOOKS_PER_PERIOD;
                Some(due)
            }
        }
    }
}

/// Proposes compactions while this member leads, until the store stops.
pub(crate) async fn run(store: Store) {
    let compaction = store.config().compaction;
    let Some(pause) = compaction.look_pause() else { return };
    let mut policy = Policy::new(compaction);
    loop {
        let due = policy.look(store.revision());
        if let Some(revision) = due
            && store.leadership().is_self
            && revision > store.compact_revision()
            && let Err(error) = store.propose(&Command::Compact { revision }).await
        {
            tracing::warn!(%error, revision, "no compaction this time; trying again with the next");
        }
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Takes compacted versions out of memory, until the store stops.
pub(crate) async fn trim(store: Store) {
    loop {
        let pause = match trim_step(&store) {
            TrimStep::More => TRIM_STEP_PAUSE,
            TrimStep::Held | TrimStep::Done => TRIM_IDLE_PAUSE,
        };
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum TrimStep {
    /// There is more to do at once.
    More,
    /// There is more, but a checkpoint or a snapshot must be written first.
    Held,
    /// Nothing compacted is left in memory.
    Done,
}

fn trim_step(store: &Store) -> TrimStep {
    if store.read_state(|machine| machine.is_trimmed()) {
        return TrimStep::Done;
    }
    let mut state = store.shared().write();
    if state.machine.trim(TRIM_STEP_EVENTS) {
        return TrimStep::More;
    }
    if state.machine.is_trimmed() { TrimStep::Done } else { TrimStep::Held }
}

impl Store {
    /// Returns once this member has taken everything out of memory that the compaction at `revision` made
    /// unreachable: what etcd calls a physical compaction. Writes the checkpoint that may be in the way.
    ///
    /// # Errors
    /// When the store stops.
    pub async fn wait_trimmed(&self, revision: u64) -> Result<(), Error> {
        let mut asked_at = None;
        loop {
            let trimmed = self.read_state(|machine| machine.trimmed_revision());
            if trimmed >= revision {
                return Ok(());
            }
            // Once for each stretch that trimming got on: it waits for what a checkpoint does not hold yet.
            if asked_at.replace(trimmed) != Some(trimmed) {
                self.shared().checkpoint_soon();
            }
            tokio::select! {
                () = self.stopping() => {
                    return Err(Error::Stopped { reason: "it is shutting down".into() });
                }
                () = tokio::time::sleep(TRIM_IDLE_PAUSE / 4) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_revision_the_newest_stay() {
        let mut policy = Policy::new(Compaction::Revisions(100));
        assert_eq!(policy.look(90), None);
        assert_eq!(policy.look(100), None);
        assert_eq!(policy.look(250), Some(150));
    }

    #[test]
    fn by_period_what_was_there_a_period_ago_goes_once_a_period() {
        let mut policy = Policy::new(Compaction::Period(Duration::from_secs(600)));
        // A look a minute; at look n the revision is 100 n.
        let due: Vec<_> = (0..=31).filter_map(|n| policy.look(100 * n).map(|due| (n, due))).collect();
        assert_eq!(due, [(10, 0), (20, 1000), (30, 2000)]);
    }

    #[test]
    fn a_long_period_is_compacted_every_hour() {
        let day = Duration::from_secs(24 * 3600);
        let mut policy = Policy::new(Compaction::Period(day));
        assert_eq!(Compaction::Period(day).look_pause(), Some(Duration::from_secs(360)));
        let due: Vec<_> = (0..=261).filter_map(|n| policy.look(n).map(|due| (n, due))).collect();
        assert_eq!(due, [(240, 0), (250, 10), (260, 20)]);
    }

    #[test]
    fn no_policy_never_looks() {
        for off in [Compaction::Off, Compaction::Period(Duration::ZERO), Compaction::Revisions(0)] {
            assert_eq!(off.look_pause(), None);
        }
    }
}
