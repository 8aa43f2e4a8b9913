//! What was measured: tables for people, JSON for programs.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::bench::histogram::Histogram;
use crate::table::Table;

/// Everything of one run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) starts: Vec<StartRow>,
    pub(crate) sandboxes: Vec<SandboxRow>,
    pub(crate) singles: Option<PodTimes>,
    pub(crate) at_once: Option<AtOnce>,
    pub(crate) at_rest: Option<AtRest>,
}

/// One runtime's containers, in seconds.
#[derive(Debug, Serialize)]
pub(crate) struct StartRow {
    runtime: String,
    starts: u64,
    p50_seconds: f64,
    p99_seconds: f64,
    delete_p50_seconds: f64,
}

impl StartRow {
    pub(crate) fn of(runtime: &str, first: &Histogram, deleted: &Histogram) -> Self {
        Self {
            runtime: runtime.to_owned(),
            starts: first.count(),
            p50_seconds: first.quantile(0.5).as_secs_f64(),
            p99_seconds: first.quantile(0.99).as_secs_f64(),
            delete_p50_seconds: deleted.quantile(0.5).as_secs_f64(),
        }
    }
}

/// One server's sandboxes with a container, in seconds.
#[derive(Debug, Serialize)]
pub(crate) struct SandboxRow {
    server: String,
    sandboxes: u64,
    /// From the request for a sandbox to the first instruction of its container.
    p50_seconds: f64,
    p99_seconds: f64,
    /// From the request for the container to that.
    container_p50_seconds: f64,
    remove_p50_seconds: f64,
}

impl SandboxRow {
    pub(crate) fn of(server: &str, [sandbox, container, removal]: &[Histogram; 3]) -> Self {
        Self {
            server: server.to_owned(),
            sandboxes: sandbox.count(),
            p50_seconds: sandbox.quantile(0.5).as_secs_f64(),
            p99_seconds: sandbox.quantile(0.99).as_secs_f64(),
            container_p50_seconds: container.quantile(0.5).as_secs_f64(),
            remove_p50_seconds: removal.quantile(0.5).as_secs_f64(),
        }
    }
}

/// Pods one after another.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PodTimes {
    /// From the request to the watch event that says Running.
    #[serde(serialize_with = "quantiles")]
    pub(crate) created_to_running: Histogram,
    /// From the watch event that names the node to the one that says Running.
    #[serde(serialize_with = "quantiles")]
    pub(crate) bound_to_running: Histogram,
    /// From the request to the watch event that says it is gone.
    #[serde(serialize_with = "quantiles")]
    pub(crate) deletion: Histogram,
}

/// Many pods at once.
#[derive(Debug, Serialize)]
pub(crate) struct AtOnce {
    pub(crate) pods: usize,
    /// Until the last request was answered.
    pub(crate) created: Duration,
    /// From the first that was bound to the last that ran.
    pub(crate) all_running: Duration,
    #[serde(serialize_with = "quantiles")]
    pub(crate) bound_to_running: Histogram,
    /// From the request to the last that was gone.
    pub(crate) deletion: Duration,
}

/// What pods that do nothing cost.
#[derive(Debug, Serialize)]
pub(crate) struct AtRest {
    pub(crate) pods: usize,
    /// Shims and pause processes.
    pub(crate) processes: usize,
    pub(crate) companions_resident_per_pod: u64,
    pub(crate) companions_private_per_pod: u64,
    pub(crate) agent_growth_per_pod: u64,
    pub(crate) agent_resident: u64,
    /// Processor time of the agent per time.
    pub(crate) agent_cores: f64,
}

fn quantiles<S: Serializer>(histogram: &Histogram, serializer: S) -> Result<S::Ok, S::Error> {
    let quantile = |share| histogram.quantile(share).as_secs_f64();
    serde_json::json!({
        "count": histogram.count(),
        "p50Seconds": quantile(0.5),
        "p90Seconds": quantile(0.9),
        "p99Seconds": quantile(0.99),
        "maxSeconds": histogram.max().as_secs_f64(),
    })
    .serialize(serializer)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ours) = self.starts.first() {
            let mut table = Table::new(&["CONTAINER START", "N", "P50", "P99", "P50 RATIO", "DELETE P50"]);
            for row in &self.starts {
                table.row(vec![
                    row.runtime.clone(),
                    row.starts.to_string(),
                    milliseconds(row.p50_seconds),
                    milliseconds(row.p99_seconds),
                    format!("{:.2}", row.p50_seconds / ours.p50_seconds.max(f64::EPSILON)),
                    milliseconds(row.delete_p50_seconds),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        if let Some(ours) = self.sandboxes.first() {
            let titles = ["SANDBOX OF CRI", "N", "P50", "P99", "P50 RATIO", "CONTAINER P50", "REMOVE P50"];
            let mut table = Table::new(&titles);
            for row in &self.sandboxes {
                table.row(vec![
                    row.server.clone(),
                    row.sandboxes.to_string(),
                    milliseconds(row.p50_seconds),
                    milliseconds(row.p99_seconds),
                    format!("{:.2}", row.p50_seconds / ours.p50_seconds.max(f64::EPSILON)),
                    milliseconds(row.container_p50_seconds),
                    milliseconds(row.remove_p50_seconds),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        let mut table = Table::new(&["PODS", "N", "P50", "P99", "MAX"]);
        if let Some(singles) = &self.singles {
            table.row(cells("created to Running", &singles.created_to_running));
            table.row(cells("bound to Running", &singles.bound_to_running));
            table.row(cells("deleted to gone", &singles.deletion));
        }
        if let Some(many) = &self.at_once {
            table.row(cells("at once: bound to Running", &many.bound_to_running));
            let all = |what: &str, time: Duration| {
                let empty = String::new;
                vec![
                    what.to_owned(),
                    many.pods.to_string(),
                    empty(),
                    empty(),
                    milliseconds(time.as_secs_f64()),
                ]
            };
            table.row(all("at once: all created", many.created));
            table.row(all("at once: first bound to all Running", many.all_running));
            table.row(all("at once: all gone", many.deletion));
        }
        if self.singles.is_some() {
            write!(f, "{table}")?;
        }
        let Some(rest) = &self.at_rest else { return Ok(()) };
        let kib = |bytes: u64| format!("{} KiB", bytes / 1024);
        writeln!(
            f,
            "\n{} pods at rest: agent {:.2} % of a core, {}; for each pod: {} resident ({} private) in {:.1} processes \
             beside it, {} in the agent",
            rest.pods,
            rest.agent_cores * 100.0,
            kib(rest.agent_resident),
            kib(rest.companions_resident_per_pod),
            kib(rest.companions_private_per_pod),
            rest.processes as f64 / rest.pods.max(1) as f64,
            kib(rest.agent_growth_per_pod),
        )
    }
}

fn cells(what: &str, times: &Histogram) -> Vec<String> {
    let quantile = |share| milliseconds(times.quantile(share).as_secs_f64());
    let max = milliseconds(times.max().as_secs_f64());
    vec![what.to_owned(), times.count().to_string(), quantile(0.5), quantile(0.99), max]
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
}
