//! The scheduler's shell: feeds the core from the reflectors and performs its decisions.
//!
//! Owns the one task that holds the scheduler's state on this replica. The state is fed on every replica,
//! always, so that a new leader has it in memory; decisions are made only under an [`Epoch`]. Promises: no
//! pod is bound on state older than the epoch; every bind carries the pod's version and the epoch as fence;
//! a bind whose outcome is unknown is repeated, never guessed. It writes bindings, the condition
//! `PodScheduled` of pods that fit nowhere, and Events; nothing else.
//!
//! ```text
//!  reflectors ──► core ──► decisions ──► one log entry per batch ──► bound / failed ──► core
//!                   │ fits nowhere
//!                   └──► Event FailedScheduling, condition PodScheduled=False (when the message is new)
//! ```

mod volumes;

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use api::{Kind, Status, object};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{Outcome, PodInfo, PodVolumes, Scheduler, SchedulerConfig};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use self::volumes::Storage;
use crate::leader::{Epoch, EpochReceiver};
use crate::object_store::{Error, SharedStore};
use crate::reflector::{Delta, Feed, Reflector, uid};
use crate::registry::{
    BindError, Binding, EventRecord, EventRecorder, EventType, Regarding, Registry, Target, WriteOptions,
};

/// Who reports scheduling Events.
const COMPONENT: &str = "default-scheduler";
/// Most pods bound by one log entry.
const BATCH_PODS_MAX: usize = 100;
/// Most log entries with bindings under way at once.
const BATCHES_MAX: usize = 4;
/// Most pods looked at before other work gets its turn.
const CYCLES_PER_TURN_MAX: usize = 200;
/// Most conditions being written at once; beyond, the next attempt of the pod reports.
const REPORTS_MAX: usize = 64;
/// The wait before a batch of unknown outcome is repeated.
const UNKNOWN_RETRY: Duration = Duration::from_millis(50);
/// After this time the same message is said once more, so that its Event does not expire.
const REPEAT_AFTER: Duration = Duration::from_secs(300);

/// What scheduling needs.
#[derive(Debug, Clone)]
pub struct Dependencies {
    /// Performs the writes.
    pub registry: Registry,
    /// Every pod.
    pub pods: Reflector<SharedStore>,
    /// Every node.
    pub nodes: Reflector<SharedStore>,
    /// Claims and volumes.
    pub storage: Storage,
    /// Takes Events in.
    pub events: EventRecorder,
    /// Says when to act.
    pub epochs: EpochReceiver,
}

/// Schedules whenever this replica leads, until cancelled.
pub async fn run(dependencies: Dependencies, cancel: CancellationToken) {
    dependencies.pods.wait_synced().await;
    dependencies.nodes.wait_synced().await;
    let mut shell = Shell::new(dependencies);
    cancel.run_until_cancelled(shell.run()).await;
}

struct Batch {
    epoch: Epoch,
    bindings: Vec<Binding>,
    results: Result<Vec<Result<u64, BindError>>, Error>,
}

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

struct Shell {
    registry: Registry,
    events: EventRecorder,
    epochs: EpochReceiver,
    pods: Feed<SharedStore>,
    nodes: Feed<SharedStore>,
    claims: Feed<SharedStore>,
    volumes: Feed<SharedStore>,
    storage: Storage,
    all_pods: Reflector<SharedStore>,
    core: Scheduler,
    started: Instant,
    epoch: Option<Epoch>,
    binds: FuturesUnordered<Future<Batch>>,
    reports: FuturesUnordered<Future<()>>,
    /// What was last said about a waiting pod, by uid.
    said: HashMap<String, (String, Instant)>,
}

