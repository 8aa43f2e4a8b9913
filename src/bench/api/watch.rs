//! Changes on their way to many watchers: from the moment a patch is sent to the moment each watcher has read it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::task::JoinSet;

use super::args::BenchApiArgs;
use super::load::{Measured, collection};
use super::site::Site;
use crate::bench::histogram::Histogram;

/// How long watchers may take for what was sent last.
const DRAIN: Duration = Duration::from_secs(10);
/// Marks the values of this measuring: what other works left behind does not count.
const MARK: &str = "watched-";

/// When each change was sent, by its number.
type Sent = Arc<Mutex<Vec<Instant>>>;

/// Measures.
pub(crate) async fn measure(site: &Site, args: &BenchApiArgs) -> anyhow::Result<Measured> {
    ensure!(args.changes > 0 && args.watchers > 0, "--changes, --watchers: at least 1");
    let total = usize::try_from(args.changes * args.seconds)?;
    let sent: Sent = Arc::default();
    let mut watchers = JoinSet::new();
    for number in 0..args.watchers {
        let events = site.api(number)?.watch(&collection()).await?;
        watchers.spawn(follow(events, sent.clone(), total));
    }
    let mut api = site.api(0)?;
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(args.changes)?);
    for number in 0..total {
        ticks.tick().await;
        sent.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        let path = format!("{}/old-{}", collection(), number % args.objects.max(1));
        api.patch(&path, &json!({"data": {"changed": format!("{MARK}{number}")}})).await?;
    }
    let window = begun.elapsed();
    let mut latencies = Histogram::default();
    let collect = async {
        while let Some(Ok(seen)) = watchers.join_next().await {
            latencies.merge(&seen);
        }
    };
    let _late = tokio::time::timeout(DRAIN, collect).await;
    let expected = u64::try_from(total * args.watchers)?;
    let errors = expected.saturating_sub(latencies.count());
    let first_error = (errors > 0).then(|| "events did not arrive, or not in time".to_owned());
    Ok(Measured { latencies, window, errors, first_error })
}

async fn follow(
    mut events: tokio::sync::mpsc::Receiver<crate::bench::pods::api::Seen>,
    sent: Sent,
    total: usize,
) -> Histogram {
    let mut latencies = Histogram::default();
    while let Some(seen) = events.recv().await {
        let mark = seen.object["data"]["changed"].as_str().and_then(|text| text.strip_prefix(MARK));
        let Some(number) = mark.and_then(|mark| mark.parse::<usize>().ok()) else { continue };
        if seen.kind != "MODIFIED" {
            continue;
        }
        let at = sent.lock().unwrap_or_else(PoisonError::into_inner).get(number).copied();
        latencies.record(at.map(|at| seen.at.saturating_duration_since(at)).unwrap_or_default());
        if number + 1 == total {
            break;
        }
    }
    latencies
}
