//! What was measured, beside kube-scheduler's floors: a table for people, JSON for programs.

use std::fmt;

use serde::Serialize;

use crate::table::Table;

/// Everything of one run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

/// One workload. Rates are pods per second.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    /// From the first request to the last binding seen.
    pub(crate) seconds: f64,
    pub(crate) average: f64,
    /// Of the samples of one second.
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    /// How fast the pods were made: nothing is bound faster.
    pub(crate) created_per_second: f64,
    /// Below this, kube-scheduler's own tests fail.
    pub(crate) floor_at_5000_nodes: Option<u32>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["WORKLOAD", "NODES", "PODS", "PODS/S", "P50", "P90", "P99", "CREATED/S", "FLOOR"];
        let mut table = Table::new(&head);
        for row in &self.rows {
            let rate = |rate: f64| format!("{rate:.0}");
            table.row(vec![
                row.workload.to_owned(),
                row.nodes.to_string(),
                row.pods.to_string(),
                rate(row.average),
                rate(row.p50),
                rate(row.p90),
                rate(row.p99),
                rate(row.created_per_second),
                row.floor_at_5000_nodes.map_or("-".to_owned(), |floor| floor.to_string()),
            ]);
        }
        write!(f, "{table}")?;
        f.write_str(
            "FLOOR: pods/s at 5,000 nodes below which kube-scheduler's own tests fail (on other machines).\n",
        )
    }
}
