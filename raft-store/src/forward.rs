//! A follower's way to the leader: one stream, on which commands that arrive meanwhile share a message.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use proto::raft as wire;
use state_machine::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::error::Error;
use crate::propose::Attempt;
use crate::raft::MemberId;
use crate::store::Store;

/// Commands on their way to the leader over one stream.
const FORWARDING_QUEUE_MAX: usize = 4096;
/// Commands that share a message…
const COMMANDS_PER_MESSAGE_MAX: usize = 256;
/// …which gets no further command once it has this many bytes: well below the largest that is taken.
const MESSAGE_BYTES_MIN: usize = 256 * 1024;
/// At the leader: commands of one member that wait for their outcome at the same time.
const IN_FLIGHT_MAX: usize = 4096;
/// At the leader: answers that share a message.
const ANSWERS_PER_MESSAGE_MAX: usize = 256;

/// A command on its way to the leader.
pub(crate) struct Forwarded {
    pub(crate) command: Bytes,
    pub(crate) reply: oneshot::Sender<Result<Outcome, Attempt>>,
}

/// The streams to leaders; normally one.
#[derive(Default)]
pub(crate) struct Forwarder {
    current: Mutex<Option<(MemberId, mpsc::Sender<Forwarded>)>>,
}

impl Forwarder {
    pub(crate) fn stream_to(
        &self,
        store: &Store,
        leader: MemberId,
    ) -> Result<mpsc::Sender<Forwarded>, Attempt> {
        let mut current = self.current.lock().expect("no code panics while it holds this lock");
        if let Some((id, stream)) = &*current
            && *id == leader
            && !stream.is_closed()
        {
            return Ok(stream.clone());
        }
        let Some(address) = store.address_of(leader) else {
            return Err(Attempt::NotAppended(format!("the address of leader {leader} is not known yet")));
        };
        let (tx, rx) = mpsc::channel(FORWARDING_QUEUE_MAX);
        store.tasks().spawn(run_stream(store.clone(), leader, address, rx));
        *current = Some((leader, tx.clone()));
        Ok(tx)
    }
}

/// Carries commands to one leader until the stream breaks; then every command that was sent has an unknown
/// outcome, and those that were not are proposed again by their callers.
async fn run_stream(store: Store, leader: MemberId, address: String, mut queue: mpsc::Receiver<Forwarded>) {
    let (requests, rx) = mpsc::channel(FORWARDING_QUEUE_MAX);
    let opened = async {
        let mut client = store.connector().client(leader, &address).map_err(|e| e.to_string())?;
        let responses = client.propose(ReceiverStream::new(rx)).await.map_err(|e| e.message().to_owned())?;
        Ok::<_, String>(responses.into_inner())
    };
    let mut responses = match opened.await {
        Ok(responses) => responses,
        Err(error) => {
            tracing::debug!(%address, %error, "cannot open the forwarding stream");
            queue.close();
            while let Some(forwarded) = queue.recv().await {
                let _ = forwarded.reply.send(Err(Attempt::NotAppended(format!("the leader: {error}"))));
            }
            return;
        }
    };
    let mut waiting: HashMap<u64, oneshot::Sender<Result<Outcome, Attempt>>> = HashMap::new();
    let mut next_sequence = 0;
    let mut drained = Vec::new();
    loop {
        tokio::select! {
            () = store.stopping() => break,
            count = queue.recv_many(&mut drained, COMMANDS_PER_MESSAGE_MAX), if waiting.len() < FORWARDING_QUEUE_MAX => {
                if count == 0 {
                    break;
                }
                let mut broken = false;
                let mut arrived = drained.drain(..);
                while let Some(Forwarded { command, reply }) = arrived.next() {
                    let mut message = wire::ProposeRequest { sequence: next_sequence, commands: Vec::new() };
                    let mut bytes = command.len();
                    message.commands.push(command);
                    waiting.insert(next_sequence, reply);
                    next_sequence += 1;
                    while bytes < MESSAGE_BYTES_MIN && let Some(Forwarded { command, reply }) = arrived.next() {
                        bytes += command.len();
                        message.commands.push(command);
                        waiting.insert(next_sequence, reply);
                        next_sequence += 1;
                    }
                    broken |= requests.send(message).await.is_err();
                }
                if broken {
                    break;
                }
            }
            response = responses.next() => {
                let Some(Ok(response)) = response else { break };
                for answered in response.answers {
                    if let Some(reply) = waiting.remove(&answered.sequence) {
                        let _ = reply.send(answer(answered.result));
                    }
                }
            }
        }
    }
    queue.close();
    for (_, reply) in waiting {
        let _ = reply.send(Err(Attempt::Unknown("contact with the leader was lost".into())));
    }
    while let Some(forwarded) = queue.recv().await {
        let reason = "contact with the leader was lost before it was sent".into();
        let _ = forwarded.reply.send(Err(Attempt::NotAppended(reason)));
    }
}

fn answer(result: Option<wire::propose_answer::Result>) -> Result<Outcome, Attempt> {
    use wire::propose_answer::Result as R;
    match result {
        Some(R::Applied(applied)) => Outcome::decode(applied.outcome)
            .map_err(|e| Attempt::Unknown(format!("it was applied, but the answer is unreadable: {e}"))),
        Some(R::NotLeader(_)) => Err(Attempt::NotAppended("the member asked does not lead".into())),
        Some(R::Unknown(reason)) => Err(Attempt::Unknown(reason)),
        Some(R::Refused(reason)) => Err(Attempt::Failed(Error::Refused { reason })),
        None => Err(Attempt::Unknown("the leader's answer says nothing".into())),
    }
}

/// At the leader: proposes what a follower forwards, answering each command as its outcome is known.
pub(crate) async fn answer_proposals(
    store: Store,
    mut requests: Streaming<wire::ProposeRequest>,
    responses: mpsc::Sender<wire::ProposeResponse>,
) {
    let propose = async |sequence: u64, command: Bytes| {
        let result = Some(store.propose_for_peer(command).await);
        wire::ProposeAnswer { sequence, result }
    };
    let mut waiting = FuturesUnordered::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        tokio::select! {
            () = store.stopping() => return,
            request = requests.next(), if open && waiting.len() < IN_FLIGHT_MAX => match request {
                Some(Ok(request)) => {
                    for (sequence, command) in (request.sequence..).zip(request.commands) {
                        waiting.push(propose(sequence, command));
                    }
                }
                Some(Err(_)) | None => open = false,
            },
            Some(first) = waiting.next() => {
                let mut answers = vec![first];
                while answers.len() < ANSWERS_PER_MESSAGE_MAX {
                    let Some(Some(answer)) = waiting.next().now_or_never() else { break };
                    answers.push(answer);
                }
                if responses.send(wire::ProposeResponse { answers }).await.is_err() {
                    // The follower has gone; what it proposed goes on without an answer.
                    open = false;
                }
            }
        }
    }
}
