//! One run of `bench scheduler`.

use anyhow::ensure;

use super::args::BenchSchedulerArgs;
use super::measure::measure;
use super::plot;
use super::report::Report;
use super::workload::{WORKLOADS, Workload};
use crate::bench::report::tell;
use crate::signals::Signals;
use crate::up::progress::line;

/// Measures and reports. On a signal everything is ended and removed, and that is an error.
pub(crate) async fn run(args: &BenchSchedulerArgs) -> anyhow::Result<()> {
    ensure!(args.nodes.iter().all(|nodes| *nodes > 0), "--nodes: at least 1");
    let chosen = chosen(&args.work)?;
    let mut signals = Signals::listen()?;
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = all(args, &chosen, &mut report) => measured,
        name = signals.next() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    tell(&report, args.json.as_deref())?;
    if let Some(path) = &args.svg {
        plot::write(&report, path)?;
    }
    measured
}

async fn all(
    args: &BenchSchedulerArgs,
    chosen: &[&'static Workload],
    report: &mut Report,
) -> anyhow::Result<()> {
    for nodes in &args.nodes {
        for workload in chosen {
            line(format_args!("  {} on {nodes} nodes", workload.name));
            report.rows.push(measure(args, workload, *nodes).await?);
        }
    }
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Workload>> {
    for name in names {
        let known = WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>();
        ensure!(
            known.iter().any(|known| known.starts_with(name.as_str())),
            "--work: there is no workload {name:?}; there are {}",
            known.join(", ")
        );
    }
    let is_chosen = |workload: &&Workload| {
        names.is_empty() || names.iter().any(|name| workload.name.starts_with(name.as_str()))
    };
    Ok(WORKLOADS.iter().filter(is_chosen).collect())
}
