//! What a node says to the leader: statuses, ends of pods, Events, made into writes.
//!
//! Owns one bounded queue per session. What waits is taken in batches in which only the newest status of a
//! pod counts, and different objects are written at once, so a node that starts a hundred pods needs few
//! rounds. A sequence is acknowledged when what it said (or something newer) is stored, or when it can never
//! be stored (the pod is gone, the text is no status): then there is nothing left to say it about.

use std::time::Duration;

use api::{Kind, Status, object};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use proto::node::{Event, NodeStatus, ObjectReference, PodStatus, PodTerminated, from_node};
use serde_json::Value;
use tokio::sync::mpsc;

use super::mailbox::{ACKS_MAX, Mailbox};
use super::register::{self, node_kind};
use super::{NodeSessions, mirrors};
use crate::leader::{Epoch, EpochReceiver};
use crate::registry::{DeleteOptions, EventRecord, EventType, Regarding, Target, WriteOptions};

/// Most messages waiting to be written.
pub(super) const MESSAGES_MAX: usize = 256;
/// Most messages in one batch.
const BATCH_MAX: usize = 64;
/// Most writes of one node at once.
const WRITES_MAX: usize = 16;
/// The wait before a write that the store could not take is repeated; it doubles up to the maximum.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// A write to be made, with everything that it settles.
#[derive(Debug)]
struct Job {
    /// Writes about the same thing: the newer one replaces the older one.
    about: Option<String>,
    message: from_node::Message,
    sequences: Vec<u64>,
}

/// Writes what a node says, until its session ends.
pub(super) async fn run(
    sessions: NodeSessions,
    node: String,
    mut messages: mpsc::Receiver<from_node::Message>,
    mailbox: std::sync::Arc<Mailbox>,
) {
    let mut received = Vec::with_capacity(BATCH_MAX);
    while messages.recv_many(&mut received, BATCH_MAX).await > 0 {
        let epoch = *sessions.inner.epochs.borrow();
        // Only the leader writes; the node says it all again to the next one.
        let Some(epoch) = epoch else {
            received.clear();
            continue;
        };
        let jobs = coalesce(received.drain(..));
        let writer = Writer { sessions: &sessions, node: &node, mailbox: &mailbox, epoch };
        stream::iter(jobs)
            .for_each_concurrent(WRITES_MAX, |job| {
                let (writer, mailbox) = (&writer, &mailbox);
                async move {
                    if writer.write_until_stored(&job.message).await {
                        for sequence in job.sequences {
                            mailbox.ack(epoch, sequence);
                        }
                    }
                }
            })
            .await;
        // A node that does not take its acknowledgements is not read from.
        while mailbox.acks() > ACKS_MAX / 2 && !mailbox.closed.is_cancelled() {
            tokio::time::sleep(RETRY_MIN).await;
        }
    }
}

fn coalesce(messages: impl Iterator<Item = from_node::Message>) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for message in messages {
        let (about, sequence) = match &message {
            from_node::Message::PodStatus(status) => (Some(format!("pod {}", status.uid)), status.sequence),
            from_node::Message::PodTerminated(end) => (Some(format!("pod {}", end.uid)), end.sequence),
            from_node::Message::NodeStatus(status) => (Some("node".to_owned()), status.sequence),
            from_node::Message::Event(event) => (None, event.sequence),
            from_node::Message::MirrorPod(wish) => {
                (Some(format!("mirror {}/{}", wish.namespace, wish.name)), wish.sequence)
            }
            from_node::Message::TokenRequest(_)
            | from_node::Message::NetworkWanted(_)
            | from_node::Message::Hello(_)
            | from_node::Message::Heartbeat(_)
            | from_node::Message::Usage(_) => continue,
        };
        match jobs.iter_mut().find(|job| about.is_some() && job.about == about) {
            Some(job) => {
                // The end of a pod is the last word on it.
                if !matches!(job.message, from_node::Message::PodTerminated(_)) {
                    job.message = message;
                }
                job.sequences.push(sequence);
            }
            None => jobs.push(Job { about, message, sequences: vec![sequence] }),
        }
    }
    jobs
}

