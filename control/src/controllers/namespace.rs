//! Namespaces: the system's are made, and those being deleted are emptied, then let go.
//!
//! A namespace under deletion takes no new content (admission sees to that), so emptying it comes to an end:
//! everything in it is deleted, kind by kind, and when nothing is left its finalizer is removed. Pods get
//! their grace and finalizers their time, so a namespace may need many looks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::{Kind, Status, object};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::{Context, WRITES_MAX, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{DeleteOptions, ListOptions, Part, Target, bootstrap_namespaces};

/// The finalizer that this controller removes.
const FINALIZER: &str = "kubernetes";
/// How many objects are listed at once.
const PAGE_ITEMS: usize = 500;
/// The wait before a namespace is looked at again; it doubles up to the maximum.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Makes the namespaces that every cluster has.
pub(super) async fn bootstrap(context: &Context) {
    while let Err(status) = bootstrap_namespaces(&context.registry).await {
        tracing::warn!(%status, "the system's namespaces are not there yet; trying again");
        tokio::time::sleep(RETRY_MIN).await;
    }
}

#[derive(Debug, Clone, Copy)]
struct Look {
    due: Instant,
    wait: Duration,
}

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut feed = Feed::new(context.namespaces.clone());
    let mut looks: BTreeMap<String, Look> = BTreeMap::new();
    loop {
        let next = looks.values().map(|look| look.due).min();
        let wait = next.map_or(RETRY_MAX, |due| due.saturating_duration_since(Instant::now()));
        tokio::select! {
            delta = feed.next() => note(&mut looks, &delta),
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(delta) = feed.try_next() {
            note(&mut looks, &delta);
        }
        let now = Instant::now();
        let due: Vec<String> =
            looks.iter().filter(|(_, look)| look.due <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            let is_done = match reconcile(context, epoch, &name).await {
                Ok(is_done) => is_done,
                Err(status) => {
                    tracing::warn!(namespace = name, %status, "the namespace is not empty yet");
                    false
                }
            };
            if is_done {
                looks.remove(&name);
            } else if let Some(look) = looks.get_mut(&name) {
                *look = Look { due: Instant::now() + look.wait, wait: (look.wait * 2).min(RETRY_MAX) };
            }
        }
    }
}

fn note(looks: &mut BTreeMap<String, Look>, delta: &Delta) {
    match delta {
        Delta::Deleted(namespace) => {
            looks.remove(namespace.name());
        }
        Delta::Applied(namespace) => {
            if object::deletion_timestamp(namespace.value()).is_some() {
                let look = Look { due: Instant::now(), wait: RETRY_MIN };
                looks.entry(namespace.name().to_owned()).or_insert(look);
            }
        }
    }
}

/// Deletes what is in the namespace. `true`: nothing is left and the namespace was let go.
async fn reconcile(context: &Context, epoch: Epoch, namespace: &str) -> Result<bool, Status> {
    let mut left = 0;
    for kind in api::kinds().iter().filter(|kind| kind.namespaced && !kind.virtual_only) {
        left += empty(context, epoch, kind, namespace).await?;
    }
    if left > 0 {
        return Ok(false);
    }
    let target = Target { part: Part::Finalize, ..Target::new(core_kind("Namespace"), "", namespace) };
    let let_go = |value: &mut Value| {
        if let Some(finalizers) = value["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        Ok(())
    };
    settled(context.registry.modify(target, &options(epoch), let_go).await.map(|_| ()))?;
    tracing::info!(namespace, "the namespace is empty and gone");
    Ok(true)
}

/// Deletes every object of a kind; says how many are still there.
async fn empty(
    context: &Context,
    epoch: Epoch,
    kind: &'static Kind,
    namespace: &str,
) -> Result<usize, Status> {
    let mut left = 0;
    let mut list = ListOptions { limit: Some(PAGE_ITEMS), ..ListOptions::default() };
    loop {
        let page = context.registry.list(kind, Some(namespace), &list).await?;
        let outcomes = stream::iter(page.items).map(|object| async move {
            // Only the first deletion does anything; later looks just wait for it.
            if object::deletion_timestamp(object.value()).is_some() {
                return Ok(false);
            }
            let delete = DeleteOptions { fence: epoch.fence(), ..DeleteOptions::default() };
            let target = Target::new(kind, namespace, object.name());
            match context.registry.delete(target, &delete).await {
                Ok(deleted) => Ok(deleted.removed),
                Err(status) if status.reason() == "NotFound" => Ok(true),
                Err(status) => Err(status),
            }
        });
        let outcomes: Vec<Result<bool, Status>> = outcomes.buffer_unordered(WRITES_MAX).collect().await;
        for outcome in outcomes {
            left += usize::from(!outcome?);
        }
        match page.continue_token {
            Some(token) => list.continue_token = Some(token),
            None => return Ok(left),
        }
    }
}
