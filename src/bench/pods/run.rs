//! One run of `bench pods`.

use std::path::Path;

use anyhow::{Context as _, ensure};
use tokio_util::sync::CancellationToken;

use super::args::{BenchPodsArgs, Part};
use super::report::Report;
use super::{containers, cri, lives};
use crate::bench::report::tell;
use crate::signals::Signals;
use crate::up::preflight;

/// Measures and reports. On a signal everything is ended and removed, and that is an error.
pub(crate) async fn run(args: &BenchPodsArgs) -> anyhow::Result<()> {
    if let Err(problem) = preflight::check_root() {
        anyhow::bail!("{problem}");
    }
    ensure!(args.starts > 0 && args.singles > 0 && args.pods > 0, "--starts, --singles, --pods: at least 1");
    let mut signals = Signals::listen()?;
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = measure(args, &mut report) => measured,
        name = signals.next() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    tell(&report, args.json.as_deref())?;
    measured
}

async fn measure(args: &BenchPodsArgs, report: &mut Report) -> anyhow::Result<()> {
    let temporary = std::env::temp_dir();
    let parent: &Path = args.dir.as_deref().unwrap_or(&temporary);
    let has = |part| args.part.is_empty() || args.part.contains(&part);
    if has(Part::Containers) {
        let stop = CancellationToken::new();
        // Dropped with this future, on a signal.
        let _stop = stop.clone().drop_guard();
        let (args, parent) = (args.clone(), parent.to_owned());
        let measuring = tokio::task::spawn_blocking(move || containers::measure(&args, &parent, &stop));
        report.starts = measuring.await.context("the measuring thread ended early")??;
    }
    if has(Part::Cri) {
        report.sandboxes = cri::measure(args, parent).await?;
    }
    if has(Part::Pods) {
        lives::measure(args, parent, report).await?;
    }
    Ok(())
}
