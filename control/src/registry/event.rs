//! Recording of `Event` objects: what happened to an object, for people to read.
//!
//! Owns their form, their names and their folding: the same thing said again about the same object raises
//! `count` and moves `lastTimestamp` of the one Event. The name is made of when it was first said, so that a
//! list is in the order in which things happened, and an Event that a node tells a second leader again is
//! recognised. A bound per reporter and object keeps a talkative loop from filling the store; Events said in
//! passing go through a bounded queue and are dropped when it is full. Recording never fails what it reports
//! on.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::{Kind, Status, object};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Registry, Target, WriteOptions};

/// Most Events waiting to be written.
const QUEUE_EVENTS_MAX: usize = 1024;
/// Most Events being written at once.
const WRITES_MAX: usize = 16;
/// How many Events a reporter may say about one object in a row.
const BURST_MAX: u32 = 25;
/// How long it takes until it may say one more.
const REFILL: Duration = Duration::from_secs(300);
/// Most reporter-and-object pairs remembered.
const BUDGETS_MAX: usize = 4096;
/// Most Events remembered for folding.
const SAID_MAX: usize = 4096;
/// Names tried for an Event before it is given up.
const NAME_ATTEMPTS_MAX: u64 = 64;
/// The longest message that the API takes, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// The namespace of Events about objects outside namespaces.
const CLUSTER_EVENTS_NAMESPACE: &str = "default";

/// `type` of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// All is as it should be.
    Normal,
    /// Something hinders.
    Warning,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

/// The object that an Event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// For example `v1`.
    pub api_version: String,
    /// For example `Pod`.
    pub kind: String,
    /// Empty outside namespaces.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// A part of it, for example `spec.containers{hello}`; may be empty.
    pub field_path: String,
}

impl Regarding {
    /// A whole object, from its JSON.
    pub fn object(value: &Value) -> Self {
        Self {
            api_version: object::api_version(value).to_owned(),
            kind: object::kind(value).to_owned(),
            namespace: object::namespace(value).to_owned(),
            name: object::name(value).to_owned(),
            uid: object::uid(value).to_owned(),
            field_path: String::new(),
        }
    }
}

/// Something to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// What it is about.
    pub regarding: Regarding,
    /// Normal or Warning.
    pub event_type: EventType,
    /// One word, for machines.
    pub reason: String,
    /// A sentence, for people.
    pub message: String,
    /// Who says it, for example `default-scheduler`.
    pub component: String,
    /// On which node; empty when that says nothing.
    pub host: String,
    /// When it happened.
    pub at: Timestamp,
}

impl EventRecord {
    /// Something that a part of the control plane says as it happens.
    pub fn now(
        component: &str,
        regarding: Regarding,
        event_type: EventType,
        reason: &str,
        message: String,
    ) -> Self {
        Self {
            regarding,
            event_type,
            reason: reason.to_owned(),
            message,
            component: component.to_owned(),
            host: String::new(),
            at: Timestamp::now(),
        }
    }

    /// Stands for what is said about what by whom, whenever.
    fn content(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let Self { regarding, event_type, reason, message, component, host, at: _ } = self;
        (regarding, event_type, reason, message, component, host).hash(&mut hasher);
        hasher.finish()
    }

    /// The Event's name, as Kubernetes makes it: the object's, and 16 hex digits of the time in nanoseconds.
    /// Reporters' clocks give microseconds; the digits below tell apart what was said in the same one.
    fn name(&self, attempt: u64) -> String {
        let micros = u64::try_from(self.at.as_microsecond()).unwrap_or(0);
        let below = (self.content() + attempt) % 1000;
        format!("{}.{:016x}", self.regarding.name, micros * 1000 + below)
    }

    /// Whether a stored Event is this very one, told again.
    fn is_told_by(&self, event: &Value) -> bool {
        event["reason"] == self.reason.as_str()
            && event["message"] == shorten(&self.message)
            && event["involvedObject"]["uid"] == self.regarding.uid.as_str()
            && event["source"]["component"] == self.component.as_str()
    }

    fn namespace(&self) -> &str {
        match self.regarding.namespace.as_str() {
            "" => CLUSTER_EVENTS_NAMESPACE,
            namespace => namespace,
        }
    }

    fn to_value(&self, name: &str) -> Value {
        let regarding = &self.regarding;
        let mut involved = json!({
            "apiVersion": regarding.api_version, "kind": regarding.kind, "name": regarding.name,
            "uid": regarding.uid,
        });
        for (field, text) in [("namespace", &regarding.namespace), ("fieldPath", &regarding.field_path)] {
            if !text.is_empty() {
                involved[field] = Value::from(text.as_str());
            }
        }
        let mut source = json!({"component": self.component});
        if !self.host.is_empty() {
            source["host"] = Value::from(self.host.as_str());
        }
        let at = object::timestamp(self.at);
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": self.namespace()},
            "involvedObject": involved,
            "type": self.event_type.to_string(), "reason": self.reason, "message": shorten(&self.message),
            "count": 1, "firstTimestamp": at, "lastTimestamp": at, "eventTime": null,
            "source": source, "reportingComponent": "", "reportingInstance": "",
        })
    }
}

