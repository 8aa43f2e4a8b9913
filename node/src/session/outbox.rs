//! What the node has to tell the leader: pod statuses, node status, events. One for all sessions.
//!
//! Owns the sequence numbers, and the last statuses of pods on disk ([`Ends`]). Keeps the newest message per pod (acknowledged or not, so that a new leader
//! can be told everything), the newest node status, and unacknowledged events in a bounded ring. Whoever
//! speaks with the leader takes from here with a cursor of its own; nothing is lost when that session ends.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use proto::node::{self as wire, from_node};
use tokio::sync::Notify;

use super::ends::Ends;

/// Unacknowledged events kept at most; the oldest go first.
const EVENTS_MAX: usize = 1_000;

/// Times of events are told in these.
const EVENT_TIME_STEP: SignedDuration = SignedDuration::from_micros(1);

/// The agent as it speaks of itself, as everybody's tools expect.
pub(crate) const KUBELET: &str = "kubelet";

/// How an event is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Normal,
    Warning,
}

/// An event before it is numbered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EventRecord {
    /// Who says it: `kubelet` for the agent, `kube-proxy` for what keeps Services.
    pub(crate) component: &'static str,
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) field_path: String,
    pub(crate) event_kind: EventKind,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// An ordinary event about the node itself.
pub(crate) fn node_record(node_name: &str, reason: &str, message: String) -> EventRecord {
    EventRecord {
        component: KUBELET,
        api_version: "",
        kind: "Node",
        namespace: String::new(),
        name: node_name.to_owned(),
        uid: node_name.to_owned(),
        field_path: String::new(),
        event_kind: EventKind::Normal,
        reason: reason.to_owned(),
        message,
    }
}

/// Which pod a message is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The outbox.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    ends: Ends,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    sequence: u64,
    /// The time of the newest event.
    event_time: Timestamp,
    /// By pod uid.
    pods: BTreeMap<String, PodMessage>,
    node: Option<NodeMessage>,
    events: VecDeque<wire::Event>,
    /// What is asked about mirror pods, by namespace and name, until it is done.
    mirrors: BTreeMap<(String, String), wire::MirrorPod>,
}

#[derive(Debug)]
struct PodMessage {
    sequence: u64,
    key: PodKey,
    status: Bytes,
    terminated: bool,
    acknowledged: bool,
}

#[derive(Debug)]
struct NodeMessage {
    sequence: u64,
    status: Bytes,
    acknowledged: bool,
}

impl Outbox {
    /// One that keeps last statuses of pods in `dir`, and tells those that an agent before this one did not get rid of, but
    /// for pods of which something is left (`is_left`): they are told when they end.
    pub(crate) fn open(dir: &Path, is_left: impl Fn(&str) -> io::Result<bool>) -> io::Result<Self> {
        let (ends, left) = Ends::open(dir)?;
        let outbox = Self { ends, ..Self::default() };
        for end in left {
            if is_left(&end.key().uid)? {
                continue;
            }
            let status = Bytes::copy_from_slice(end.status.get().as_bytes());
            outbox.pod_message(end.key(), status, true);
        }
        Ok(outbox)
    }

    /// The pod's newest status. Ignored once the pod was told to be terminated.
    pub(crate) fn pod_status(&self, key: PodKey, status: Bytes) {
        self.pod_message(key, status, false);
    }

    /// The pod is about to be removed: with this status its end will be told, by this agent or by one after it.
    pub(crate) fn keep_end(&self, key: &PodKey, status: &[u8]) -> io::Result<()> {
        self.ends.keep(key, status)
    }

    /// Whether a pod's end is told and not stored yet.
    pub(crate) fn is_ended(&self, uid: &str) -> bool {
        self.lock().pods.get(uid).is_some_and(|message| message.terminated)
    }

    /// Nothing of the pod is left.
    pub(crate) fn pod_terminated(&self, key: PodKey, status: Bytes) {
        self.pod_message(key, status, true);
    }

    fn pod_message(&self, key: PodKey, status: Bytes, terminated: bool) {
        let mut state = self.lock();
        if state.pods.get(&key.uid).is_some_and(|m| m.terminated && !terminated) {
            return;
        }
        let sequence = state.next();
        state
            .pods
            .insert(key.uid.clone(), PodMessage { sequence, key, status, terminated, acknowledged: false });
        drop(state);
        self.changed.notify_waiters();
    }

