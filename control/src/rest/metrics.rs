//! Counters of the REST API in the Prometheus text format.
//!
//! Label values come from fixed sets (verbs, kinds, codes), so the number of series is bounded.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [u64; BUCKETS_S.len()],
    count: u64,
    sum_s: f64,
}

/// What the REST API counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<Series, u64>>,
    durations: Mutex<BTreeMap<&'static str, Durations>>,
    watches: AtomicI64,
    panics: AtomicU64,
}

impl Metrics {
    /// Counts an answered request. The duration of a stream is that to its first byte.
    pub(super) fn answered(&self, verb: &'static str, resource: &'static str, code: u16, time: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(Series { verb, resource, code }).or_default() += 1;
        drop(requests);
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let durations = durations.entry(verb).or_default();
        let seconds = time.as_secs_f64();
        for (bucket, bound) in durations.buckets.iter_mut().zip(BUCKETS_S) {
            *bucket += u64::from(seconds <= bound);
        }
        durations.count += 1;
        durations.sum_s += seconds;
    }

    /// Counts a request whose handling panicked.
    pub(super) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// The text that `/metrics` answers.
    pub(super) fn render(&self, in_flight: usize) -> String {
        let mut out = String::with_capacity(4096);
        family(&mut out, "apiserver_request_total", "counter", "Requests answered.");
        for (series, count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Series { verb, resource, code } = series;
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {count}"
            );
        }
        let name = "apiserver_request_duration_seconds";
        family(&mut out, name, "histogram", "Time to answer; for streams, to the first byte.");
        for (verb, durations) in self.durations.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (bound, count) in BUCKETS_S.iter().zip(durations.buckets) {
                let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {}", durations.count);
            let _ = writeln!(out, "{name}_sum{{verb=\"{verb}\"}} {}", durations.sum_s);
            let _ = writeln!(out, "{name}_count{{verb=\"{verb}\"}} {}", durations.count);
        }
        family(&mut out, "apiserver_current_inflight_requests", "gauge", "Requests being handled.");
        let _ = writeln!(out, "apiserver_current_inflight_requests {in_flight}");
        family(&mut out, "apiserver_longrunning_requests", "gauge", "Watches and log streams open.");
        let _ = writeln!(out, "apiserver_longrunning_requests {}", self.watches.load(Ordering::Relaxed));
        family(&mut out, "barque_rest_panics_total", "counter", "Requests whose handling panicked.");
        let _ = writeln!(out, "barque_rest_panics_total {}", self.panics.load(Ordering::Relaxed));
        out
    }

    /// Counts an open stream until the guard is dropped.
    pub(super) fn stream(self: std::sync::Arc<Self>) -> StreamGuard {
        self.watches.fetch_add(1, Ordering::Relaxed);
        StreamGuard { metrics: self }
    }
}

/// Stands for one open stream.
#[derive(Debug)]
pub(super) struct StreamGuard {
    metrics: std::sync::Arc<Metrics>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.metrics.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
