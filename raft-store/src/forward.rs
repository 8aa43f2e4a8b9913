//! A follower's way to the leader: one stream, on which commands that arrive meanwhile share a message.
//!
//! A command's outcome is handed out when this member has applied it too, so that a client reads here what it
//! wrote here, however it reads. A member that lags by more than `LAG_MAX` hands it out without.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use proto::raft as wire;
use state_machine::Outcome;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
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
/// An outcome waits at most this long for this member to apply what it tells of.
const LAG_MAX: Duration = Duration::from_secs(1);
/// At the leader: commands of one member that wait for their outcome at the same time.
const IN_FLIGHT_MAX: usize = 4096;
/// At the leader: answers that share a message.
const ANSWERS_PER_MESSAGE_MAX: usize = 256;

/// A command on its way to the leader.
pub(crate) struct Forwarded {
    pub(crate) command: Bytes,
    pub(crate) reply: Reply,
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
    let mut sent = Sent::default();
    let mut held = Held::new(store.applied());
    let mut drained = Vec::new();
    loop {
        let has_room = sent.waiting.len() + held.len() < FORWARDING_QUEUE_MAX;
        tokio::select! {
            () = store.stopping() => break,
            count = queue.recv_many(&mut drained, COMMANDS_PER_MESSAGE_MAX), if has_room => {
                if count == 0 || sent.send(&mut drained, &requests).await.is_err() {
                    break;
                }
            }
            response = responses.next() => {
                let Some(Ok(response)) = response else { break };
                held.hold(response.applied_index, sent.answered(response.answers));
            }
            () = held.due(), if !held.is_empty() => {}
        }
        held.deliver();
    }
    queue.close();
    for (_, reply) in sent.waiting {
        let _ = reply.send(Err(Attempt::Unknown("contact with the leader was lost".into())));
    }
    while let Some(forwarded) = queue.recv().await {
        let reason = "contact with the leader was lost before it was sent".into();
        let _ = forwarded.reply.send(Err(Attempt::NotAppended(reason)));
    }
    while !held.is_empty() {
        tokio::select! {
            () = store.stopping() => held.deliver_all(),
            () = held.due() => held.deliver(),
        }
    }
}

/// Who waits for a command's outcome here.
type Reply = oneshot::Sender<Result<Outcome, Attempt>>;

/// The commands that were sent and not answered, by their sequence.
#[derive(Default)]
struct Sent {
    waiting: HashMap<u64, Reply>,
    next_sequence: u64,
}

impl Sent {
    /// Sends what was drained from the queue; an error when the stream is gone.
    async fn send(
        &mut self,
        drained: &mut Vec<Forwarded>,
        requests: &mpsc::Sender<wire::ProposeRequest>,
    ) -> Result<(), SendError<wire::ProposeRequest>> {
        let mut sent = Ok(());
        let mut arrived = drained.drain(..).peekable();
        while arrived.peek().is_some() {
            let mut message = wire::ProposeRequest { sequence: self.next_sequence, commands: Vec::new() };
            let mut bytes = 0;
            while bytes < MESSAGE_BYTES_MIN
                && let Some(Forwarded { command, reply }) = arrived.next()
            {
                bytes += command.len();
                message.commands.push(command);
                self.waiting.insert(self.next_sequence, reply);
                self.next_sequence += 1;
            }
            sent = sent.and(requests.send(message).await);
        }
        sent
    }

    /// The outcomes that came, each with who waits for it.
    fn answered(&mut self, answers: Vec<wire::ProposeAnswer>) -> Vec<(Reply, Result<Outcome, Attempt>)> {
        let known = answers
            .into_iter()
            .filter_map(|answered| Some((self.waiting.remove(&answered.sequence)?, answer(answered.result))));
        known.collect()
    }
}

/// Outcomes that wait until this member has applied what they tell of, so that whoever is answered finds it
/// here; in the order of the log.
struct Held {
    applied: watch::Receiver<Option<u64>>,
    batches: VecDeque<Batch>,
    outcomes: usize,
}

struct Batch {
    applied_index: u64,
    /// When they are delivered all the same.
    deadline: Instant,
    outcomes: Vec<(Reply, Result<Outcome, Attempt>)>,
}

impl Held {
    fn new(applied: watch::Receiver<Option<u64>>) -> Self {
        Self { applied, batches: VecDeque::new(), outcomes: 0 }
    }

    fn hold(&mut self, applied_index: u64, outcomes: Vec<(Reply, Result<Outcome, Attempt>)>) {
        self.outcomes += outcomes.len();
        self.batches.push_back(Batch { applied_index, deadline: Instant::now() + LAG_MAX, outcomes });
    }

    fn len(&self) -> usize {
        self.outcomes
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Until the first batch may be delivered.
    async fn due(&mut self) {
        let Some(Batch { applied_index, deadline, .. }) = self.batches.front() else { return };
        let reached = self.applied.wait_for(|applied| *applied >= Some(*applied_index));
        let _ = tokio::time::timeout_at(*deadline, reached).await;
    }

    /// Delivers every batch whose time has come.
    fn deliver(&mut self) {
        let applied = *self.applied.borrow();
        let now = Instant::now();
        let is_due = |batch: &mut Batch| applied >= Some(batch.applied_index) || batch.deadline <= now;
        while let Some(batch) = self.batches.pop_front_if(is_due) {
            self.hand_out(batch);
        }
    }

    fn deliver_all(&mut self) {
        while let Some(batch) = self.batches.pop_front() {
            self.hand_out(batch);
        }
    }

    fn hand_out(&mut self, batch: Batch) {
        self.outcomes -= batch.outcomes.len();
        for (reply, outcome) in batch.outcomes {
            let _ = reply.send(outcome);
        }
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
                let applied_index = store.applied().borrow().unwrap_or(0);
                if responses.send(wire::ProposeResponse { answers, applied_index }).await.is_err() {
                    // The follower has gone; what it proposed goes on without an answer.
                    open = false;
                }
            }
        }
    }
}