    /// What should become of a mirror pod; the newest wish about a name counts.
    pub(crate) fn mirror(&self, mut wish: wire::MirrorPod) {
        let mut state = self.lock();
        wish.sequence = state.next();
        state.mirrors.insert((wish.namespace.clone(), wish.name.clone()), wish);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Tells a pod's newest status once more: the object that it is for was not there.
    pub(crate) fn retell(&self, uid: &str) {
        let mut state = self.lock();
        let sequence = state.next();
        if let Some(pod) = state.pods.get_mut(uid) {
            pod.sequence = sequence;
            pod.acknowledged = false;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether the leader has stored everything that it was told.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.events.is_empty()
            && state.mirrors.is_empty()
            && state.pods.values().all(|pod| pod.acknowledged)
            && state.node.as_ref().is_none_or(|node| node.acknowledged)
    }

    /// The node's newest status.
    pub(crate) fn node_status(&self, status: Bytes) {
        let mut state = self.lock();
        let sequence = state.next();
        state.node = Some(NodeMessage { sequence, status, acknowledged: false });
        drop(state);
        self.changed.notify_waiters();
    }

    /// An event, at the present time. Every one has a time of its own: what was said first is shown first.
    pub(crate) fn event(&self, event: EventRecord) {
        let mut state = self.lock();
        let sequence = state.next();
        state.event_time = Timestamp::now().max(state.event_time + EVENT_TIME_STEP);
        let time = format!("{:.6}", state.event_time);
        if state.events.len() == EVENTS_MAX {
            state.events.pop_front();
        }
        let kind = match event.event_kind {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        };
        tracing::debug!(pod = %event.name, reason = %event.reason, message = %event.message, "event");
        state.events.push_back(wire::Event {
            sequence,
            regarding: Some(wire::ObjectReference {
                api_version: event.api_version.to_owned(),
                kind: event.kind.to_owned(),
                namespace: event.namespace,
                name: event.name,
                uid: event.uid,
                field_path: event.field_path,
            }),
            r#type: kind.to_owned(),
            reason: event.reason,
            message: event.message,
            component: event.component.to_owned(),
            time,
        });
        drop(state);
        self.changed.notify_waiters();
    }

    /// The leader has stored a message.
    pub(crate) fn acknowledge(&self, sequence: u64) {
        let mut state = self.lock();
        if let Some(node) = state.node.as_mut().filter(|n| n.sequence == sequence) {
            node.acknowledged = true;
        } else if let Some(at) = state.events.iter().position(|e| e.sequence == sequence) {
            state.events.remove(at);
        } else if let Some(key) =
            state.mirrors.iter().find(|(_, m)| m.sequence == sequence).map(|(k, _)| k.clone())
        {
            state.mirrors.remove(&key);
        } else if let Some(pod) = state.pods.values_mut().find(|m| m.sequence == sequence) {
            pod.acknowledged = true;
            if pod.terminated {
                let uid = pod.key.uid.clone();
                state.pods.remove(&uid);
                self.ends.forget(&uid);
            }
        }
    }

    /// The pod is gone from the store and from the node: nothing needs to be told about it.
    pub(crate) fn forget_pod(&self, uid: &str) {
        let mut state = self.lock();
        if state.pods.get(uid).is_some_and(|m| m.terminated) {
            state.pods.remove(uid);
            self.ends.forget(uid);
        }
    }

    /// Messages with a sequence above `after`, in order. With `everything`, statuses that an earlier leader
    /// has acknowledged are told again.
    pub(crate) fn take_after(&self, after: u64, everything: bool) -> Vec<(u64, from_node::Message)> {
        let state = self.lock();
        let mut messages: Vec<(u64, from_node::Message)> = Vec::new();
        let due = |sequence: u64, acknowledged: bool| sequence > after && (everything || !acknowledged);
        if let Some(node) = state.node.as_ref().filter(|n| due(n.sequence, n.acknowledged)) {
            let message = wire::NodeStatus { sequence: node.sequence, status_json: node.status.clone() };
            messages.push((node.sequence, from_node::Message::NodeStatus(message)));
        }
        for pod in state.pods.values().filter(|p| due(p.sequence, p.acknowledged)) {
            messages.push((pod.sequence, pod.message()));
        }
        for event in state.events.iter().filter(|e| e.sequence > after) {
            messages.push((event.sequence, from_node::Message::Event(event.clone())));
        }
        for mirror in state.mirrors.values().filter(|m| m.sequence > after) {
            messages.push((mirror.sequence, from_node::Message::MirrorPod(mirror.clone())));
        }
        messages.sort_by_key(|(sequence, _)| *sequence);
        messages
    }

    /// Resolves when something was added after the call. Take first, then wait, then take again.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the outbox panics")
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

impl PodMessage {
    fn message(&self) -> from_node::Message {
        let PodKey { namespace, name, uid } = self.key.clone();
        let (sequence, status_json) = (self.sequence, self.status.clone());
        if self.terminated {
            from_node::Message::PodTerminated(wire::PodTerminated {
                sequence,
                namespace,
                name,
                uid,
                status_json,
            })
        } else {
            from_node::Message::PodStatus(wire::PodStatus { sequence, namespace, name, uid, status_json })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uid: &str) -> PodKey {
        PodKey { namespace: "default".into(), name: uid.into(), uid: uid.into() }
    }

    fn event(reason: &str) -> EventRecord {
        EventRecord {
            component: KUBELET,
            api_version: "v1",
            kind: "Pod",
            namespace: "default".into(),
            name: "p".into(),
            uid: "u".into(),
            field_path: String::new(),
            event_kind: EventKind::Normal,
            reason: reason.into(),
            message: String::new(),
        }
    }

    fn sequences(outbox: &Outbox, after: u64, everything: bool) -> Vec<u64> {
        outbox.take_after(after, everything).into_iter().map(|(s, _)| s).collect()
    }

    #[test]
    fn an_end_that_nobody_stored_is_told_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let ends = dir.path().join("ends");
        let none_left = |_: &str| Ok(false);
        let outbox = Outbox::open(&ends, none_left).unwrap();
        for uid in ["a", "b"] {
            outbox.keep_end(&key(uid), b"{\"phase\": \"Failed\"}").unwrap();
        }
        assert!(!outbox.is_ended("a"), "it may still be there");
        std::fs::write(ends.join("c.tmp"), "{").unwrap();

        let next = Outbox::open(&ends, |uid| Ok(uid == "b")).unwrap();
        assert!(next.is_ended("a") && !next.is_ended("b"));
        let told = next.take_after(0, false);
        let [(sequence, from_node::Message::PodTerminated(end))] = &told[..] else { panic!("{told:?}") };
        assert_eq!((end.uid.as_str(), &end.status_json[..]), ("a", &b"{\"phase\": \"Failed\"}"[..]));
        next.acknowledge(*sequence);
        next.pod_terminated(key("b"), Bytes::from_static(b"{}"));
        next.forget_pod("b");
        assert_eq!(std::fs::read_dir(&ends).unwrap().count(), 0);
    }

    #[test]
    fn newest_status_per_pod_wins() {
        let outbox = Outbox::default();
        outbox.pod_status(key("a"), Bytes::from("1"));
        outbox.pod_status(key("b"), Bytes::from("2"));
        outbox.pod_status(key("a"), Bytes::from("3"));
        assert_eq!(sequences(&outbox, 0, false), [2, 3]);
        assert_eq!(sequences(&outbox, 2, false), [3]);
    }

    #[test]
    fn what_was_said_first_has_the_earlier_time() {
        let outbox = Outbox::default();
        (0..1_000).for_each(|_| outbox.event(event("Pulled")));
        let state = outbox.lock();
        assert!(state.events.iter().is_sorted_by(|a, b| a.time < b.time));
    }

    #[test]
    fn a_new_leader_hears_acknowledged_statuses_but_not_acknowledged_events() {
        let outbox = Outbox::default();
        outbox.pod_status(key("a"), Bytes::from("1"));
        outbox.event(event("Pulled"));
        outbox.event(event("Created"));
        outbox.node_status(Bytes::from("n"));
        for sequence in [1, 2, 4] {
            outbox.acknowledge(sequence);
        }
        assert_eq!(sequences(&outbox, 0, false), [3]);
        assert_eq!(sequences(&outbox, 0, true), [1, 3, 4]);
    }

    #[test]
    fn termination_is_the_last_word_and_forgotten_once_stored() {
        let outbox = Outbox::default();
        outbox.pod_terminated(key("a"), Bytes::from("1"));
        outbox.pod_status(key("a"), Bytes::from("2"));
        assert_eq!(sequences(&outbox, 0, true), [1]);
        outbox.acknowledge(1);
        assert!(sequences(&outbox, 0, true).is_empty());
    }

    #[test]
    fn events_are_bounded() {
        let outbox = Outbox::default();
        for _ in 0..EVENTS_MAX + 5 {
            outbox.event(event("BackOff"));
        }
        let kept = sequences(&outbox, 0, false);
        assert_eq!((kept.len(), kept[0]), (EVENTS_MAX, 6));
    }
}
