//! One session with one replica: dial, speak, start over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::references::{Reference, ReferenceKind};
use k8s_openapi::api::core::v1::Pod;
use proto::node::node_sessions_client::NodeSessionsClient;
use proto::node::{self as wire, FromNode, ToNode, from_node, to_node};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::Shared;
use crate::network::cluster::{Key, Kind};
use crate::network::{Peer, Topology};
use crate::pods::dispatcher::Command;
use crate::streaming;

/// Waits between dials: short enough that a fail-over is not waited for.
const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(50);
const DIAL_BACKOFF_MAX: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A replica that answers neither is given up: its host may be cut off without a word.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages on their way to a replica; the session waits when it is full.
const OUTGOING_MAX: usize = 64;
/// One message from the leader may carry every pod of a node.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Most objects of the network asked for in one message.
const WANTED_MAX: usize = 4096;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot reach it: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("it answered {}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("it closed the session")]
    Closed,
    #[error("the node agent is stopping")]
    Stopping,
}

/// Keeps a session with one replica for ever.
pub(super) async fn keep_session(shared: Arc<Shared>, address: SocketAddr) {
    let mut backoff = DIAL_BACKOFF_MIN;
    let mut told = String::new();
    loop {
        let began = tokio::time::Instant::now();
        let error = match Session::run(&shared, address).await {
            Err(error) => error,
            Ok(()) => SessionError::Closed,
        };
        shared.leadership.lost(address);
        if began.elapsed() > DIAL_BACKOFF_MAX {
            backoff = DIAL_BACKOFF_MIN;
            told.clear();
        }
        let words = with_sources(&error);
        // Once per cause: a replica that is down for a day is not news every second.
        if words == told {
            tracing::debug!(replica = %address, error = %words, "no session");
        } else {
            tracing::warn!(replica = %address, error = %words, "no session with a control-plane replica; dialling on");
            told = words;
        }
        let jitter = rand::random_range(0.5..1.0);
        tokio::time::sleep(backoff.mul_f64(jitter)).await;
        backoff = (backoff * 2).min(DIAL_BACKOFF_MAX);
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        let text = next.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = next.source();
    }
    words
}

struct Session {
    shared: Arc<Shared>,
    address: SocketAddr,
    client: NodeSessionsClient<Channel>,
    outgoing: mpsc::Sender<FromNode>,
    /// Set while this replica leads: the last message of the outbox that it was sent, and whether it must be
    /// told everything.
    cursor: Option<Cursor>,
}

#[derive(Debug, Clone, Copy)]
struct Cursor {
    sent: u64,
    everything: bool,
    /// The last question for a token that it was sent.
    asked: u64,
}