impl Shell {
    fn new(dependencies: Dependencies) -> Self {
        let seed = rand::random();
        Self {
            registry: dependencies.registry,
            events: dependencies.events,
            epochs: dependencies.epochs,
            all_pods: dependencies.pods.clone(),
            pods: Feed::new(dependencies.pods),
            nodes: Feed::new(dependencies.nodes),
            claims: Feed::new(dependencies.storage.claims.clone()),
            volumes: Feed::new(dependencies.storage.volumes.clone()),
            storage: dependencies.storage,
            core: Scheduler::new(SchedulerConfig { seed, ..SchedulerConfig::default() }),
            started: Instant::now(),
            epoch: None,
            binds: FuturesUnordered::new(),
            reports: FuturesUnordered::new(),
            said: HashMap::new(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    async fn run(&mut self) {
        loop {
            // The epoch is read before the feeds are drained: whatever was synced for it is seen.
            let epoch = *self.epochs.borrow_and_update();
            self.absorb();
            self.enter(epoch);
            let more = self.decide();
            self.wait(more).await;
        }
    }

    /// Takes over everything that the reflectors have.
    fn absorb(&mut self) {
        while let Some(delta) = self.nodes.try_next() {
            self.node(&delta);
        }
        while let Some(delta) = self.pods.try_next() {
            self.pod(&delta);
        }
        let mut is_storage_changed = false;
        while self.claims.try_next().is_some() || self.volumes.try_next().is_some() {
            is_storage_changed = true;
        }
        if is_storage_changed {
            self.storage_changed();
        }
    }

    /// At the begin of an epoch, what an earlier one decided and the store does not show is void.
    fn enter(&mut self, epoch: Option<Epoch>) {
        if epoch != self.epoch {
            self.epoch = epoch;
            if epoch.is_some() {
                self.core.drop_assumed(self.now());
                self.said.clear();
            }
        }
    }

    async fn wait(&mut self, more: bool) {
        // While every place for a batch is taken, only the end of one can help.
        let may_decide = self.epoch.is_some() && self.binds.len() < BATCHES_MAX;
        let due = match self.core.next_due().filter(|_| may_decide) {
            Some(due) => due.saturating_sub(self.now()),
            None => REPEAT_AFTER,
        };
        tokio::select! {
            delta = self.pods.next() => self.pod(&delta),
            delta = self.nodes.next() => self.node(&delta),
            _ = self.claims.next() => self.storage_changed(),
            _ = self.volumes.next() => self.storage_changed(),
            Some(batch) = self.binds.next() => self.settle(batch),
            Some(()) = self.reports.next() => {}
            changed = self.epochs.changed() => if changed.is_err() { std::future::pending().await },
            () = tokio::time::sleep(due) => {}
            () = tokio::task::yield_now(), if more => {}
        }
    }

    fn node(&mut self, delta: &Delta) {
        match delta {
            Delta::Deleted(object) => self.core.node_removed(object.name()),
            Delta::Applied(object) => {
                let changed = object.decode::<Node>().map_err(|status| status.to_string()).and_then(|node| {
                    self.core.node_changed(&node, self.now()).map_err(|error| error.to_string())
                });
                if let Err(error) = changed {
                    tracing::warn!(node = object.name(), error, "the node cannot be read; kept as it was");
                }
            }
        }
    }

    fn pod(&mut self, delta: &Delta) {
        let now = self.now();
        match delta {
            Delta::Deleted(object) => {
                let uid = uid(object);
                self.core.pod_removed(&uid, now);
                self.said.remove(&uid);
            }
            Delta::Applied(object) => {
                let pod = match object.decode::<Pod>() {
                    Ok(pod) => pod,
                    Err(status) => {
                        tracing::warn!(pod = object.name(), %status, "the pod cannot be read");
                        return;
                    }
                };
                let volumes = match is_waiting(&pod) {
                    true => self.storage.of(&pod),
                    false => PodVolumes::default(),
                };
                if let Err(error) = self.core.pod_changed_with(&pod, volumes, now) {
                    tracing::warn!(pod = object.name(), %error, "the pod cannot be scheduled");
                }
            }
        }
    }

    /// Pods that wait for a node and use claims may fit elsewhere now, or at all.
    fn storage_changed(&mut self) {
        for pod in self.all_pods.not_indexed() {
            let uses_claims = pod.decode::<Pod>().is_ok_and(|pod| volumes::claims_of(&pod).next().is_some());
            if uses_claims {
                self.pod(&Delta::Applied(pod));
            }
        }
    }

    /// Decides on ready pods, one turn's worth. Says whether there is more to do right away.
    fn decide(&mut self) -> bool {
        let Some(epoch) = self.epoch else { return false };
        if self.binds.len() >= BATCHES_MAX {
            return false;
        }
        let mut bindings = Vec::new();
        for _ in 0..CYCLES_PER_TURN_MAX {
            match self.core.schedule_next(self.now()) {
                None => break,
                Some(Outcome::Bind { pod, node }) => {
                    bindings.push(binding(&pod, &node));
                    if bindings.len() >= BATCH_PODS_MAX {
                        break;
                    }
                }
                Some(Outcome::Unschedulable { pod, error }) => self.report(epoch, &pod, error.to_string()),
            }
        }
        if !bindings.is_empty() {
            self.bind(epoch, bindings, Duration::ZERO);
        }
        self.binds.len() < BATCHES_MAX && self.core.has_ready(self.now())
    }

    fn bind(&mut self, epoch: Epoch, bindings: Vec<Binding>, after: Duration) {
        let registry = self.registry.clone();
        self.binds.push(Box::pin(async move {
            tokio::time::sleep(after).await;
            let results = registry.bind_all(&bindings, epoch.fence()).await;
            Batch { epoch, bindings, results }
        }));
    }

    fn settle(&mut self, batch: Batch) {
        // Decisions of an epoch that is over are settled by the watch, and by `enter`.
        if self.epoch != Some(batch.epoch) {
            return;
        }
        let results = match batch.results {
            Ok(results) => results,
            Err(error @ Error::Unknown { .. }) => {
                tracing::debug!(pods = batch.bindings.len(), %error, "repeating bindings");
                return self.bind(batch.epoch, batch.bindings, UNKNOWN_RETRY);
            }
            Err(error) => {
                tracing::warn!(pods = batch.bindings.len(), %error, "bindings were not made");
                for binding in &batch.bindings {
                    self.core.bind_failed(&binding.uid, self.now());
                }
                return;
            }
        };
        for (binding, result) in batch.bindings.iter().zip(results) {
            match result {
                Ok(_) => self.bound(batch.epoch, binding),
                Err(error) => {
                    tracing::debug!(%error, "a binding was not made");
                    self.core.bind_failed(&binding.uid, self.now());
                }
            }
        }
    }

    fn bound(&mut self, epoch: Epoch, binding: &Binding) {
        self.core.bound(&binding.uid);
        self.said.remove(&binding.uid);
        let Binding { namespace, name, node, .. } = binding;
        self.say(
            epoch,
            regarding(namespace, name, &binding.uid),
            (EventType::Normal, "Scheduled"),
            format!("Successfully assigned {namespace}/{name} to {node}"),
        );
    }

    /// Tells the pod's owner why it waits, if that is news.
    fn report(&mut self, epoch: Epoch, pod: &PodInfo, message: String) {
        let known = self.said.get(&*pod.uid);
        let is_news = known.is_none_or(|(said, _)| *said != message);
        if !is_news && known.is_some_and(|(_, at)| at.elapsed() < REPEAT_AFTER) {
            return;
        }
        self.said.insert(pod.uid.to_string(), (message.clone(), Instant::now()));
        let about = regarding(&pod.namespace, &pod.name, &pod.uid);
        self.say(epoch, about.clone(), (EventType::Warning, "FailedScheduling"), message.clone());
        if is_news && self.reports.len() < REPORTS_MAX {
            let registry = self.registry.clone();
            self.reports.push(Box::pin(async move {
                if let Err(status) = write_unschedulable(&registry, &about, &message, epoch).await {
                    tracing::debug!(pod = about.name, %status, "the pod's condition was not written");
                }
            }));
        }
    }

    fn say(
        &self,
        epoch: Epoch,
        regarding: Regarding,
        (event_type, reason): (EventType, &str),
        message: String,
    ) {
        let record = EventRecord {
            regarding,
            event_type,
            reason: reason.to_owned(),
            message,
            component: COMPONENT.to_owned(),
            host: String::new(),
            at: Timestamp::now(),
        };
        self.events.say(record, epoch.fence());
    }
}

fn binding(pod: &PodInfo, node: &str) -> Binding {
    Binding {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        // A pod that came from the store always carries its version; none would never match.
        resource_version: Some(pod.resource_version.parse().unwrap_or(0)),
        node: node.to_owned(),
    }
}

fn regarding(namespace: &str, name: &str, uid: &str) -> Regarding {
    Regarding {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        field_path: String::new(),
    }
}

fn is_waiting(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.is_none_or(str::is_empty)
}

fn pod_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod")
}

/// Sets the pod's condition PodScheduled to False with the message, unless it says so already.
async fn write_unschedulable(
    registry: &Registry,
    pod: &Regarding,
    message: &str,
    epoch: Epoch,
) -> Result<(), Status> {
    let options = WriteOptions { fence: epoch.fence(), ..WriteOptions::default() };
    let target = Target::status(pod_kind(), &pod.namespace, &pod.name);
    let now = object::timestamp(Timestamp::now());
    let change = |value: &mut Value| {
        let is_bound = value["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        if object::uid(value) == pod.uid && !is_bound {
            set_unschedulable(value, message, &now);
        }
        Ok(())
    };
    match registry.modify(target, &options, change).await {
        Err(status) if status.reason() == "NotFound" => Ok(()),
        written => written.map(|_| ()),
    }
}

fn set_unschedulable(pod: &mut Value, message: &str, now: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({"phase": "Pending"});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    let known = conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled");
    let since = match &known {
        Some(condition) if condition["status"] == "False" => condition["lastTransitionTime"].clone(),
        _ => Value::from(now),
    };
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastProbeTime": null, "lastTransitionTime": since,
    });
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests;
