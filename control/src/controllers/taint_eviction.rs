//! Eviction by taint: a pod leaves a node with a `NoExecute` taint that it does not bear, or no longer.
//!
//! A pod that says nothing about the not-ready and unreachable taints stays as long as the default
//! toleration would let it. While no node at all is ready, these two taints evict nobody: then it is more
//! likely the control plane that is cut off.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{Status, object};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use raft_store::mutants::{self, Mutant};
use scheduler::{Effect, Taint, Toleration};
use serde_json::Value;

use super::{Context, WRITES_MAX, core_kind, settled, ticks};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{DeleteOptions, Disruption, EventRecord, EventType, Object, Regarding, Target};

/// Who reports.
const COMPONENT: &str = "taint-eviction-controller";
/// Taints that say that a node cannot be reached or does not work.
const OUTAGE_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
/// How often pods are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// A taint and since when it counts.
#[derive(Debug, Clone)]
struct Dated {
    taint: Taint,
    since: Duration,
}

/// When the pod has to go, as a time since the same origin as the taints' dates; `None`: never.
fn due(taints: &[Dated], tolerations: &[Toleration], eviction_after: Duration) -> Option<Duration> {
    let leaves_at = |dated: &Dated| {
        let mut bears = tolerations.iter().filter(|toleration| toleration.tolerates(&dated.taint)).peekable();
        if bears.peek().is_none() {
            let is_outage = OUTAGE_TAINTS.contains(&dated.taint.key.as_str());
            return Some(dated.since + if is_outage { eviction_after } else { Duration::ZERO });
        }
        let seconds = bears.filter_map(|toleration| toleration.seconds).min()?;
        Some(dated.since + Duration::from_secs(seconds.max(0).unsigned_abs()))
    };
    taints.iter().filter_map(leaves_at).min()
}

/// What counts of a node.
#[derive(Debug, Default)]
struct Tainted {
    is_ready: bool,
    taints: Vec<Dated>,
}

struct Eviction<'a> {
    context: &'a Context,
    epoch: Epoch,
    nodes: BTreeMap<String, Tainted>,
}

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut feed = Feed::new(context.nodes.clone());
    let mut eviction = Eviction { context, epoch, nodes: BTreeMap::new() };
    let mut ticks = ticks(PERIOD);
    loop {
        ticks.tick().await;
        while let Some(delta) = feed.try_next() {
            eviction.note(&delta);
        }
        eviction.turn().await;
    }
}