impl Session {
    async fn run(shared: &Arc<Shared>, address: SocketAddr) -> Result<(), SessionError> {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(shared.tls.clone())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await?;
        let mut client = NodeSessionsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, receiver) = mpsc::channel(OUTGOING_MAX);
        let hello = wire::Hello {
            node_name: shared.config.node_name.clone(),
            node_json: (shared.node_json)(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        outgoing.try_send(envelope(from_node::Message::Hello(hello))).expect("the queue is empty");
        let mut incoming = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        let mut session = Self { shared: Arc::clone(shared), address, client, outgoing, cursor: None };
        let mut heartbeat = tokio::time::interval(shared.config.heartbeat_interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut usage = shared.usage.clone();
        usage.mark_changed();
        loop {
            let (changed, asked) = (shared.outbox.changed(), shared.tokens.changed());
            session.drain().await?;
            tokio::select! {
                message = incoming.message() => match message? {
                    Some(message) => session.receive(message).await?,
                    None => return Err(SessionError::Closed),
                },
                _ = heartbeat.tick() => {
                    let sequence = shared.next_heartbeat();
                    session.send(from_node::Message::Heartbeat(wire::Heartbeat { sequence })).await?;
                }
                Ok(()) = usage.changed() => {
                    let newest = usage.borrow_and_update().clone();
                    if let Some(newest) = newest {
                        session.send(from_node::Message::Usage(newest)).await?;
                    }
                }
                () = changed => {}
                () = asked => {}
            }
        }
    }

    /// Sends what the leader has not been told yet.
    async fn drain(&mut self) -> Result<(), SessionError> {
        let Some(cursor) = self.cursor else { return Ok(()) };
        if !self.shared.leadership.leads(self.address) {
            self.cursor = None;
            return Ok(());
        }
        let due = self.shared.outbox.take_after(cursor.sent, cursor.everything);
        let sent = due.last().map_or(cursor.sent, |(sequence, _)| *sequence);
        for (_, message) in due {
            self.send(message).await?;
        }
        let questions = self.shared.tokens.take_after(cursor.asked);
        let asked = questions.last().map_or(cursor.asked, |question| question.sequence);
        for question in questions {
            self.send(from_node::Message::TokenRequest(question)).await?;
        }
        self.cursor = Some(Cursor { sent, everything: false, asked });
        Ok(())
    }

    async fn send(&self, message: from_node::Message) -> Result<(), SessionError> {
        self.outgoing.send(envelope(message)).await.map_err(|_| SessionError::Closed)
    }

    async fn receive(&mut self, message: ToNode) -> Result<(), SessionError> {
        let Some(message) = message.message else { return Ok(()) };
        match message {
            to_node::Message::Role(role) => self.role(&role),
            to_node::Message::Resync(_) if self.cursor.is_some() => {
                self.cursor = Some(Cursor { sent: 0, everything: true, asked: 0 });
            }
            to_node::Message::Ack(ack) => self.shared.outbox.acknowledge(ack.sequence),
            to_node::Message::OpenStream(open) => {
                tracing::debug!(replica = %self.address, stream = %open.stream_id, "a stream is asked for");
                streaming::answer(self.client.clone(), self.shared.streams.clone(), open);
            }
            to_node::Message::PodSet(set) if self.heard(set.epoch) => {
                let pods = set.pods_json.iter().filter_map(|json| pod(json)).collect();
                self.command(Command::All(pods)).await?;
            }
            to_node::Message::PodChange(change) if self.heard(change.epoch) => {
                if let Some(pod) = pod(&change.pod_json) {
                    self.command(Command::Changed(Box::new(pod))).await?;
                }
            }
            to_node::Message::PodRemoved(removed) if self.heard(removed.epoch) => {
                self.command(Command::Removed { uid: removed.uid }).await?;
            }
            to_node::Message::ObjectChange(change) if self.heard(change.epoch) => {
                if let Some(reference) = reference(change.key) {
                    self.shared.objects.put(reference, &change.object_json);
                }
            }
            to_node::Message::ObjectRemoved(removed) if self.heard(removed.epoch) => {
                if let Some(reference) = reference(removed.key) {
                    self.shared.objects.remove(&reference);
                }
            }
            to_node::Message::ObjectIndex(index) if self.heard(index.epoch) => {
                let all: Vec<Reference> =
                    index.objects.into_iter().filter_map(|key| reference(Some(key))).collect();
                self.shared.objects.keep_only(&all);
            }
            to_node::Message::NetworkIndex(index) if self.heard(index.epoch) => {
                self.network_index(index).await?;
            }
            to_node::Message::NetworkChanges(changes) if self.heard(changes.epoch) => {
                let changed = changes.changed.into_iter().filter_map(|object| {
                    Some((network_key(object.key?)?, Some((object.revision, object.object_json))))
                });
                let removed = changes.removed.into_iter().filter_map(|key| Some((network_key(key)?, None)));
                self.shared.cluster.apply(changed.chain(removed));
            }
            to_node::Message::Token(answer) if self.cursor.is_some() => self.shared.tokens.answer(answer),
            // Never shown: they may hold a secret.
            to_node::Message::ObjectChange(_) | to_node::Message::Token(_) => {}
            to_node::Message::NodeNetwork(network) if self.heard(network.epoch) => {
                self.network(network).await
            }
            ignored => tracing::debug!(replica = %self.address, ?ignored, "not the leader's word; ignored"),
        }
        Ok(())
    }

    /// Asks for what this node lacks of the cluster's network.
    async fn network_index(&self, index: wire::NetworkIndex) -> Result<(), SessionError> {
        let entries = index.objects.into_iter();
        let all = entries.filter_map(|object| Some((network_key(object.key?)?, object.revision))).collect();
        let wanted = self.shared.cluster.index(all);
        tracing::debug!(replica = %self.address, wanted = wanted.len(), "index of the cluster's network");
        for chunk in wanted.chunks(WANTED_MAX) {
            let objects = chunk.iter().map(wire_key).collect();
            self.send(from_node::Message::NetworkWanted(wire::NetworkWanted { objects })).await?;
        }
        Ok(())
    }

    fn heard(&self, epoch: u64) -> bool {
        self.shared.leadership.counts(epoch) && self.shared.leadership.leads(self.address)
    }

    fn role(&mut self, role: &wire::Role) {
        let leads = self.shared.leadership.role(self.address, role.leader, role.epoch);
        tracing::info!(
            replica = %self.address, member = %role.member_name, leader = leads, epoch = role.epoch,
            "role of a control-plane replica"
        );
        self.cursor = leads.then_some(Cursor { sent: 0, everything: true, asked: 0 });
    }

    async fn command(&self, command: Command) -> Result<(), SessionError> {
        self.shared.pods.send(command).await.map_err(|_| SessionError::Stopping)
    }

    async fn network(&self, network: wire::NodeNetwork) {
        let peers = network.peers.into_iter().filter_map(|peer| {
            let via = peer.via.parse().ok();
            if via.is_none() {
                tracing::warn!(node = %peer.node_name, via = %peer.via, "a peer's address is not an address; no route");
            }
            Some(Peer { pod_cidr: peer.pod_cidr, via: via? })
        });
        let topology = Topology {
            peers: peers.collect(),
            pod_cidr: network.pod_cidr,
            cluster_cidr: network.cluster_cidr,
            service_cidr: network.service_cidr,
        };
        if topology.pod_cidr.is_empty() {
            return;
        }
        self.shared.entrance.want(network.ingress);
        if let Some(held) = network.held {
            let addresses = held.addresses.iter().filter_map(|text| text.parse().ok()).collect();
            self.shared.held.want(addresses);
        }
        let bridge = Arc::clone(&self.shared.network);
        let applied = tokio::task::spawn_blocking(move || bridge.want(topology)).await;
        if let Err(error) = applied.expect("applying a topology does not panic") {
            tracing::error!(%error, "cannot make the node's network as the control plane wants it; trying on");
        }
    }
}

fn envelope(message: from_node::Message) -> FromNode {
    FromNode { message: Some(message) }
}

/// The same of an object of the network.
fn network_key(key: wire::ObjectKey) -> Option<Key> {
    Some(Key { kind: Kind::parse(&key.kind)?, namespace: key.namespace, name: key.name })
}

fn wire_key(key: &Key) -> wire::ObjectKey {
    wire::ObjectKey {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

/// The address of an object; a kind that this version does not know is left alone.
fn reference(key: Option<wire::ObjectKey>) -> Option<Reference> {
    let key = key?;
    let kind = ReferenceKind::parse(&key.kind)?;
    Some(Reference { kind, namespace: key.namespace, name: key.name })
}

fn pod(json: &[u8]) -> Option<Pod> {
    serde_json::from_slice(json)
        .inspect_err(|error| tracing::error!(%error, "a pod from the control plane cannot be read; ignored"))
        .ok()
}