struct Writer<'a> {
    sessions: &'a NodeSessions,
    node: &'a str,
    mailbox: &'a Mailbox,
    epoch: Epoch,
}

impl Writer<'_> {
    /// Repeats while the store cannot take it. `false`: this replica no longer leads.
    async fn write_until_stored(&self, message: &from_node::Message) -> bool {
        let mut epochs: EpochReceiver = self.sessions.inner.epochs.clone();
        let mut wait = RETRY_MIN;
        loop {
            let Err(status) = self.write(message).await else { return true };
            if !is_transient(&status) {
                tracing::warn!(node = self.node, %status, "what the node said cannot be stored; dropped");
                return true;
            }
            tracing::debug!(node = self.node, %status, "what the node said is not stored yet");
            tokio::select! {
                _ = epochs.wait_for(|now| *now != Some(self.epoch)) => return false,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
            }
        }
    }

    async fn write(&self, message: &from_node::Message) -> Result<(), Status> {
        match message {
            from_node::Message::PodStatus(said) => self.pod_status(said).await,
            from_node::Message::PodTerminated(said) => self.pod_terminated(said).await,
            from_node::Message::NodeStatus(said) => self.node_status(said).await,
            from_node::Message::Event(said) => self.event(said).await,
            from_node::Message::MirrorPod(said) => self.sessions.mirror(self.node, said, self.epoch).await,
            from_node::Message::Hello(_)
            | from_node::Message::Heartbeat(_)
            | from_node::Message::Usage(_)
            | from_node::Message::TokenRequest(_)
            | from_node::Message::NetworkWanted(_) => Ok(()),
        }
    }

    fn options(&self) -> WriteOptions {
        WriteOptions { fence: self.epoch.fence(), ..WriteOptions::default() }
    }

    /// Whether the object is the pod that the node speaks of: a static pod by what its mirror shows.
    fn is_meant(&self, pod: &Value, uid: &str) -> bool {
        mirrors::shown(pod).unwrap_or(object::uid(pod)) == uid && pod["spec"]["nodeName"] == self.node
    }

    async fn pod_status(&self, said: &PodStatus) -> Result<(), Status> {
        let status = parse(&said.status_json, "pod status")?;
        let target = Target::status(pod_kind(), &said.namespace, &said.name);
        let written = self
            .sessions
            .inner
            .registry
            .modify(target, &self.options(), |pod| {
                // Another life of the name, or another node's pod: nothing that this node may speak of.
                if self.is_meant(pod, &said.uid) {
                    set_status(pod, status.clone());
                }
                Ok(())
            })
            .await;
        unless_gone(written.map(|_| ()))
    }

    async fn pod_terminated(&self, said: &PodTerminated) -> Result<(), Status> {
        let registry = &self.sessions.inner.registry;
        let pod = match registry.get(pod_kind(), &said.namespace, &said.name).await {
            Err(status) if status.reason() == "NotFound" => return Ok(()),
            pod => pod?,
        };
        let pod = pod.value();
        // A mirror pod is removed when its node asks for that, not when what it shows has ended.
        let is_mirror = mirrors::shown(pod).is_some();
        if !self.is_meant(pod, &said.uid) {
            return Ok(());
        }
        let is_deleted = object::deletion_timestamp(pod).is_some();
        // Finalizers keep the object: whoever set them wants to see how it ended.
        if (!is_deleted || object::finalizers(pod).next().is_some()) && !said.status_json.is_empty() {
            self.pod_status(&PodStatus {
                sequence: said.sequence,
                namespace: said.namespace.clone(),
                name: said.name.clone(),
                uid: said.uid.clone(),
                status_json: said.status_json.clone(),
            })
            .await?;
        }
        if !is_deleted || is_mirror {
            return Ok(());
        }
        let options = DeleteOptions { fence: self.epoch.fence(), ..DeleteOptions::now(&said.uid) };
        let target = Target::new(pod_kind(), &said.namespace, &said.name);
        match registry.delete(target, &options).await {
            Err(status) if status.reason() == "Conflict" => Ok(()),
            deleted => unless_gone(deleted.map(|_| ())),
        }
    }

    async fn node_status(&self, said: &NodeStatus) -> Result<(), Status> {
        let status = parse(&said.status_json, "node status")?;
        let target = Target::status(node_kind(), "", self.node);
        let change = |node: &mut Value| {
            register::set_status(node, &status);
            Ok(())
        };
        match self.sessions.inner.registry.modify(target, &self.options(), change).await {
            // Its registration is still under way: the status must not get lost before it.
            Err(status) if status.reason() == "NotFound" && !self.mailbox.is_registered() => {
                Err(Status::service_unavailable("the node is not registered yet").retry_after(1))
            }
            written => unless_gone(written.map(|_| ())),
        }
    }

    async fn event(&self, said: &Event) -> Result<(), Status> {
        let record = event_record(said, self.node);
        self.sessions.inner.events.record(&record, self.epoch.fence()).await
    }
}

