//! What was measured: a table for people, JSON for programs.

use std::fmt;

use serde::Serialize;

use super::args::Work;
use super::load::Measured;
use crate::table::Table;

/// Everything of one run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Of the largest replica, when everything was made.
    pub(crate) resident_bytes: Option<u64>,
}

/// One work.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) clients: usize,
    pub(crate) objects: usize,
    /// Of watch: events delivered per second.
    pub(crate) operations_per_second: f64,
    pub(crate) p50_seconds: f64,
    pub(crate) p90_seconds: f64,
    pub(crate) p99_seconds: f64,
    pub(crate) max_seconds: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// All replicas together; absent for somebody's cluster.
    pub(crate) server_cpu_seconds_per_operation: Option<f64>,
}

impl Row {
    pub(crate) fn of(
        (work, clients, objects): (Work, usize, usize),
        measured: &Measured,
        cpu_seconds: Option<f64>,
    ) -> Self {
        let count = measured.latencies.count().max(1) as f64;
        let quantile = |share| measured.latencies.quantile(share).as_secs_f64();
        Self {
            work,
            clients,
            objects,
            operations_per_second: measured.latencies.count() as f64 / measured.window.as_secs_f64(),
            p50_seconds: quantile(0.5),
            p90_seconds: quantile(0.9),
            p99_seconds: quantile(0.99),
            max_seconds: measured.latencies.max().as_secs_f64(),
            errors: measured.errors,
            first_error: measured.first_error.clone(),
            server_cpu_seconds_per_operation: cpu_seconds.map(|seconds| seconds / count),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["WORK", "CLIENTS", "OBJECTS", "PER S", "P50", "P90", "P99", "MAX", "CPU/OP", "ERRORS"];
        let mut table = Table::new(&head);
        let time = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
        for row in &self.rows {
            table.row(vec![
                row.work.name().to_owned(),
                row.clients.to_string(),
                row.objects.to_string(),
                format!("{:.0}", row.operations_per_second),
                time(row.p50_seconds),
                time(row.p90_seconds),
                time(row.p99_seconds),
                time(row.max_seconds),
                row.server_cpu_seconds_per_operation.map_or("-".to_owned(), time),
                row.errors.to_string(),
            ]);
        }
        write!(f, "{table}")?;
        if let Some(bytes) = self.resident_bytes {
            writeln!(f, "The largest replica has {} MiB of memory.", bytes >> 20)?;
        }
        for row in self.rows.iter().filter(|row| row.errors > 0) {
            writeln!(f, "{}: {}", row.work.name(), row.first_error.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}
