//! Node lifecycle: a silent node's conditions become Unknown, and taints follow conditions.
//!
//! Heartbeats live in the leader's memory, so a new leader gives every node a fresh grace period instead of
//! raising alarms. A silent node's pods are marked not ready; a node that is heard of again is asked for its
//! whole state, which makes it ready again by its own word.
//!
//! ```text
//!   Ready=True ── silent for node_monitor_grace ──► Ready=Unknown, taints unreachable ── heard ──► resync
//!   Ready=False ──► taints not-ready        pressure=True ──► its taint     cordoned ──► unschedulable
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Status, object};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, WRITES_MAX, core_kind, options, settled, ticks};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{EventRecord, EventType, Object, Regarding, Target};

/// Who reports.
const COMPONENT: &str = "node-controller";
/// Conditions that become Unknown with a silent node.
const CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
/// Taints that follow from conditions; nobody else writes them.
const MANAGED: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
    "node.kubernetes.io/unschedulable",
];
/// A node's time is looked at this often within its grace period.
const LOOKS_PER_GRACE: u32 = 10;

/// The status of a condition; empty if there is none.
fn condition<'a>(node: &'a Value, name: &str) -> &'a str {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let mut found = conditions.filter(|condition| condition["type"] == name);
    found.next().and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

/// The taints that the node should have, if they are not those that it has.
pub(crate) fn node_taints(node: &Value, now: &str) -> Option<Vec<Value>> {
    let mut wanted: Vec<(&str, &str)> = match condition(node, "Ready") {
        "True" => vec![],
        "Unknown" => vec![(MANAGED[1], "NoSchedule"), (MANAGED[1], "NoExecute")],
        "False" => vec![(MANAGED[0], "NoSchedule"), (MANAGED[0], "NoExecute")],
        _ => vec![(MANAGED[0], "NoSchedule")],
    };
    for (name, key) in [
        ("MemoryPressure", MANAGED[2]),
        ("DiskPressure", MANAGED[3]),
        ("PIDPressure", MANAGED[4]),
        ("NetworkUnavailable", MANAGED[5]),
    ] {
        if condition(node, name) == "True" {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node["spec"]["unschedulable"] == true {
        wanted.push((MANAGED[6], "NoSchedule"));
    }
    let existing = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_managed = |taint: &Value| taint["key"].as_str().is_some_and(|key| MANAGED.contains(&key));
    let is = |taint: &Value, (key, effect): (&str, &str)| taint["key"] == key && taint["effect"] == effect;
    let kept = existing
        .iter()
        .filter(|taint| !is_managed(taint) || wanted.iter().any(|pair| is(taint, *pair)))
        .cloned();
    let mut taints: Vec<Value> = kept.collect();
    for pair in wanted {
        if !taints.iter().any(|taint| is(taint, pair)) {
            taints.push(json!({"key": pair.0, "effect": pair.1, "timeAdded": now}));
        }
    }
    (taints != existing).then_some(taints)
}

#[derive(Debug)]
struct View {
    object: Arc<Object>,
    ready: String,
    /// The object changed since its taints were looked at.
    taints_due: bool,
    asked_for_resync: Option<Instant>,
}

enum Action {
    MarkUnknown(Arc<Object>),
    Taint(Arc<Object>),
}

struct Lifecycle<'a> {
    context: &'a Context,
    epoch: Epoch,
    since: Instant,
    views: BTreeMap<String, View>,
}

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut feed = Feed::new(context.nodes.clone());
    let mut lifecycle = Lifecycle { context, epoch, since: Instant::now(), views: BTreeMap::new() };
    let period = context.timings.node_monitor_grace / LOOKS_PER_GRACE;
    let mut ticks = ticks(period.max(Duration::from_millis(10)));
    loop {
        tokio::select! {
            delta = feed.next() => lifecycle.note(delta),
            _ = ticks.tick() => {}
        }
        while let Some(delta) = feed.try_next() {
            lifecycle.note(delta);
        }
        lifecycle.turn().await;
    }
}