pub(super) fn pod_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod")
}

pub(super) fn parse(json: &[u8], what: &str) -> Result<Value, Status> {
    match serde_json::from_slice::<Value>(json) {
        Ok(value) if value.is_object() => Ok(value),
        _ => Err(Status::bad_request(format!("the {what} is no JSON object"))),
    }
}

/// The node is the author of the status, except of the condition that the control plane keeps.
fn set_status(pod: &mut Value, mut status: Value) {
    let is_scheduled = |condition: &&Value| condition["type"] == "PodScheduled";
    let kept = pod["status"]["conditions"].as_array().into_iter().flatten().find(is_scheduled).cloned();
    let said = status["conditions"].as_array().into_iter().flatten();
    let conditions: Vec<Value> =
        said.filter(|condition| condition["type"] != "PodScheduled").cloned().chain(kept).collect();
    status["conditions"] = Value::from(conditions);
    pod["status"] = status;
}

fn event_record(said: &Event, node: &str) -> EventRecord {
    let about = said.regarding.clone().unwrap_or_else(|| ObjectReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: node.to_owned(),
        ..ObjectReference::default()
    });
    EventRecord {
        regarding: Regarding {
            api_version: about.api_version,
            kind: about.kind,
            namespace: about.namespace,
            name: about.name,
            uid: about.uid,
            field_path: about.field_path,
        },
        event_type: if said.r#type == "Warning" { EventType::Warning } else { EventType::Normal },
        reason: said.reason.clone(),
        message: said.message.clone(),
        component: said.component.clone(),
        host: node.to_owned(),
        at: said.time.parse().unwrap_or_else(|_| Timestamp::now()),
    }
}

pub(super) fn unless_gone(written: Result<(), Status>) -> Result<(), Status> {
    match written {
        Err(status) if status.reason() == "NotFound" => Ok(()),
        written => written,
    }
}

/// Whether the same write may succeed later.
fn is_transient(status: &Status) -> bool {
    matches!(status.code(), 429 | 503 | 504) || status.retry_after_s().is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(uid: &str, sequence: u64) -> from_node::Message {
        from_node::Message::PodStatus(PodStatus { uid: uid.into(), sequence, ..PodStatus::default() })
    }

    #[test]
    fn only_the_newest_status_of_a_pod_is_written_and_all_are_settled() {
        let end = from_node::Message::PodTerminated(PodTerminated {
            uid: "b".into(),
            sequence: 4,
            ..Default::default()
        });
        let event = |sequence| from_node::Message::Event(Event { sequence, ..Event::default() });
        let messages =
            [status("a", 1), event(2), status("b", 3), end, status("a", 5), event(6), status("b", 7)];
        let jobs = coalesce(messages.into_iter());
        let sequences: Vec<_> = jobs.iter().map(|job| job.sequences.clone()).collect();
        assert_eq!(sequences, [vec![1, 5], vec![2], vec![3, 4, 7], vec![6]]);
        assert!(matches!(&jobs[0].message, from_node::Message::PodStatus(status) if status.sequence == 5));
        assert!(matches!(&jobs[2].message, from_node::Message::PodTerminated(_)));
    }

    #[test]
    fn the_condition_of_the_control_plane_survives_the_nodes_status() {
        let mut pod = json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"},
        ]}});
        set_status(
            &mut pod,
            json!({"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "False"},
            ]}),
        );
        assert_eq!(
            pod["status"],
            json!({"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"},
            ]})
        );
    }
}
