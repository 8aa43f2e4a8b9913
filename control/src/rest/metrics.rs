//! Counters of the REST API in the Prometheus text format.
//!
//! Label values come from fixed sets (verbs, kinds, codes), so the number of series is bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use exposition::{Exposition, Histogram};

/// Upper bounds of the duration histogram, in seconds.
static BUCKETS_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

/// What the REST API counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<Series, u64>>,
    durations: Mutex<BTreeMap<&'static str, Histogram>>,
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
        durations.entry(verb).or_insert_with(|| Histogram::new(&BUCKETS_S)).observe(time);
    }

    /// Counts a request whose handling panicked.
    pub(super) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the numbers to the text.
    pub(super) fn expose(&self, out: &mut Exposition, in_flight: usize) {
        let name = "apiserver_request_total";
        out.head(name, "Requests answered.", "counter");
        for (series, count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Series { verb, resource, code } = series;
            out.sample(name, &format!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\""), count);
        }
        let name = "apiserver_request_duration_seconds";
        out.head(name, "Time to answer; for streams, to the first byte.", "histogram");
        for (verb, times) in self.durations.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            out.histogram(name, &format!("verb=\"{verb}\""), times);
        }
        out.gauge("apiserver_current_inflight_requests", "Requests being handled.", in_flight);
        let open = self.watches.load(Ordering::Relaxed);
        out.gauge("apiserver_longrunning_requests", "Watches and log streams open.", open);
        let panics = self.panics.load(Ordering::Relaxed);
        out.counter("barque_rest_panics_total", "Requests whose handling panicked.", panics);
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
