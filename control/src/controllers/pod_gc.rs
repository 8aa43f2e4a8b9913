//! Pod garbage: pods whose node is gone, and deleted pods that never got a node. One that is held by a finalizer is said
//! to have failed.
//!
//! A node must be missing for a while, and be missing in the newest state of the store, before its pods are
//! removed: an agent that registers again right after its object was deleted keeps them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use api::{Status, object};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::Value;

use super::{Context, WRITES_MAX, core_kind, settled, ticks};
use crate::leader::Epoch;
use crate::reflector::uid;
use crate::registry::{DeleteOptions, Disruption, Object, Target};

/// How often pods are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut missing_since: HashMap<String, Instant> = HashMap::new();
    let period = PERIOD.min(context.timings.orphan_after);
    let mut ticks = ticks(period);
    loop {
        ticks.tick().await;
        let gone = gone_nodes(context, &mut missing_since).await;
        let garbage = gone.iter().flat_map(|node| context.pods.indexed(node));
        let garbage = garbage.map(|pod| (pod, Some(Disruption::NodeGone)));
        let unbound = context.pods.not_indexed().into_iter().filter(|pod| is_terminating(pod));
        let unbound = unbound.map(|pod| (pod, None));
        stream::iter(garbage.chain(unbound))
            .for_each_concurrent(WRITES_MAX, |(pod, disruption)| async move {
                if let Err(status) = settled(remove(context, epoch, &pod, disruption).await) {
                    tracing::warn!(pod = pod.name(), %status, "the pod was not removed");
                }
            })
            .await;
    }
}

/// Nodes that have pods, have been missing long enough, and are missing in the newest state too.
async fn gone_nodes(context: &Context, missing_since: &mut HashMap<String, Instant>) -> Vec<String> {
    let now = Instant::now();
    let missing: Vec<String> =
        context.pods.index_texts().into_iter().filter(|node| context.nodes.get("", node).is_none()).collect();
    missing_since.retain(|node, _| missing.contains(node));
    let mut gone = Vec::new();
    for node in missing {
        let since = *missing_since.entry(node.clone()).or_insert(now);
        if now.duration_since(since) < context.timings.orphan_after {
            continue;
        }
        match context.registry.get(core_kind("Node"), "", &node).await {
            Err(status) if status.reason() == "NotFound" => gone.push(node),
            Err(status) => tracing::debug!(node, %status, "whether the node is gone is not known"),
            Ok(_) => {}
        }
    }
    gone
}

fn is_terminating(pod: &Object) -> bool {
    object::deletion_timestamp(pod.value()).is_some()
}

async fn remove(
    context: &Context,
    epoch: Epoch,
    pod: &Object,
    disruption: Option<Disruption>,
) -> Result<(), Status> {
    if object::finalizers(pod.value()).next().is_some() {
        mark_failed(context, epoch, pod, disruption).await?;
    }
    let options = DeleteOptions { fence: epoch.fence(), ..DeleteOptions::now(&uid(pod)) };
    let target = Target::new(core_kind("Pod"), pod.namespace(), pod.name());
    let deleted = context.registry.delete(target, &options).await?;
    if deleted.removed {
        tracing::info!(pod = pod.name(), namespace = pod.namespace(), "the pod had no node; removed");
    }
    Ok(())
}

/// Nobody will say any more how a pod that is still held has ended. It has failed: who holds it waits for that.
async fn mark_failed(
    context: &Context,
    epoch: Epoch,
    pod: &Object,
    disruption: Option<Disruption>,
) -> Result<(), Status> {
    let target = Target::status(core_kind("Pod"), pod.namespace(), pod.name());
    let now = Timestamp::now();
    let change = |value: &mut Value| {
        if matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return;
        }
        value["status"]["phase"] = Value::from("Failed");
        if let Some(disruption) = disruption {
            disruption.tell(value, now);
        }
    };
    context.registry.change_status_of(&uid(pod), target, epoch.fence(), change).await
}
