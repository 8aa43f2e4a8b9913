//! Latencies in buckets that are 1/64 of their power of two wide: exact to 1.6 %, 4,096 counters for all of `u64`.

use std::time::Duration;

/// Buckets per power of two, as an exponent.
const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

/// How often which latency was seen.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u32>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// What `share` (0 to 1) of them do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Duration::from_nanos(upper_end(index).min(self.max));
            }
        }
        self.max()
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUB {
        return nanos as usize;
    }
    let shift = 63 - nanos.leading_zeros() - SUB_BITS;
    ((u64::from(shift) << SUB_BITS) + (nanos >> shift)) as usize
}

/// The largest latency that falls into the bucket.
fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * SUB {
        return index;
    }
    let shift = (index >> SUB_BITS) - 1;
    let top = (index & (SUB - 1)) + SUB;
    ((top + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for index in 1..BUCKETS {
            let first = upper_end(index - 1) + 1;
            assert_eq!((bucket(first), bucket(upper_end(index))), (index, index));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_exact_to_a_bucket() {
        let mut all = Histogram::default();
        for part in 0..4_u64 {
            let mut histogram = Histogram::default();
            for i in (0..100_000_u64).filter(|i| i % 4 == part) {
                histogram.record(Duration::from_micros(i + 1));
            }
            all.merge(&histogram);
        }
        assert_eq!(all.count(), 100_000);
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let found = all.quantile(share).as_secs_f64() * 1e6;
            let exact = share * 100_000.0;
            assert!((found / exact - 1.0).abs() < 0.02, "{share}: {found} for {exact}");
        }
        assert_eq!(all.max(), Duration::from_millis(100));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
