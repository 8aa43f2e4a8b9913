//! One run of `bench api`.

use anyhow::ensure;

use super::args::{BenchApiArgs, Work};
use super::report::{Report, Row};
use super::site::Site;
use super::{load, watch};
use crate::bench::report::tell;
use crate::signals::Signals;
use crate::up::progress::line;

/// In which order; what is made first is there for what follows.
const WORKS: [Work; 6] = [Work::Create, Work::Get, Work::GetLocal, Work::Patch, Work::List, Work::Watch];

/// Measures and reports. On a signal everything is ended and removed, and that is an error.
pub(crate) async fn run(args: &BenchApiArgs) -> anyhow::Result<()> {
    ensure!(
        args.clients > 0 && args.seconds > 0 && args.objects > 0,
        "--clients, --seconds, --objects: at least 1"
    );
    let mut signals = Signals::listen()?;
    let mut report = Report::default();
    let site = tokio::select! {
        site = Site::open(args) => site?,
        name = signals.next() => anyhow::bail!("stopped by {name}"),
    };
    let measured = tokio::select! {
        measured = works(&site, args, &mut report) => measured,
        name = signals.next() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    report.resident_bytes = site.resident_bytes();
    let cleared = site.clear().await;
    tell(&report, args.json.as_deref())?;
    measured.and(cleared)
}

async fn works(site: &Site, args: &BenchApiArgs, report: &mut Report) -> anyhow::Result<()> {
    line(format_args!("  making {} objects of {} bytes", args.objects, args.bytes));
    load::fill(site, args).await?;
    for work in WORKS.into_iter().filter(|work| args.work.is_empty() || args.work.contains(work)) {
        line(format_args!("  {}", work.name()));
        let before = site.usage();
        let measured = match work {
            Work::Watch => watch::measure(site, args).await?,
            _ => load::measure(site, args, work).await?,
        };
        let cpu = site.usage().zip(before).map(|(after, before)| (after - before).cpu_seconds);
        let clients = match work {
            Work::List => 1,
            Work::Watch => args.watchers,
            _ => args.clients,
        };
        report.rows.push(Row::of((work, clients, args.objects), &measured, cpu));
    }
    Ok(())
}
