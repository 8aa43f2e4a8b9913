//! Namespaces: the system's are made, and those being deleted are emptied, then let go.
//!
//! A namespace under deletion takes no new content (admission sees to that), so emptying it comes to an end:
//! everything in it is deleted, kind by kind, and when nothing is left its finalizer is removed. Pods get
//! their grace and finalizers their time, so a namespace may need many looks.

use std::collections::HashSet;
use std::time::Duration;

use api::{Status, object};
use serde_json::Value;

use super::deleting::delete_all;
use super::work_queue::WorkQueue;
use super::{Context, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{Part, Target, bootstrap_namespaces, status_from_store};

/// The finalizer that this controller removes.
const FINALIZER: &str = "kubernetes";
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

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut feed = Feed::new(context.namespaces.clone());
    let mut queue = WorkQueue::new(RETRY_MIN, RETRY_MAX);
    loop {
        tokio::select! {
            delta = feed.next() => note(&mut queue, &delta),
            () = queue.wait() => {}
        }
        while let Some(delta) = feed.try_next() {
            note(&mut queue, &delta);
        }
        for name in queue.take_due() {
            match reconcile(context, epoch, &name).await {
                Ok(true) => queue.forget(&name),
                Ok(false) => queue.retry(name),
                Err(status) => {
                    tracing::warn!(namespace = name, %status, "the namespace is not empty yet");
                    queue.retry(name);
                }
            }
        }
    }
}

fn note(queue: &mut WorkQueue<String>, delta: &Delta) {
    match delta {
        Delta::Deleted(namespace) => queue.remove(&namespace.name().to_owned()),
        Delta::Applied(namespace) => {
            if object::deletion_timestamp(namespace.value()).is_some() {
                queue.add_new(namespace.name().to_owned());
            }
        }
    }
}

/// Deletes what is in the namespace. `true`: nothing is left and the namespace was let go.
async fn reconcile(context: &Context, epoch: Epoch, namespace: &str) -> Result<bool, Status> {
    let mut left = 0;
    let kinds = context.registry.kinds();
    kinds.refresh().await.map_err(status_from_store)?;
    let mut seen = HashSet::new();
    for kind in kinds.current().kinds().iter().filter(|kind| kind.namespaced && !kind.virtual_only) {
        // The versions of a kind show the same objects.
        if seen.insert((kind.stored_group(), kind.plural)) {
            left += delete_all(context, epoch, kind, Some(namespace)).await?;
        }
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
