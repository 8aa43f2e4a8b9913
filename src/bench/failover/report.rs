//! What was found, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::bench::histogram::Histogram;
use crate::bench::report::duration;
use crate::table::Table;

/// From each kill to the next write that was acknowledged, and to the next pod that was bound; in seconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(super) write_seconds: Vec<f64>,
    pub(super) bound_seconds: Vec<f64>,
}

impl Report {
    pub(super) fn note(&mut self, write: Duration, bound: Duration) {
        self.write_seconds.push(write.as_secs_f64());
        self.bound_seconds.push(bound.as_secs_f64());
    }

    /// What both are called, and their seconds.
    pub(super) fn series(&self) -> [(&'static str, &[f64]); 2] {
        [("next acknowledged write", &self.write_seconds), ("next bound pod", &self.bound_seconds)]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["LEADER KILLED, UNTIL", "KILLS", "P50", "P90", "P99", "MAX"]);
        for (name, seconds) in self.series() {
            let mut all = Histogram::default();
            for seconds in seconds {
                all.record(Duration::from_secs_f64(*seconds));
            }
            let at = |share| duration(all.quantile(share).as_secs_f64());
            let count = all.count().to_string();
            table.row(vec![name.to_owned(), count, at(0.5), at(0.9), at(0.99), at(1.0)]);
        }
        write!(f, "{table}")
    }
}
