//! The waits between tries: none before the first retry, then doubling up to a cap, forgotten after it went
//! well for long enough. Pure: times are passed in.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::BackoffConfig;

/// How often something failed lately, as the wait that follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    /// The wait after the next failure, in milliseconds; 0: none yet.
    delay_ms: u64,
    updated_at: Option<Timestamp>,
}

impl Backoff {
    /// Until when to wait after a failure at `failed_at`; `None`: try at once.
    pub(crate) fn wait_until(&self, failed_at: Timestamp, config: &BackoffConfig) -> Option<Timestamp> {
        if self.delay_ms == 0 || self.expired(failed_at, config) {
            return None;
        }
        failed_at.checked_add(SignedDuration::from_millis(self.delay_ms as i64)).ok()
    }

    /// When the wait since the last try is over; `None` before the first.
    pub(crate) fn over_at(&self) -> Option<Timestamp> {
        self.updated_at?.checked_add(SignedDuration::from_millis(self.delay_ms as i64)).ok()
    }

    /// The wait that stands now.
    pub(crate) fn delay(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.delay_ms)
    }

    /// A try is made at `now`: the wait after its failure grows.
    pub(crate) fn advance(&mut self, now: Timestamp, config: &BackoffConfig) {
        let initial = config.initial.as_millis() as u64;
        let max = config.max.as_millis() as u64;
        self.delay_ms = if self.delay_ms == 0 || self.expired(now, config) {
            initial.min(max)
        } else {
            self.delay_ms.saturating_mul(2).min(max)
        };
        self.updated_at = Some(now);
    }

    fn expired(&self, at: Timestamp, config: &BackoffConfig) -> bool {
        self.updated_at.is_some_and(|updated| {
            at.duration_since(updated).as_millis() > config.reset_after.as_millis() as i128
        })
    }
}

/// A wait in the words of Go's durations, as Kubernetes prints it: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(duration: std::time::Duration) -> String {
    let total = duration.as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    if total == 0 {
        return format!("{}ms", duration.as_millis());
    }
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    /// KIA-RST-005: 0, 10, 20, 40, 80, 160, 300, 300 seconds.
    #[test]
    fn doubles_up_to_five_minutes() {
        let config = BackoffConfig::default();
        let mut backoff = Backoff::default();
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let until = backoff.wait_until(now, &config).unwrap_or(now);
            waits.push(until.duration_since(now).as_secs());
            now = until;
            backoff.advance(now, &config);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    /// KIA-RST-006: ten minutes of running and the next restart is immediate.
    #[test]
    fn forgets_after_ten_minutes() {
        let config = BackoffConfig::default();
        let mut backoff = Backoff::default();
        backoff.advance(at(0), &config);
        backoff.advance(at(1), &config);
        assert!(backoff.wait_until(at(601), &config).is_some());
        assert_eq!(backoff.wait_until(at(602), &config), None);
        backoff.advance(at(602), &config);
        assert_eq!(backoff.delay().as_secs(), 10);
    }

    #[test]
    fn prints_as_go_does() {
        let text = |s| go_duration(std::time::Duration::from_secs(s));
        assert_eq!([text(10), text(80), text(300), text(3600)], ["10s", "1m20s", "5m0s", "1h0m0s"]);
    }
}
