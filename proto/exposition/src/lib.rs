//! The Prometheus text format, in which every process tells its numbers
//! (<https://prometheus.io/docs/instrumenting/exposition_formats>), and what each tells of itself.
//!
//! Promises that a metric's head stands once, before its samples, if callers write one metric after the other.

mod process;

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// The media type of the text.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Text under construction.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "gauge");
        self.sample(name, "", value);
    }

    /// A value that goes up only.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "counter");
        self.sample(name, "", value);
    }

    /// What stands before the samples of a metric.
    pub fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample; `labels` as in `method="Put",code="OK"`.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    /// The samples of one histogram; its head is the caller's.
    pub fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let counts = histogram.bounds_s.iter().copied().zip(histogram.counts.iter().copied());
        self.buckets(name, labels, counts, (histogram.count, histogram.sum_s));
    }

    /// The same out of numbers that are kept elsewhere: how many values are at most each bound, how many there are,
    /// and their sum.
    pub fn buckets(
        &mut self,
        name: &str,
        labels: &str,
        buckets: impl IntoIterator<Item = (f64, u64)>,
        (count, sum): (u64, f64),
    ) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        for (bound, count) in buckets {
            self.sample(&bucket, &format!("{labels}{comma}le=\"{bound}\""), count);
        }
        self.sample(&bucket, &format!("{labels}{comma}le=\"+Inf\""), count);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// How long things took, in buckets.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds_s: &'static [f64],
    /// How many took at most each bound.
    counts: Vec<u64>,
    count: u64,
    sum_s: f64,
}

impl Histogram {
    /// An empty one; `bounds_s` are upper bounds in seconds, from the smallest.
    pub fn new(bounds_s: &'static [f64]) -> Self {
        Self { bounds_s, counts: vec![0; bounds_s.len()], count: 0, sum_s: 0.0 }
    }

    /// One more took so long.
    pub fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (count, bound) in self.counts.iter_mut().zip(self.bounds_s) {
            *count += u64::from(seconds <= *bound);
        }
        self.count += 1;
        self.sum_s += seconds;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_in_the_exposition_format() {
        let mut out = Exposition::default();
        out.gauge("a", "Help.", 1);
        out.head("b", "More.", "counter");
        out.sample("b", "x=\"y\"", 2.5);
        let mut times = Histogram::new(&[0.5, 1.0]);
        for millis in [250, 750, 3500] {
            times.observe(Duration::from_millis(millis));
        }
        out.histogram("c", "x=\"y\"", &times);
        assert_eq!(
            out.finish(),
            "# HELP a Help.\n# TYPE a gauge\na 1\n# HELP b More.\n# TYPE b counter\nb{x=\"y\"} 2.5\n\
             c_bucket{x=\"y\",le=\"0.5\"} 1\nc_bucket{x=\"y\",le=\"1\"} 2\nc_bucket{x=\"y\",le=\"+Inf\"} 3\n\
             c_sum{x=\"y\"} 4.5\nc_count{x=\"y\"} 3\n"
        );
    }
}
