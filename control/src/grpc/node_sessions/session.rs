//! One session, from Hello to its end.
//!
//! ```text
//!  Hello ─► (a session before it is closed) ─► Role ─┬─ follower: streams only
//!                                            ▲       └─ leader: register, PodSet, NodeNetwork, changes
//!                                            └────────── role changes
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::node::{
    Ack, FromNode, HeldAddresses, NodeNetwork, PodChange, PodRemoved, PodSet, Resync, Role, ToNode,
    from_node, to_node,
};
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::mailbox::{Mailbox, Notice};
use super::{NodeSessions, entrances, inbox, local_volumes, objects, route, uid};
use crate::leader::{Epoch, EpochReceiver};
use crate::reflector::pod_node;

/// How long a node may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A session on which nothing is heard for so long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Most messages between a mailbox and the connection: what is not in here is still told newest-first.
const OUTGOING_MAX: usize = 16;
/// The wait before a registration is tried again; it doubles up to the maximum.
const REGISTER_RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest such wait.
const REGISTER_RETRY_MAX: Duration = Duration::from_secs(2);

type Outgoing = mpsc::Sender<Result<ToNode, Status>>;

/// Takes the session out of the table when its task ends.
struct Registered {
    sessions: NodeSessions,
    node: String,
    mailbox: Arc<Mailbox>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.mailbox.closed.cancel();
        let mut mailboxes = self.sessions.mailboxes();
        if mailboxes.get(&self.node).is_some_and(|newest| Arc::ptr_eq(newest, &self.mailbox)) {
            mailboxes.remove(&self.node);
            self.sessions.inner.heartbeats.disconnected(&self.node);
        }
    }
}

impl NodeSessions {
    /// Begins a session with its Hello; the rest of it runs as a task.
    pub(super) async fn begin(
        &self,
        node: String,
        mut incoming: Streaming<FromNode>,
    ) -> Result<mpsc::Receiver<Result<ToNode, Status>>, Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the node did not say Hello in time"))??;
        let Some(FromNode { message: Some(from_node::Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a session must be Hello"));
        };
        if hello.node_name != node {
            let (said, is) = (hello.node_name, node);
            return Err(Status::permission_denied(format!("the certificate is of node {is}, not of {said}")));
        }
        let said: Value = serde_json::from_slice(&hello.node_json)
            .map_err(|error| Status::invalid_argument(format!("node_json is no JSON: {error}")))?;
        let mailbox = Arc::new(Mailbox::new(self.inner.cancel.child_token()));
        let registered = self.enter(node.clone(), mailbox.clone());
        tracing::info!(node, version = hello.agent_version, "node session begins");
        let (sender, receiver) = mpsc::channel(OUTGOING_MAX);
        let sessions = self.clone();
        self.inner.tasks.spawn(async move {
            let closed = mailbox.closed.clone();
            let end = tokio::select! {
                end = sessions.listen(&node, incoming, &mailbox) => end,
                () = sessions.tell(&node, &mailbox, sender) => "the node went away",
                () = sessions.follow_role(&node, &said, &mailbox) => "the replica stops",
                () = closed.cancelled() => "a newer session or the replica's stop",
            };
            drop(registered);
            tracing::info!(node, why = end, "node session ends");
        });
        Ok(receiver)
    }

    /// Puts the session into the table; one that the node had before is closed.
    fn enter(&self, node: String, mailbox: Arc<Mailbox>) -> Registered {
        if let Some(before) = self.mailboxes().insert(node.clone(), mailbox.clone()) {
            before.closed.cancel();
        }
        self.inner.heartbeats.beat(&node, Instant::now());
        Registered { sessions: self.clone(), node, mailbox }
    }

    /// Reads what the node says until the connection ends.
    async fn listen(
        &self,
        node: &str,
        mut incoming: Streaming<FromNode>,
        mailbox: &Arc<Mailbox>,
    ) -> &'static str {
        let (messages, waiting) = mpsc::channel(inbox::MESSAGES_MAX);
        let writing = inbox::run(self.clone(), node.to_owned(), waiting, mailbox.clone());
        let reading = async {
            loop {
                let message = match tokio::time::timeout(SILENCE_MAX, incoming.message()).await {
                    Err(_) => return "silence",
                    Ok(Err(_)) => return "the connection broke",
                    Ok(Ok(None)) => return "the node ended it",
                    Ok(Ok(Some(message))) => message,
                };
                self.inner.heartbeats.beat(node, Instant::now());
                match message.message {
                    None | Some(from_node::Message::Heartbeat(_) | from_node::Message::Hello(_)) => {}
                    Some(from_node::Message::Usage(report)) => {
                        self.inner.usage.heard(node, report, Instant::now());
                    }
                    Some(from_node::Message::TokenRequest(request)) => {
                        self.answer_token(node, request, mailbox).await;
                    }
                    Some(from_node::Message::NetworkWanted(wanted)) => mailbox.network_wanted(wanted.objects),
                    // The queue is full only while the store is slow; the node waits like everybody.
                    Some(message) => {
                        if messages.send(message).await.is_err() {
                            return "the writer ended";
                        }
                    }
                }
            }
        };
        tokio::select! {
            end = reading => end,
            () = writing => "the writer ended",
        }
    }

