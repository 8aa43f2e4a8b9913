//! DaemonSets: one pod on every node that fits.
//!
//! Owns which nodes have a pod of each DaemonSet, and its status. A turn compares the nodes that should run one
//! with those that do, makes and deletes the difference, and moves a few pods on to the newest template
//! ([`rollout`], pure). Pods are bound by the scheduler: each carries an affinity to the one node that it is for,
//! and tolerates what a node's troubles are told by. Which nodes fit is [`placement`]'s.

mod placement;
mod rollout;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Status, object};
use jiff::SignedDuration;
use serde_json::{Value, json};

use self::placement::Template;
use self::rollout::{Limits, OnNode, Pod};
use super::owners::{BURST_MAX, Controller, Owner, Work, has_ended, pod_of};
use super::replica_set::available_in;
use super::revisions::{self, HASH_LABEL};
use super::work_queue::{Key, key_of};
use crate::reflector::Delta;
use crate::registry::{EventType, Object};

/// How long a pod that failed on a node is waited for before the next one is made there.
const FAILED_POD_WAIT: Duration = Duration::from_secs(1);

/// The loop over DaemonSets.
#[derive(Debug, Clone, Copy)]
pub(super) struct DaemonSets;

impl Controller for DaemonSets {
    fn owner(&self) -> (&'static str, &'static str) {
        ("apps", "DaemonSet")
    }

    fn component(&self) -> &'static str {
        "daemonset-controller"
    }

    fn other(&self) -> Option<(&'static str, &'static str)> {
        Some(("", "Node"))
    }

    /// A node may fit any of them.
    fn concerned(&self, work: &Work<'_>, _delta: &Delta) -> Vec<Key> {
        work.owners.list().iter().map(|owner| key_of(owner)).collect()
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let collisions = owner.value()["status"]["collisionCount"].as_u64().unwrap_or(0);
        let history = revisions::history(work, owner, collisions).await?;
        let Some(newest) = history.last().cloned() else { return Ok(None) };
        let hash = revisions::hash_of(&newest).to_owned();
        let Some(template) = Template::of(&owner.value()["spec"]["template"]["spec"]) else {
            return Ok(None);
        };
        let now = super::whole_seconds(jiff::Timestamp::now());
        let nodes = look(work, owner, &template, &hash, now);
        let mut outcome = Ok(());
        let mut next = nodes.next;
        if !owner.is_deleting {
            let (done, again) = self.carry_out(work, owner, &nodes, &hash).await;
            outcome = done;
            next = next.into_iter().chain(again).min();
        }
        work.report(owner.object, status(owner, &nodes.by_name)).await?;
        if !owner.is_deleting {
            let pods = nodes.by_name.values().flat_map(|node| &node.pods);
            let live: Vec<String> = pods.map(|pod| pod.hash.clone()).collect();
            let limit = owner.value()["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10);
            revisions::truncate(work, &history, &live, limit).await?;
        }
        outcome?;
        Ok(next.map(|wait| Instant::now() + wait))
    }
}

/// The nodes, with the pods that the set has on them.
struct Nodes {
    by_name: BTreeMap<String, OnNode>,
    objects: BTreeMap<String, Arc<Object>>,
    /// After how long a pod will have been ready long enough.
    next: Option<Duration>,
}