impl Eviction<'_> {
    fn note(&mut self, delta: &Delta) {
        let node = match delta {
            Delta::Deleted(node) => {
                self.nodes.remove(node.name());
                return;
            }
            Delta::Applied(node) => node,
        };
        let Ok(decoded) = node.decode::<Node>() else { return };
        let before = self.nodes.remove(node.name()).unwrap_or_default().taints;
        let wire = decoded.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
        let dated = wire.filter_map(|wire| {
            let taint = Taint::new(wire).filter(|taint| taint.effect == Effect::NoExecute)?;
            // Taints set by hand carry no time: they count from when they were first seen here.
            let added = wire.time_added.as_ref().map(|time| since_epoch(time.0));
            let seen = before.iter().find(|known| known.taint == taint).map(|known| known.since);
            let since = added.or(seen).unwrap_or_else(|| since_epoch(Timestamp::now()));
            Some(Dated { taint, since })
        });
        let tainted = Tainted { is_ready: is_ready(&decoded), taints: dated.collect() };
        self.nodes.insert(node.name().to_owned(), tainted);
    }

    async fn turn(&self) {
        let total_outage = self.nodes.values().all(|node| !node.is_ready);
        let now = since_epoch(Timestamp::now());
        let mut leaving = Vec::new();
        for (name, node) in self.nodes.iter().filter(|(_, node)| !node.taints.is_empty()) {
            let is_outage = |dated: &&Dated| OUTAGE_TAINTS.contains(&dated.taint.key.as_str());
            let taints: Vec<Dated> =
                node.taints.iter().filter(|dated| !(total_outage && is_outage(dated))).cloned().collect();
            let pods = self.context.pods.indexed(name);
            let unreachable = |dated: &Dated| dated.taint.key == OUTAGE_TAINTS[1];
            let is_lost = !node.is_ready && taints.iter().any(unreachable);
            let going = pods.into_iter().filter(|pod| self.has_to_go(pod, &taints, now));
            leaving.extend(going.map(|pod| (pod, is_lost.then_some(name.as_str()))));
        }
        stream::iter(leaving)
            .for_each_concurrent(WRITES_MAX, |(pod, lost_with)| async move {
                let evicted = async {
                    self.evict(&pod).await?;
                    match lost_with {
                        Some(node) => self.mark_lost(&pod, node).await,
                        None => Ok(()),
                    }
                };
                if let Err(status) = settled(evicted.await) {
                    tracing::warn!(pod = pod.name(), %status, "the pod was not evicted");
                }
            })
            .await;
    }

    fn has_to_go(&self, object: &Object, taints: &[Dated], now: Duration) -> bool {
        let Ok(pod) = object.decode::<Pod>() else { return false };
        let finished = matches!(
            pod.status.as_ref().and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        if pod.metadata.deletion_timestamp.is_some() || finished {
            return false;
        }
        let spec = pod.spec.unwrap_or_default();
        let tolerations: Vec<_> = spec.tolerations.iter().flatten().filter_map(Toleration::new).collect();
        due(taints, &tolerations, self.context.timings.eviction_after).is_some_and(|due| due <= now)
    }

    /// KIA-POD-020: nobody knows what such a pod does. Its node, should it come back, says so itself.
    async fn mark_lost(&self, pod: &Object, node: &str) -> Result<(), Status> {
        let target = Target::status(core_kind("Pod"), pod.namespace(), pod.name());
        let change = |value: &mut Value| {
            if object::deletion_timestamp(value).is_some() {
                set_lost(value, node);
            }
        };
        let uid = object::uid(pod.value());
        self.context.registry.change_status_of(uid, target, self.epoch.fence(), change).await
    }

    async fn evict(&self, pod: &Object) -> Result<(), Status> {
        let value = pod.value();
        let options = DeleteOptions {
            uid: Some(object::uid(value).to_owned()),
            disruption: Some(Disruption::Taint),
            grace_period_s: mutants::is(Mutant::ForgetDeadNodes).then_some(0),
            fence: self.epoch.fence(),
            ..DeleteOptions::default()
        };
        let target = Target::new(core_kind("Pod"), pod.namespace(), pod.name());
        self.context.registry.delete(target, &options).await?;
        let (namespace, name) = (pod.namespace(), pod.name());
        tracing::info!(pod = name, namespace, "evicted by a taint");
        let record = EventRecord::now(
            COMPONENT,
            Regarding::object(value),
            EventType::Normal,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {namespace}/{name}"),
        );
        self.context.events.say(record, self.epoch.fence());
        Ok(())
    }
}

/// What is said of a pod that has to go while nobody hears of its node.
fn set_lost(pod: &mut Value, node: &str) {
    let message = format!("Node {node} which was running pod {} is unresponsive", object::name(pod));
    pod["status"]["reason"] = Value::from("NodeLost");
    pod["status"]["message"] = Value::from(message);
}

fn since_epoch(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;

    use super::*;

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration::new(&core::Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            toleration_seconds: seconds,
            ..Default::default()
        })
        .expect("valid")
    }

    #[test]
    fn a_pod_stays_as_long_as_it_bears_every_taint() {
        let dated = |key: &str, since: u64| Dated {
            taint: Taint { key: key.into(), value: String::new(), effect: Effect::NoExecute },
            since: Duration::from_secs(since),
        };
        let (outage, own) = (dated(OUTAGE_TAINTS[1], 100), dated("example.com/own", 200));
        let after = Duration::from_secs(300);
        let due = |taints: &[Dated], tolerations: &[Toleration]| {
            due(taints, tolerations, after).map(|due| due.as_secs())
        };
        assert_eq!(due(&[], &[]), None);
        assert_eq!(due(std::slice::from_ref(&outage), &[]), Some(400), "the default toleration");
        assert_eq!(due(std::slice::from_ref(&outage), &[toleration(OUTAGE_TAINTS[1], Some(5))]), Some(105));
        assert_eq!(
            due(std::slice::from_ref(&outage), &[toleration(OUTAGE_TAINTS[1], None)]),
            None,
            "for ever"
        );
        assert_eq!(due(&[outage.clone(), own.clone()], &[]), Some(200), "at once");
        let bears = [toleration("example.com/own", Some(1000)), toleration("example.com/own", Some(-7))];
        assert_eq!(due(&[own, outage], &bears), Some(200), "the shortest counts, and not before now");
    }
}