    /// Follows this replica's role; registers the node whenever this replica begins to lead.
    async fn follow_role(&self, node: &str, said: &Value, mailbox: &Mailbox) {
        let mut epochs: EpochReceiver = self.inner.epochs.clone();
        // The status in Hello is of the moment of Hello. A later leader must not go back to it.
        let mut said_just_now = true;
        loop {
            let epoch = *epochs.borrow_and_update();
            mailbox.role(epoch);
            let with_status = std::mem::take(&mut said_just_now);
            let register = async {
                if let Some(epoch) = epoch {
                    self.register_until_done(node, said, with_status, epoch).await;
                    mailbox.set_registered();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                changed = epochs.changed() => if changed.is_err() { return },
                () = register => {}
            }
        }
    }

    async fn register_until_done(&self, node: &str, said: &Value, with_status: bool, epoch: Epoch) {
        let mut wait = REGISTER_RETRY_MIN;
        while let Err(status) = self.register(node, said, with_status, epoch).await {
            tracing::warn!(node, %status, "the node is not registered yet; trying again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REGISTER_RETRY_MAX);
        }
    }

    /// Tells the node what its mailbox holds until it is no longer there.
    async fn tell(&self, node: &str, mailbox: &Mailbox, outgoing: Outgoing) {
        loop {
            // The place first, then the notice: what is told is what is true when it leaves.
            let Ok(place) = outgoing.reserve().await else { return };
            let notice = tokio::select! {
                notice = mailbox.next() => notice,
                () = outgoing.closed() => return,
            };
            if let Notice::Object { epoch, reference, is_entitled } = &notice {
                let message = self.object_message(*epoch, reference, *is_entitled).await;
                place.send(Ok(ToNode { message: Some(message) }));
                continue;
            }
            if self.tell_objects(node, mailbox, &notice, &outgoing).await.is_err() {
                return;
            }
            match self.message(node, notice) {
                Some(message) => place.send(Ok(ToNode { message: Some(message) })),
                None => drop(place),
            }
        }
    }

    /// Tells the objects that the node has to have before it hears of these pods.
    async fn tell_objects(
        &self,
        node: &str,
        mailbox: &Mailbox,
        notice: &Notice,
        outgoing: &Outgoing,
    ) -> Result<(), mpsc::error::SendError<Result<ToNode, Status>>> {
        let mut namespaces = BTreeSet::new();
        let (epoch, references, is_all) = match notice {
            Notice::PodSet(epoch) => {
                mailbox.entitle(*epoch, entrances::HOLDER, self.certificates_for(node));
                mailbox.entitle(*epoch, local_volumes::HOLDER, self.volumes_on(node));
                for pod in self.inner.pods.indexed(node) {
                    namespaces.insert(pod.namespace().to_owned());
                    let references = self.needs_of(&pod).await;
                    mailbox.entitle(*epoch, &uid(&pod), references);
                }
                // Without the epoch nothing is said: the next role starts everything over.
                let Some(references) = mailbox.entitled(*epoch) else { return Ok(()) };
                (*epoch, references, true)
            }
            Notice::Pod { epoch, namespace, name, uid: wanted } => {
                let pod = self.inner.pods.get(namespace, name);
                let pod = pod.filter(|pod| uid(pod) == *wanted && pod_node(pod).as_deref() == Some(node));
                let references = match pod {
                    Some(pod) => {
                        namespaces.insert(namespace.clone());
                        self.needs_of(&pod).await
                    }
                    None => BTreeSet::new(),
                };
                (*epoch, mailbox.entitle(*epoch, wanted, references), false)
            }
            _ => return Ok(()),
        };
        if let Some(policies) = self.policies_of(epoch, &namespaces).await {
            outgoing.send(Ok(ToNode { message: Some(policies) })).await?;
        }
        for reference in &references {
            let message = self.object_message(epoch, reference, true).await;
            outgoing.send(Ok(ToNode { message: Some(message) })).await?;
        }
        if is_all {
            let index = objects::index(epoch, &references);
            outgoing.send(Ok(ToNode { message: Some(index) })).await?;
        }
        Ok(())
    }

    fn message(&self, node: &str, notice: Notice) -> Option<to_node::Message> {
        Some(match notice {
            Notice::Role(epoch) => to_node::Message::Role(Role {
                leader: epoch.is_some(),
                epoch: epoch.map_or(0, |epoch| epoch.0),
                member_name: self.inner.member_name.clone(),
            }),
            Notice::PodSet(epoch) => {
                let pods = self.inner.pods.indexed(node);
                let pods_json = pods.iter().map(|pod| pod.json()).collect();
                to_node::Message::PodSet(PodSet { epoch: epoch.0, pods_json })
            }
            Notice::Object { .. } => return None,
            Notice::Network(epoch) => to_node::Message::NodeNetwork(self.network(node, epoch)?),
            Notice::NetworkIndex(epoch) => self.network_index(epoch),
            Notice::NetworkObjects { epoch, keys } => self.network_changes(epoch, &keys),
            Notice::Resync => to_node::Message::Resync(Resync {}),
            Notice::Open(request) => to_node::Message::OpenStream(request),
            Notice::Token(response) => to_node::Message::Token(response),
            Notice::Ack(sequence) => to_node::Message::Ack(Ack { sequence }),
            Notice::Pod { epoch, namespace, name, uid: wanted } => {
                let pod = self.inner.pods.get(&namespace, &name);
                match pod.filter(|pod| uid(pod) == wanted && pod_node(pod).as_deref() == Some(node)) {
                    Some(pod) => {
                        to_node::Message::PodChange(PodChange { epoch: epoch.0, pod_json: pod.json() })
                    }
                    None => to_node::Message::PodRemoved(PodRemoved {
                        epoch: epoch.0,
                        namespace,
                        name,
                        uid: wanted,
                    }),
                }
            }
        })
    }

    /// The routes as the node needs them; `None` until it has a range of its own.
    fn network(&self, node: &str, epoch: Epoch) -> Option<NodeNetwork> {
        let own = route(&*self.inner.nodes.get("", node)?)?;
        let peers = self.routes().values().filter(|peer| peer.node_name != node).cloned().collect();
        let held = self.holders(epoch).map(|holders| {
            let own = holders.iter().filter(|(_, holder)| *holder == node);
            HeldAddresses { addresses: own.map(|(address, _)| address.to_string()).collect() }
        });
        Some(NodeNetwork {
            epoch: epoch.0,
            held,
            ingress: self.is_entrance(node),
            pod_cidr: own.pod_cidr,
            peers,
            cluster_cidr: self.inner.range.cluster().to_string(),
            service_cidr: self.inner.registry.service_ranges().addresses.to_string(),
        })
    }
}
