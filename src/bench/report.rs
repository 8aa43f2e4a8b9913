//! What was found: medians over the turns, tables for people, plain data for programs.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::load::Measured;
use super::memory::MemoryFound;
use super::work::Work;
use crate::table::Table;

/// Prints what was found, also what was found until something went wrong, and writes it as JSON where asked.
pub(crate) fn tell(report: &(impl fmt::Display + Serialize), json: Option<&Path>) -> anyhow::Result<()> {
    std::io::stdout().write_all(report.to_string().as_bytes())?;
    let Some(path) = json else { return Ok(()) };
    let text = serde_json::to_vec_pretty(report).context("a report is plain data")?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A whole run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) cells: Vec<Cell>,
    pub(crate) memory: Vec<MemoryRow>,
    pub(crate) outages: Vec<OutageRow>,
}

/// One system, one work, one number of clients: medians over its turns.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    pub(crate) system: &'static str,
    pub(crate) work: &'static str,
    pub(crate) clients: usize,
    /// Of watch-fanout: events delivered per second.
    pub(crate) operations_per_second: f64,
    pub(crate) p50_seconds: f64,
    pub(crate) p90_seconds: f64,
    pub(crate) p99_seconds: f64,
    pub(crate) max_seconds: f64,
    /// Of all turns together.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// All members together; absent when nobody said which processes they are.
    pub(crate) server_cpu_seconds_per_operation: Option<f64>,
    /// To the disk, whoever else may have written meanwhile.
    pub(crate) written_bytes_per_operation: Option<f64>,
    pub(crate) fsyncs_per_operation: Option<f64>,
    /// The load generator's own.
    pub(crate) own_cpu_seconds_per_operation: f64,
    /// Operations per second of each turn: how much the machine moved.
    pub(crate) turns: Vec<f64>,
}

/// `--work memory` of one system.
#[derive(Debug, Serialize)]
pub(crate) struct MemoryRow {
    pub(crate) system: &'static str,
    #[serde(flatten)]
    pub(crate) found: MemoryFound,
}

/// `--work leader-kill` of one system.
#[derive(Debug, Serialize)]
pub(crate) struct OutageRow {
    pub(crate) system: &'static str,
    /// From each kill to the next acknowledged write.
    pub(crate) seconds: Vec<f64>,
}

impl Cell {
    /// Sums up the turns of one system.
    pub(crate) fn of(system: &'static str, work: Work, clients: usize, turns: &[Measured]) -> Self {
        let over = |value: &dyn Fn(&Measured) -> f64| median(turns.iter().map(value).collect());
        let count = |turn: &Measured| turn.tally.latencies.count().max(1) as f64;
        let rate = |turn: &Measured| turn.tally.latencies.count() as f64 / turn.window.as_secs_f64();
        let quantile = |share| over(&|turn| turn.tally.latencies.quantile(share).as_secs_f64());
        let servers_known = turns.iter().all(|turn| turn.observed.servers.cpu_seconds > 0.0);
        let disk_known = turns.iter().all(|turn| turn.observed.servers.written_bytes.is_some());
        let fsyncs_known = turns.iter().all(|turn| turn.observed.fsyncs_per_second.is_some());
        Self {
            system,
            work: work.name(),
            clients,
            operations_per_second: over(&rate),
            p50_seconds: quantile(0.5),
            p90_seconds: quantile(0.9),
            p99_seconds: quantile(0.99),
            max_seconds: over(&|turn| turn.tally.latencies.max().as_secs_f64()),
            errors: turns.iter().map(|turn| turn.tally.errors).sum(),
            first_error: turns.iter().find_map(|turn| turn.tally.first_error.clone()),
            server_cpu_seconds_per_operation: servers_known
                .then(|| over(&|turn| turn.observed.servers.cpu_seconds / count(turn))),
            written_bytes_per_operation: disk_known
                .then(|| over(&|turn| turn.observed.servers.written_bytes.unwrap_or(0) as f64 / count(turn))),
            fsyncs_per_operation: fsyncs_known
                .then(|| over(&|turn| turn.observed.fsyncs_per_second.unwrap_or(0.0) / rate(turn).max(1.0))),
            own_cpu_seconds_per_operation: over(&|turn| turn.observed.own_cpu_seconds / count(turn)),
            turns: turns.iter().map(rate).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.cells.is_empty() {
            write!(f, "{}", self.cell_table())?;
        }
        if !self.memory.is_empty() {
            write!(f, "\n{}", self.memory_table())?;
        }
        if !self.outages.is_empty() {
            write!(f, "\n{}", self.outage_table())?;
        }
        for cell in self.cells.iter().filter(|cell| cell.errors > 0) {
            let text = cell.first_error.as_deref().unwrap_or_default();
            writeln!(
                f,
                "{} {} {}: {} errors, first: {text}",
                cell.system, cell.work, cell.clients, cell.errors
            )?;
        }
        Ok(())
    }
}

impl Report {
    fn cell_table(&self) -> Table {
        let mut table = Table::new(&[
            "WORK",
            "CLIENTS",
            "SYSTEM",
            "PER SECOND",
            "RATIO",
            "P50",
            "P90",
            "P99",
            "MAX",
            "SERVER CPU/OP",
            "RATIO",
            "WRITTEN/OP",
            "FSYNCS/OP",
            "OWN CPU/OP",
            "ERRORS",
        ]);
        for cell in &self.cells {
            // Ratios are to the first system of the same work: how many times as fast, and what part of the cost.
            let first =
                self.cells.iter().find(|other| (other.work, other.clients) == (cell.work, cell.clients));
            let rival = first.filter(|other| other.system != cell.system);
            let speed = rival.map(|r| cell.operations_per_second / r.operations_per_second);
            let cost = rival.and_then(|r| {
                Some(cell.server_cpu_seconds_per_operation? / r.server_cpu_seconds_per_operation?)
            });
            table.row(vec![
                cell.work.to_owned(),
                cell.clients.to_string(),
                cell.system.to_owned(),
                format!("{:.0}", cell.operations_per_second),
                optional(speed, |speed| format!("{speed:.2}x")),
                duration(cell.p50_seconds),
                duration(cell.p90_seconds),
                duration(cell.p99_seconds),
                duration(cell.max_seconds),
                optional(cell.server_cpu_seconds_per_operation, duration),
                optional(cost, |cost| format!("{cost:.2}")),
                optional(cell.written_bytes_per_operation, |bytes| format!("{bytes:.0} B")),
                optional(cell.fsyncs_per_operation, |count| format!("{count:.3}")),
                duration(cell.own_cpu_seconds_per_operation),
                cell.errors.to_string(),
            ]);
        }
        table
    }