/// Cuts a message that the API would refuse.
fn shorten(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// How much a reporter may still say about one object.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
}

/// Takes Events in; clones share queue, budgets and memory.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    registry: Registry,
    queue: mpsc::Sender<(EventRecord, Option<u64>)>,
    /// What was said lately, by content: the name of its Event.
    said: Arc<Mutex<HashMap<u64, String>>>,
    budgets: Arc<Mutex<HashMap<(String, Regarding), Budget>>>,
}

impl EventRecorder {
    /// A recorder, and the task that writes what [`EventRecorder::say`] queues, which the caller runs.
    pub fn new(registry: Registry, cancel: CancellationToken) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(QUEUE_EVENTS_MAX);
        let recorder = Self { registry, queue, said: Arc::default(), budgets: Arc::default() };
        let writer = recorder.clone();
        let writing = async move {
            let records = stream::unfold(waiting, |mut waiting| async {
                waiting.recv().await.map(|record| (record, waiting))
            });
            let work = records.for_each_concurrent(WRITES_MAX, |(record, fence)| {
                let writer = writer.clone();
                async move {
                    if let Err(status) = writer.record(&record, fence).await {
                        let (reason, about) = (&record.reason, &record.regarding.name);
                        tracing::debug!(reason, about, %status, "an Event was not recorded");
                    }
                }
            });
            let _ = cancel.run_until_cancelled(work).await;
        };
        (recorder, writing)
    }

    /// Queues an Event. It is dropped if too much is queued already.
    pub fn say(&self, record: EventRecord, fence: Option<u64>) {
        if let Err(mpsc::error::TrySendError::Full((record, _))) = self.queue.try_send((record, fence)) {
            tracing::warn!(
                reason = record.reason,
                about = record.regarding.name,
                "Event dropped: queue full"
            );
        }
    }

    /// Writes an Event, or folds it into the one that already says so.
    pub async fn record(&self, record: &EventRecord, fence: Option<u64>) -> Result<(), Status> {
        if !self.may_say(record) {
            return Ok(());
        }
        let options = WriteOptions { fence, ..WriteOptions::default() };
        let content = record.content();
        let known = self.said().get(&content).cloned();
        if let Some(name) = known {
            // A reporter who did not hear the answer tells it again.
            if name == record.name(0) || self.fold(record, &name, &options).await? {
                return Ok(());
            }
        }
        for attempt in 0..NAME_ATTEMPTS_MAX {
            let name = record.name(attempt);
            let value = record.to_value(&name);
            match self.registry.create(kind(), record.namespace(), value, &options).await {
                Ok(_) => {
                    self.remember(content, name);
                    return Ok(());
                }
                Err(status) if status.reason() == "AlreadyExists" => {
                    let there = self.registry.get(kind(), record.namespace(), &name).await;
                    if there.is_ok_and(|event| record.is_told_by(event.value())) {
                        self.remember(content, name);
                        return Ok(());
                    }
                }
                Err(status) => return Err(status),
            }
        }
        Err(Status::internal("too many Events about one object in one microsecond"))
    }

    /// Counts a repetition. `false` when the Event has expired meanwhile.
    async fn fold(&self, record: &EventRecord, name: &str, options: &WriteOptions) -> Result<bool, Status> {
        let target = Target::new(kind(), record.namespace(), name);
        let at = object::timestamp(record.at);
        let fold = |event: &mut Value| {
            event["count"] = Value::from(event["count"].as_i64().unwrap_or(1).saturating_add(1));
            event["lastTimestamp"] = Value::from(at.as_str());
            Ok(())
        };
        match self.registry.modify(target, options, fold).await {
            Ok(_) => Ok(true),
            Err(status) if status.reason() == "NotFound" => Ok(false),
            Err(status) => Err(status),
        }
    }

    fn said(&self) -> MutexGuard<'_, HashMap<u64, String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, content: u64, name: String) {
        let mut said = self.said();
        if said.len() >= SAID_MAX {
            // What is repeated after this begins a new Event, as after a change of leader.
            said.clear();
        }
        said.insert(content, name);
    }

    fn may_say(&self, record: &EventRecord) -> bool {
        let now = Instant::now();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= BUDGETS_MAX {
            // Whoever is silent for a while has a full budget again and need not be remembered.
            budgets.retain(|_, budget| now.duration_since(budget.refilled) < REFILL);
            if budgets.len() >= BUDGETS_MAX {
                budgets.clear();
            }
        }
        let key = (record.component.clone(), record.regarding.clone());
        let budget = budgets.entry(key).or_insert(Budget { left: BURST_MAX, refilled: now });
        while budget.left < BURST_MAX && now.duration_since(budget.refilled) >= REFILL {
            budget.left += 1;
            budget.refilled += REFILL;
        }
        if budget.left == BURST_MAX {
            budget.refilled = now;
        }
        let allowed = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        allowed
    }
}

