//! Counts values in buckets that widen with the value, in 2 KiB and without tables.
//!
//! Takes the place of the crate of the same name under the consensus library, which keeps lookup tables of
//! 24 MiB in every process for statistics that nobody here asks for. It has the part of that interface which
//! the library uses, and answers it truthfully: percentiles are exact below 8 and the lower bound of a
//! quarter of a power of two above.

use std::fmt;
use std::marker::PhantomData;

/// Each power of two is cut into so many buckets.
const BUCKETS_PER_POWER: usize = 4;
/// Enough for every `u64`.
const BUCKETS: usize = 63 * BUCKETS_PER_POWER;

/// How often values of each size occurred. `T` is for compatibility and means nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    samples: u64,
    meaning: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.percentile_stats(), f)
    }
}

impl<T> Histogram<T> {
    /// Without any value.
    pub fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), samples: 0, meaning: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        self.counts[bucket(value)] += n;
        self.samples += n;
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.samples,
            p0_1: self.per_mille(1),
            p1: self.per_mille(10),
            p5: self.per_mille(50),
            p10: self.per_mille(100),
            p50: self.per_mille(500),
            p90: self.per_mille(900),
            p99: self.per_mille(990),
            p99_9: self.per_mille(999),
        }
    }

    /// The lower bound of the bucket below which `part` of a thousand values lie; 0 without values.
    fn per_mille(&self, part: u64) -> u64 {
        let wanted = (u128::from(self.samples) * u128::from(part)).div_ceil(1000);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= wanted {
                return lower_bound(at);
            }
        }
        0
    }
}

/// The bucket that a value falls into.
fn bucket(value: u64) -> usize {
    if value < BUCKETS_PER_POWER as u64 {
        return value as usize;
    }
    let power = 63 - value.leading_zeros() as usize;
    let quarter = (value >> (power - 2)) as usize % BUCKETS_PER_POWER;
    (power - 1) * BUCKETS_PER_POWER + quarter
}

/// The smallest value of a bucket.
fn lower_bound(bucket: usize) -> u64 {
    if bucket < BUCKETS_PER_POWER {
        return bucket as u64;
    }
    let (power, quarter) = (bucket / BUCKETS_PER_POWER + 1, bucket % BUCKETS_PER_POWER);
    ((BUCKETS_PER_POWER + quarter) as u64) << (power - 2)
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// One in a thousand lies below.
    pub p0_1: u64,
    /// One in a hundred lies below.
    pub p1: u64,
    /// One in twenty lies below.
    pub p5: u64,
    /// One in ten lies below.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// Nine in ten lie below.
    pub p90: u64,
    /// 99 in a hundred lie below.
    pub p99: u64,
    /// 999 in a thousand lie below.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(
            f,
            "[samples: {samples}, P0.1: {p0_1}, P1: {p1}, P5: {p5}, P10: {p10}, P50: {p50}, P90: {p90}, \
             P99: {p99}, P99.9: {p99_9}]"
        )
    }
}

/// Histograms below each other, as text.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    rows: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// Without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one under a name.
    #[must_use]
    pub fn add<T>(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.rows.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.rows {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_below_the_next() {
        let powers = (0..64).flat_map(|power| {
            let value = 1_u64 << power;
            [value - 1, value, value + 1, value + value / 2]
        });
        for value in powers.chain([0, 5, 6, 7, u64::MAX]) {
            let at = bucket(value);
            assert!(lower_bound(at) <= value, "{value}");
            assert!(at + 1 == BUCKETS || value < lower_bound(at + 1), "{value}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        histogram.record_n(2, 90);
        histogram.record_n(1000, 10);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p90), (100, 2, 2));
        assert_eq!(stats.p99, 896, "the lower bound of 896..1024");
    }
}
