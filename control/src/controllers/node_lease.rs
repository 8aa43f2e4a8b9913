//! The `Lease` objects by which users see that nodes live: `kube-node-lease/<node>`, renewed while the node is
//! heard of, removed with it.
//!
//! Heartbeats themselves stay in the leader's memory; this tells of them, at the kubelet's pace, so that a
//! hundred nodes cost ten small writes a second. Nothing here decides whether a node is ready.

use std::collections::BTreeSet;
use std::time::Instant;

use api::{Kind, Status, object};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, WRITES_MAX, options, settled, ticks};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, ListOptions, Object, Target};

/// Where the Leases are.
const NAMESPACE: &str = "kube-node-lease";
/// How long a node's Lease holds after each renewal; what the kubelet writes.
const LEASE_DURATION_SECONDS: u32 = 40;

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut ticks = ticks(context.timings.node_lease_renewal);
    loop {
        ticks.tick().await;
        renew_all(context, epoch).await;
        if let Err(status) = remove_orphans(context, epoch).await {
            tracing::debug!(%status, "Leases of nodes that are gone were not removed");
        }
    }
}

async fn renew_all(context: &Context, epoch: Epoch) {
    let now = Instant::now();
    let grace = context.timings.node_monitor_grace;
    let is_heard = |node: &Object| {
        let beat = context.heartbeats.get(node.name());
        beat.is_some_and(|beat| now.saturating_duration_since(beat.at) <= grace)
    };
    let heard = context.nodes.list().into_iter().filter(|node| is_heard(node));
    stream::iter(heard)
        .for_each_concurrent(WRITES_MAX, |node| async move {
            if let Err(status) = settled(renew(context, epoch, &node).await) {
                tracing::debug!(node = node.name(), %status, "the node's Lease was not renewed");
            }
        })
        .await;
}

async fn renew(context: &Context, epoch: Epoch, node: &Object) -> Result<(), Status> {
    let name = node.name();
    let renewed = object::micro_timestamp(Timestamp::now());
    let target = Target::new(kind(), NAMESPACE, name);
    let change = |lease: &mut Value| {
        lease["spec"]["holderIdentity"] = Value::from(name);
        lease["spec"]["leaseDurationSeconds"] = Value::from(LEASE_DURATION_SECONDS);
        lease["spec"]["renewTime"] = Value::from(renewed.as_str());
        Ok(())
    };
    let options = options(epoch);
    match context.registry.modify(target, &options, change).await {
        Err(status) if status.reason() == "NotFound" => {
            let owner = json!({
                "apiVersion": "v1", "kind": "Node", "name": name, "uid": object::uid(node.value()),
            });
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": [owner]},
                "spec": {
                    "holderIdentity": name,
                    "leaseDurationSeconds": LEASE_DURATION_SECONDS,
                    "renewTime": renewed,
                },
            });
            context.registry.create(kind(), NAMESPACE, lease, &options).await.map(drop)
        }
        written => written.map(drop),
    }
}

async fn remove_orphans(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let nodes: BTreeSet<String> = context.nodes.list().iter().map(|node| node.name().to_owned()).collect();
    // What this replica has is enough: the deletion names the version that was seen.
    let list = ListOptions { resource_version: Some("0".to_owned()), ..ListOptions::default() };
    let leases = context.registry.list(kind(), Some(NAMESPACE), &list).await?;
    for lease in leases.items.iter().filter(|lease| !nodes.contains(lease.name())) {
        // Somebody's own Lease in that namespace is not ours to remove.
        if lease.value()["metadata"]["ownerReferences"][0]["kind"] != "Node" {
            continue;
        }
        let options = DeleteOptions {
            resource_version: Some(lease.revision().to_string()),
            fence: epoch.fence(),
            ..DeleteOptions::default()
        };
        let target = Target::new(kind(), NAMESPACE, lease.name());
        settled(context.registry.delete(target, &options).await.map(drop))?;
    }
    Ok(())
}

fn kind() -> &'static Kind {
    api::kinds::by_kind("coordination.k8s.io", "v1", "Lease").expect("the table of kinds has Leases")
}
