//! The PriorityClasses that every cluster has: those of the system's own pods.

use std::time::Duration;

use api::Status;
use serde_json::json;

use super::{Context, options};
use crate::leader::Epoch;

/// Name, value and what it is for, in Kubernetes' words.
const CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];
/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Makes those that are missing; the caller cancels it.
pub(super) async fn bootstrap(context: &Context, epoch: Epoch) {
    while let Err(status) = make(context, epoch).await {
        tracing::warn!(%status, "the system's priority classes are not there yet; trying again");
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

async fn make(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let Some(kind) = api::kinds::by_kind("scheduling.k8s.io", "v1", "PriorityClass") else { return Ok(()) };
    for (name, value, description) in CLASSES {
        if context.registry.get_local(kind, "", name).await?.is_some() {
            continue;
        }
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        });
        match context.registry.create(kind, "", class, &options(epoch)).await {
            Err(status) if status.reason() != "AlreadyExists" => return Err(status),
            _ => {}
        }
    }
    Ok(())
}
