//! Counters of the log, for metrics. Written by the writer and helper threads, read by anyone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Each power of two of microseconds is divided into so many buckets: 12 % resolution.
const STEPS: usize = 8;
const STEPS_LOG2: u32 = 3;
/// Up to 2^27 µs, more than two minutes.
const BUCKETS: usize = STEPS * 26;

/// A picture of the log's counters since it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Entries made durable.
    pub entries: u64,
    /// Bytes handed to the operating system, including headers and padding.
    pub written_bytes: u64,
    /// Bytes accepted and not yet durable.
    pub queued_bytes: u64,
    /// How long device flushes took; their count is the number of group commits.
    pub sync: Latency,
    /// Segments that hold log, including the one being written.
    pub segments: u64,
    /// Recycled files waiting for reuse.
    pub spare_segments: u64,
    /// Bytes left in the segment being written.
    pub segment_left_bytes: u64,
    /// The next segment cannot be made because the disk is full. What is left of the current one still takes
    /// entries: time to refuse proposals, before the log has to.
    pub no_space: bool,
    /// The log failed for good.
    pub failed: bool,
}

/// How much the log is sure to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of entries, their records included; without bound while the next segment stands ready.
    pub bytes: u64,
    /// There will not be more until the disk has space again.
    pub disk_full: bool,
}

/// A histogram of durations. Two pictures can be subtracted to see what happened in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
    /// The longest one since the log was opened.
    pub max: Duration,
    /// The last one.
    pub last: Duration,
    /// All of them together.
    pub total: Duration,
}

impl Latency {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The duration that the given share of all (0.5: the median, 0.99: p99) did not exceed, within 12 %.
    /// Zero if there were none.
    pub fn quantile(&self, share: f64) -> Duration {
        let count = self.count();
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return bucket_end(at).min(self.max);
            }
        }
        Duration::ZERO
    }

    /// How many did not exceed the bound, within 12 %.
    pub fn count_within(&self, bound: Duration) -> u64 {
        let ends_within = |at: &usize| bucket_end(*at) <= bound;
        (0..self.buckets.len()).take_while(ends_within).map(|at| self.buckets[at]).sum()
    }

    /// What was counted after `earlier` was taken. `max` stays the one of the whole time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&earlier.buckets).map(|(now, then)| now - then).collect();
        Self { buckets, max: self.max, last: self.last, total: self.total.saturating_sub(earlier.total) }
    }
}

/// The counters behind [`Stats`].
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) entries: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) queued_bytes: AtomicU64,
    pub(super) segments: AtomicU64,
    pub(super) spare_segments: AtomicU64,
    pub(super) segment_left_bytes: AtomicU64,
    /// What entries may still use of the segment being written.
    pub(super) room_bytes: AtomicU64,
    /// The next segment is there.
    pub(super) next_ready: AtomicBool,
    pub(super) no_space: AtomicBool,
    pub(super) failed: AtomicBool,
    sync_buckets: [AtomicU64; BUCKETS],
    sync_max_us: AtomicU64,
    sync_last_us: AtomicU64,
    sync_total_us: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            entries: AtomicU64::default(),
            written_bytes: AtomicU64::default(),
            queued_bytes: AtomicU64::default(),
            segments: AtomicU64::default(),
            spare_segments: AtomicU64::default(),
            segment_left_bytes: AtomicU64::default(),
            room_bytes: AtomicU64::default(),
            next_ready: AtomicBool::default(),
            no_space: AtomicBool::default(),
            failed: AtomicBool::default(),
            sync_buckets: std::array::from_fn(|_| AtomicU64::default()),
            sync_max_us: AtomicU64::default(),
            sync_last_us: AtomicU64::default(),
            sync_total_us: AtomicU64::default(),
        }
    }
}

impl Counters {
    pub(super) fn record_sync(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sync_buckets[bucket(us)].fetch_add(1, Relaxed);
        self.sync_max_us.fetch_max(us, Relaxed);
        self.sync_last_us.store(us, Relaxed);
        self.sync_total_us.fetch_add(us, Relaxed);
    }

    pub(super) fn room(&self) -> Room {
        // A log that failed says so itself.
        let bounded = !self.next_ready.load(Relaxed) && !self.failed.load(Relaxed);
        let left = || self.room_bytes.load(Relaxed).saturating_sub(self.queued_bytes.load(Relaxed));
        Room { bytes: if bounded { left() } else { u64::MAX }, disk_full: self.no_space.load(Relaxed) }
    }

    pub(super) fn snapshot(&self) -> Stats {
        Stats {
            entries: self.entries.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            queued_bytes: self.queued_bytes.load(Relaxed),
            sync: Latency {
                buckets: self.sync_buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
                max: Duration::from_micros(self.sync_max_us.load(Relaxed)),
                last: Duration::from_micros(self.sync_last_us.load(Relaxed)),
                total: Duration::from_micros(self.sync_total_us.load(Relaxed)),
            },
            segments: self.segments.load(Relaxed),
            spare_segments: self.spare_segments.load(Relaxed),
            segment_left_bytes: self.segment_left_bytes.load(Relaxed),
            no_space: self.no_space.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

fn bucket(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let power = us.ilog2() - STEPS_LOG2;
    let step = (us >> power) as usize - STEPS;
    ((power as usize + 1) * STEPS + step).min(BUCKETS - 1)
}

fn bucket_end(at: usize) -> Duration {
    if at < STEPS {
        return Duration::from_micros(at as u64);
    }
    let power = at / STEPS - 1;
    let end = ((STEPS + at % STEPS + 1) as u64) << power;
    Duration::from_micros(end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_fine() {
        let mut last = 0;
        for us in 0..200_000_u64 {
            let at = bucket(us);
            assert!(at == last || at == last + 1, "{us} µs jumps from bucket {last} to {at}");
            let end = bucket_end(at).as_micros() as u64;
            assert!(end >= us && (end - us) * 8 <= us.max(8), "{us} µs reads back as {end}");
            last = at;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles() {
        let counters = Counters::default();
        assert_eq!(counters.snapshot().sync.quantile(0.5), Duration::ZERO);
        for _ in 0..98 {
            counters.record_sync(Duration::from_micros(90));
        }
        let before = counters.snapshot().sync;
        counters.record_sync(Duration::from_millis(5));
        counters.record_sync(Duration::from_millis(7));
        let sync = counters.snapshot().sync;
        assert!((90..=100).contains(&sync.quantile(0.5).as_micros()));
        assert!(sync.quantile(0.99) >= Duration::from_millis(5));
        assert_eq!((sync.max, sync.count()), (Duration::from_millis(7), 100));
        assert_eq!(sync.total, Duration::from_micros(98 * 90 + 12_000));
        assert_eq!(sync.count_within(Duration::from_millis(1)), 98);
        assert_eq!(sync.count_within(Duration::from_secs(1)), 100);
        assert!(sync.since(&before).quantile(0.01) >= Duration::from_millis(5));
    }
}