impl Lifecycle<'_> {
    fn note(&mut self, delta: Delta) {
        let object = match delta {
            Delta::Deleted(object) => {
                self.views.remove(object.name());
                self.context.heartbeats.forget(object.name());
                return;
            }
            Delta::Applied(object) => object,
        };
        let ready = condition(object.value(), "Ready").to_owned();
        let before = self.views.get(object.name()).map(|view| view.ready.clone());
        match (before.as_deref(), ready.as_str()) {
            (Some("True"), "False" | "Unknown") => self.say(&object, "NodeNotReady"),
            (Some("False" | "Unknown" | ""), "True") => self.say(&object, "NodeReady"),
            _ => {}
        }
        let asked_for_resync = self.views.get(object.name()).and_then(|view| view.asked_for_resync);
        let name = object.name().to_owned();
        self.views.insert(name, View { object, ready, taints_due: true, asked_for_resync });
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        let mut actions = Vec::new();
        for (name, view) in &mut self.views {
            let silent = is_silent(self.context, self.since, name, now);
            if silent && view.ready != "Unknown" {
                actions.push(Action::MarkUnknown(view.object.clone()));
            } else if view.taints_due {
                if node_taints(view.object.value(), "").is_some() {
                    actions.push(Action::Taint(view.object.clone()));
                } else {
                    view.taints_due = false;
                }
            }
            let grace = self.context.timings.node_monitor_grace;
            let asked = view.asked_for_resync.is_some_and(|at| now.duration_since(at) < grace);
            if !silent && view.ready == "Unknown" && !asked {
                view.asked_for_resync = Some(now);
                self.context.sessions.resync(name);
            }
        }
        let this = &*self;
        stream::iter(actions)
            .for_each_concurrent(WRITES_MAX, |action| async move {
                let (node, done) = match &action {
                    Action::MarkUnknown(node) => (node, this.mark_unknown(node).await),
                    Action::Taint(node) => (node, this.taint(node).await),
                };
                // Level-triggered: the next turn sees what is still to be done.
                if let Err(status) = settled(done) {
                    tracing::warn!(node = node.name(), %status, "the node's state was not written");
                }
            })
            .await;
    }

    async fn mark_unknown(&self, node: &Object) -> Result<(), Status> {
        let name = node.name();
        let now = object::timestamp(Timestamp::now());
        let target = Target::status(core_kind("Node"), "", name);
        let context = self.context;
        context
            .registry
            .modify(target, &options(self.epoch), |value| {
                if is_silent(context, self.since, name, Instant::now()) {
                    set_unknown(value, &now);
                }
                Ok(())
            })
            .await?;
        tracing::warn!(node = name, "the node is silent; its state is unknown");
        let pods = context.pods.indexed(name);
        stream::iter(pods)
            .for_each_concurrent(WRITES_MAX, |pod| async move {
                if let Err(status) = settled(self.mark_not_ready(&pod).await) {
                    tracing::warn!(pod = pod.name(), %status, "the pod was not marked not ready");
                }
            })
            .await;
        Ok(())
    }

    /// Nobody should be sent to a pod on a silent node.
    async fn mark_not_ready(&self, pod: &Object) -> Result<(), Status> {
        let uid = crate::reflector::uid(pod);
        let now = object::timestamp(Timestamp::now());
        let target = Target::status(core_kind("Pod"), pod.namespace(), pod.name());
        let change = |value: &mut Value| {
            if object::uid(value) == uid
                && let Some(conditions) = value["status"]["conditions"].as_array_mut()
            {
                let ready =
                    |condition: &&mut Value| condition["type"] == "Ready" && condition["status"] == "True";
                if let Some(condition) = conditions.iter_mut().find(ready) {
                    condition["status"] = Value::from("False");
                    condition["lastTransitionTime"] = Value::from(now.as_str());
                }
            }
            Ok(())
        };
        self.context.registry.modify(target, &options(self.epoch), change).await.map(|_| ())
    }

    async fn taint(&self, node: &Object) -> Result<(), Status> {
        let now = object::timestamp(Timestamp::now());
        let target = Target::new(core_kind("Node"), "", node.name());
        let change = |value: &mut Value| {
            if let Some(taints) = node_taints(value, &now) {
                value["spec"]["taints"] = Value::from(taints);
            }
            Ok(())
        };
        self.context.registry.modify(target, &options(self.epoch), change).await.map(|_| ())
    }

    fn say(&self, node: &Object, reason: &str) {
        let record = EventRecord::now(
            COMPONENT,
            Regarding::object(node.value()),
            EventType::Normal,
            reason,
            format!("Node {} status is now: {reason}", node.name()),
        );
        self.context.events.say(record, self.epoch.fence());
    }
}

/// Whether the node was not heard of for its grace period, which begins anew with every epoch.
fn is_silent(context: &Context, since: Instant, node: &str, now: Instant) -> bool {
    let heard = context.heartbeats.get(node).map_or(since, |beat| beat.at.max(since));
    now.saturating_duration_since(heard) > context.timings.node_monitor_grace
}

fn set_unknown(node: &mut Value, now: &str) {
    let created = object::creation_timestamp(node).to_owned();
    if !node["status"].is_object() {
        node["status"] = json!({});
    }
    if !node["status"]["conditions"].is_array() {
        node["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = node["status"]["conditions"].as_array_mut() else { return };
    for name in CONDITIONS {
        match conditions.iter_mut().find(|condition| condition["type"] == name) {
            Some(condition) if condition["status"] == "Unknown" => {}
            Some(condition) => {
                condition["status"] = Value::from("Unknown");
                condition["reason"] = Value::from("NodeStatusUnknown");
                condition["message"] = Value::from("Kubelet stopped posting node status.");
                condition["lastTransitionTime"] = Value::from(now);
            }
            None => conditions.push(json!({
                "type": name, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.",
                "lastHeartbeatTime": created, "lastTransitionTime": now,
            })),
        }
    }
}
