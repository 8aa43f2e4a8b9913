//! Events expire: one that was not said again for its time to live is removed.

use api::{Status, object};
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Context, WRITES_MAX, core_kind, settled, ticks};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, ListOptions, Object, Target};

/// How often Events are looked at, within their time to live.
const LOOKS_PER_TTL: u32 = 60;
/// How many Events are listed at once.
const PAGE_ITEMS: usize = 500;

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut ticks = ticks(context.timings.event_ttl / LOOKS_PER_TTL);
    // Not at once: whoever has just begun to lead has pods to bind, and all Events are much to look at.
    ticks.reset();
    loop {
        ticks.tick().await;
        if let Err(status) = look(context, epoch).await {
            tracing::debug!(%status, "Events were not looked at to the end");
        }
    }
}

async fn look(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let ttl = SignedDuration::try_from(context.timings.event_ttl).unwrap_or(SignedDuration::MAX);
    let mut list = ListOptions {
        limit: Some(PAGE_ITEMS),
        // What this replica has is enough: the deletion names the version that was seen.
        resource_version: Some("0".to_owned()),
        ..ListOptions::default()
    };
    loop {
        let page = context.registry.list(core_kind("Event"), None, &list).await?;
        let now = Timestamp::now();
        let expired = page
            .items
            .iter()
            .filter(|event| last_said(event.value()).is_some_and(|at| now.duration_since(at) > ttl));
        stream::iter(expired)
            .for_each_concurrent(WRITES_MAX, |event| async move {
                if let Err(status) = settled(remove(context, epoch, event).await) {
                    tracing::debug!(event = event.name(), %status, "the Event was not removed");
                }
            })
            .await;
        let Some(token) = page.continue_token else { return Ok(()) };
        list.continue_token = Some(token);
        list.resource_version = None;
    }
}

async fn remove(context: &Context, epoch: Epoch, event: &Object) -> Result<(), Status> {
    let options = DeleteOptions {
        resource_version: Some(event.revision().to_string()),
        fence: epoch.fence(),
        ..DeleteOptions::default()
    };
    let target = Target::new(core_kind("Event"), event.namespace(), event.name());
    context.registry.delete(target, &options).await.map(|_| ())
}

/// The newest of the times that an Event carries.
fn last_said(event: &Value) -> Option<Timestamp> {
    let series = event["series"]["lastObservedTime"].as_str();
    let times = ["lastTimestamp", "eventTime", "firstTimestamp"].map(|field| event[field].as_str());
    times
        .into_iter()
        .chain([series, Some(object::creation_timestamp(event))])
        .flatten()
        .filter_map(object::parse_timestamp)
        .max()
}