    fn memory_table(&self) -> Table {
        let mut table = Table::new(&[
            "SYSTEM",
            "KEYS",
            "LOADED IN",
            "RSS EMPTY",
            "RSS LOADED",
            "RSS RESTARTED",
            "RESTART OF ONE",
            "RESTART OF ALL",
        ]);
        for MemoryRow { system, found } in &self.memory {
            table.row(vec![
                (*system).to_owned(),
                found.keys.to_string(),
                format!("{:.1} s", found.load_seconds),
                mebibytes(&found.resident_empty_bytes),
                mebibytes(&found.resident_loaded_bytes),
                mebibytes(&found.resident_restarted_bytes),
                format!("{:.2} s", found.restart_one_seconds),
                format!("{:.2} s", found.restart_all_seconds),
            ]);
        }
        table
    }

    fn outage_table(&self) -> Table {
        let mut table = Table::new(&["SYSTEM", "LEADERS KILLED", "MIN", "MEDIAN", "P99", "MAX"]);
        for row in &self.outages {
            let mut sorted = row.seconds.clone();
            sorted.sort_by(f64::total_cmp);
            let at = |share: f64| {
                let position = (share * sorted.len() as f64).ceil().max(1.0) as usize - 1;
                optional(sorted.get(position).copied(), duration)
            };
            let count = sorted.len().to_string();
            table.row(vec![row.system.to_owned(), count, at(0.0), at(0.5), at(0.99), at(1.0)]);
        }
        table
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count => f64::midpoint(values[(count - 1) / 2], values[count / 2]),
    }
}

fn optional<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

/// Three digits with a unit.
pub(crate) fn duration(seconds: f64) -> String {
    let duration = Duration::from_secs_f64(seconds.max(0.0));
    match duration.as_nanos() {
        0..1_000_000 => format!("{:.1} us", seconds * 1e6),
        1_000_000..1_000_000_000 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

fn mebibytes(bytes: &[u64]) -> String {
    let all: Vec<String> = bytes.iter().map(|bytes| (bytes >> 20).to_string()).collect();
    format!("{} MiB", all.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_durations() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(duration(0.000_012_34), "12.3 us");
        assert_eq!(duration(0.012_34), "12.34 ms");
        assert_eq!(duration(1.2), "1.20 s");
    }

    #[test]
    fn ratios_are_to_the_first_system() {
        let cell = |system, rate, cpu| Cell {
            system,
            work: "put",
            clients: 1,
            operations_per_second: rate,
            p50_seconds: 0.001,
            p90_seconds: 0.001,
            p99_seconds: 0.001,
            max_seconds: 0.001,
            errors: 0,
            first_error: None,
            server_cpu_seconds_per_operation: Some(cpu),
            written_bytes_per_operation: None,
            fsyncs_per_operation: None,
            own_cpu_seconds_per_operation: 0.0,
            turns: vec![rate],
        };
        let cells = vec![cell("etcd", 1000.0, 0.001), cell("barque", 2500.0, 0.0002)];
        let text = Report { cells, ..Report::default() }.to_string();
        let [_, etcd, barque] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert!(!etcd.contains("x "), "{etcd}");
        assert!(barque.contains("2.50x") && barque.contains("0.20"), "{barque}");
    }
}