fn look(work: &Work<'_>, owner: &Owner<'_>, template: &Template, hash: &str, now: jiff::Timestamp) -> Nodes {
    let min_ready = SignedDuration::from_secs(owner.value()["spec"]["minReadySeconds"].as_i64().unwrap_or(0));
    let mut nodes = Nodes { by_name: BTreeMap::new(), objects: BTreeMap::new(), next: None };
    for node in work.context.nodes.list() {
        let verdict = template.on(&node);
        let on_node =
            OnNode { should_run: verdict.should_run, should_stay: verdict.should_stay, pods: vec![] };
        nodes.by_name.insert(node.name().to_owned(), on_node);
    }
    for child in &owner.children {
        let Some(name) = placement::node_of(child) else { continue };
        let available = available_in(child, min_ready, now);
        if let Some(wait) = available.filter(|wait| !wait.is_zero()) {
            nodes.next = Some(nodes.next.map_or(wait, |before| before.min(wait)));
        }
        let own = object::label(child.value(), HASH_LABEL).unwrap_or_default();
        let pod = Pod {
            name: child.name().to_owned(),
            created: object::creation_timestamp(child.value()).to_owned(),
            hash: own.to_owned(),
            is_new: own == hash,
            is_ready: available.is_some(),
            is_available: available.is_some_and(|wait| wait.is_zero()),
            has_ended: has_ended(child),
            is_terminating: object::deletion_timestamp(child.value()).is_some(),
        };
        nodes.objects.insert(child.name().to_owned(), child.clone());
        nodes.by_name.entry(name).or_default().pods.push(pod);
    }
    nodes
}

impl DaemonSets {
    async fn carry_out(
        &self,
        work: &mut Work<'_>,
        owner: &Owner<'_>,
        nodes: &Nodes,
        hash: &str,
    ) -> (Result<(), Status>, Option<Duration>) {
        let limits = Limits::of(&owner.value()["spec"]["updateStrategy"], &nodes.by_name);
        let plan = rollout::plan(&nodes.by_name, &limits);
        let find = |name: &String| nodes.objects.get(name).cloned();
        for name in plan.failed.iter() {
            let Some(pod) = find(name) else { continue };
            let node = placement::node_of(&pod).unwrap_or_default();
            let (namespace, name) = (pod.namespace(), pod.name());
            let message =
                format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
            work.say(owner.object, EventType::Warning, "FailedDaemonPod", message);
        }
        let go: Vec<Arc<Object>> = plan.delete.iter().chain(&plan.failed).filter_map(find).collect();
        let (_, refused) = work.delete(owner, go).await;
        let template = &owner.value()["spec"]["template"];
        let generation = object::generation(owner.value());
        let wanted = plan.create.iter().take(BURST_MAX).map(|node| {
            let mut pod = pod_of(template, &owner.reference);
            pod["metadata"]["generateName"] = json!(format!("{}-", owner.object.name()));
            object::set_label(&mut pod, HASH_LABEL, hash);
            object::set_label(&mut pod, "pod-template-generation", &generation.to_string());
            placement::pin(&mut pod["spec"], node);
            pod
        });
        let wanted: Vec<Value> = wanted.collect();
        let (_, failed) = work.create(owner, wanted).await;
        let again = (!plan.failed.is_empty()).then_some(FAILED_POD_WAIT);
        (refused.or(failed).map_or(Ok(()), |failure| Err(failure.status)), again)
    }
}

fn status(owner: &Owner<'_>, nodes: &BTreeMap<String, OnNode>) -> Value {
    let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    for node in nodes.values() {
        let oldest = node.oldest();
        if !node.should_run {
            misplaced += i64::from(oldest.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = oldest else { continue };
        current += 1;
        let stands = !pod.is_terminating && !pod.has_ended;
        ready += i64::from(stands && pod.is_ready);
        available += i64::from(stands && pod.is_available);
        updated += i64::from(node.pods.iter().any(|pod| pod.is_new));
    }
    let mut status = json!({
        "observedGeneration": object::generation(owner.value()),
        "currentNumberScheduled": current,
        "desiredNumberScheduled": desired,
        "numberMisscheduled": misplaced,
        "numberReady": ready,
    });
    let unavailable = desired - available;
    let some = [
        ("updatedNumberScheduled", updated),
        ("numberAvailable", available),
        ("numberUnavailable", unavailable),
    ];
    for (field, number) in some.into_iter().filter(|(_, number)| *number > 0) {
        status[field] = json!(number);
    }
    for field in ["collisionCount", "conditions"] {
        if let Some(kept) = owner.value()["status"].get(field) {
            status[field] = kept.clone();
        }
    }
    status
}