fn kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Event").expect("the table of kinds has Event")
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::object_store::SharedStore;
    use crate::object_store::memory::MemoryStore;
    use crate::registry::{ListOptions, bootstrap_namespaces};

    fn record(message: &str, at: &str) -> EventRecord {
        EventRecord {
            regarding: Regarding {
                api_version: "v1".into(),
                kind: "Pod".into(),
                namespace: "default".into(),
                name: "hello".into(),
                uid: "u-1".into(),
                field_path: String::new(),
            },
            event_type: EventType::Warning,
            reason: "FailedScheduling".into(),
            message: message.into(),
            component: "default-scheduler".into(),
            host: String::new(),
            at: at.parse().expect("a time"),
        }
    }

    async fn recorder() -> (Registry, EventRecorder) {
        let store = SharedStore::new(MemoryStore::new());
        let registry = Registry::new(store, TaskTracker::new(), CancellationToken::new());
        bootstrap_namespaces(&registry).await.expect("namespaces");
        let (recorder, _) = EventRecorder::new(registry.clone(), CancellationToken::new());
        (registry, recorder)
    }

    async fn events(registry: &Registry) -> Vec<Value> {
        let list = registry.list(kind(), Some("default"), &ListOptions::default()).await.expect("list");
        list.items.iter().map(|event| event.value().clone()).collect()
    }

    #[tokio::test]
    async fn the_same_thing_said_twice_is_one_event_with_a_count() {
        let (registry, recorder) = recorder().await;
        for (message, at) in [
            ("no room", "2024-01-01T00:00:00Z"),
            ("no room", "2024-01-01T00:00:07Z"),
            ("no node", "2024-01-01T00:00:09Z"),
        ] {
            recorder.record(&record(message, at), None).await.expect("recorded");
        }
        let events = events(&registry).await;
        assert_eq!(events.len(), 2);
        let folded = events.iter().find(|event| event["message"] == "no room").expect("there");
        assert_eq!(folded["count"], 2);
        assert_eq!(folded["firstTimestamp"], "2024-01-01T00:00:00Z");
        assert_eq!(folded["lastTimestamp"], "2024-01-01T00:00:07Z");
        assert_eq!(folded["involvedObject"]["name"], "hello");
        assert_eq!(folded["source"]["component"], "default-scheduler");
        let name = object::name(folded).strip_prefix("hello.").expect("begins with the object's name");
        assert!(name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }

    #[tokio::test]
    async fn a_list_is_in_the_order_of_what_happened_and_retelling_changes_nothing() {
        let (registry, recorder) = recorder().await;
        let order = ["Scheduled", "Pulled", "Created", "Started"];
        for (at, message) in order.iter().enumerate() {
            let at = format!("2024-01-01T00:00:00.00000{at}Z");
            recorder.record(&record(message, &at), None).await.expect("recorded");
        }
        // The answer was not heard.
        recorder.record(&record("Scheduled", "2024-01-01T00:00:00.000000Z"), None).await.expect("recorded");
        // A leader that knows nothing of the first is told once more.
        let (successor, _) = EventRecorder::new(registry.clone(), CancellationToken::new());
        successor.record(&record("Pulled", "2024-01-01T00:00:00.000001Z"), None).await.expect("recorded");
        let events = events(&registry).await;
        let messages: Vec<_> = events.iter().map(|event| event["message"].as_str().expect("text")).collect();
        assert_eq!(messages, order);
        assert!(events.iter().all(|event| event["count"] == 1));
    }

    #[tokio::test]
    async fn a_talkative_reporter_is_cut_short() {
        let (registry, recorder) = recorder().await;
        for at in 0..BURST_MAX + 10 {
            recorder.record(&record(&format!("{at}"), "2024-01-01T00:00:00Z"), None).await.expect("ok");
        }
        assert_eq!(events(&registry).await.len(), BURST_MAX as usize);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let message = "ä".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(shorten(&message).len(), MESSAGE_BYTES_MAX);
        assert_eq!(shorten("short"), "short");
        assert_eq!(shorten(&format!("a{message}")).len(), MESSAGE_BYTES_MAX - 1);
    }
}
