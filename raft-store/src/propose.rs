//! The one way a command gets into the log.
//!
//! Checks the size, finds the leader and proposes there: here, if this member leads, or over one stream to
//! the leader otherwise (never further). A command that was certainly not appended is tried again until the
//! deadline; one whose fate is unknown only if it names a request, which the state carries out once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use openraft::errors::{ClientWriteError, RaftError};
use proto::raft as wire;
use state_machine::{Author, Command, Envelope, Outcome, RequestId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::Error;
use crate::raft::MemberId;
use crate::raft::types::Proposal;
use crate::store::Store;

/// Commands on their way to the leader over one stream.
const FORWARDING_QUEUE_MAX: usize = 4096;
/// How long to wait before asking again who leads.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The cluster version from which on an entry may name author and request.
const ENVELOPE_CLUSTER_VERSION: u32 = 2;

/// How one attempt ended when it did not end with an outcome.
#[derive(Debug)]
enum Attempt {
    /// Certainly not appended.
    NotAppended(String),
    /// Perhaps appended.
    Unknown(String),
    /// Trying again cannot help.
    Failed(Error),
}

/// A command on its way into the log.
struct Entry {
    bytes: Bytes,
    /// It names a request: should it be in the log twice, it is carried out once.
    once: bool,
}

impl Store {
    /// Proposes a member's own command and waits until it is applied at the member that proposed it.
    ///
    /// # Errors
    /// When it was not made, or when that is not known.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, Error> {
        self.propose_entry(None, None, command).await
    }

    /// Proposes a client's request. With an id it is carried out once, however often it is proposed; then
    /// even an unknown fate is tried again until the deadline.
    ///
    /// # Errors
    /// When it was not made, or when that is not known.
    pub async fn propose_request(
        &self,
        author: Option<&Author>,
        id: Option<&RequestId>,
        command: &Command,
    ) -> Result<Outcome, Error> {
        if id.is_some() {
            self.wait_cluster_version(ENVELOPE_CLUSTER_VERSION).await?;
        }
        if self.cluster_version() >= ENVELOPE_CLUSTER_VERSION {
            return self.propose_entry(author, id, command).await;
        }
        // Before, there are no users either, so that nothing depends on the author.
        self.propose_entry(None, None, command).await
    }

    async fn propose_entry(
        &self,
        author: Option<&Author>,
        id: Option<&RequestId>,
        command: &Command,
    ) -> Result<Outcome, Error> {
        self.wait_cluster_version(command.cluster_version()).await?;
        let entry = Entry { bytes: Envelope::encode_parts(author, id, command), once: id.is_some() };
        let bytes_max = self.config().request_bytes_max;
        if entry.bytes.len() > bytes_max {
            return Err(Error::TooLarge { bytes: entry.bytes.len(), bytes_max });
        }
        if let Some(refusal) = self.refuse_beyond_quota(command).await {
            return Ok(refusal);
        }
        let counted = self.counters().proposal();
        let result = self.propose_until_known(entry).await;
        counted.end(result.is_ok());
        result
    }

    async fn propose_until_known(&self, entry: Entry) -> Result<Outcome, Error> {
        let deadline = Instant::now() + self.config().propose_timeout;
        // Once an attempt may have been appended, "not made" cannot be said any more.
        let mut doubt = None;
        loop {
            let attempt = match self.leadership().leader {
                Some(leader) if leader == self.member_id() => {
                    self.propose_here(entry.bytes.clone(), deadline).await
                }
                Some(leader) => self.forward(leader, entry.bytes.clone(), deadline).await,
                None => Err(Attempt::NotAppended("no leader is known".into())),
            };
            let reason = match attempt {
                Ok(outcome) => return Ok(outcome),
                Err(Attempt::Failed(error)) if doubt.is_none() => return Err(error),
                Err(Attempt::Failed(error)) => return Err(Error::Unknown { reason: error.to_string() }),
                Err(Attempt::Unknown(reason)) if !entry.once => return Err(Error::Unknown { reason }),
                Err(Attempt::Unknown(reason)) => {
                    doubt = Some(reason.clone());
                    reason
                }
                Err(Attempt::NotAppended(reason)) => reason,
            };
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(self.given_up(reason, doubt));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn given_up(&self, reason: String, doubt: Option<String>) -> Error {
        if let Some(reason) = doubt {
            return Error::Unknown { reason };
        }
        let members = self.config().initial_members.len();
        let reason = format!("{reason}; a majority of the {members} members must be up to accept writes");
        Error::Unavailable { reason }
    }

    async fn propose_here(&self, command: Bytes, deadline: Instant) -> Result<Outcome, Attempt> {
        let write = self.raft().client_write(Proposal(command));
        let Ok(result) = tokio::time::timeout_at(deadline, write).await else {
            return Err(Attempt::Unknown(
                "it is in this member's log, but a majority did not confirm it in time".into(),
            ));
        };
        match result {
            Ok(response) => response.data.0.ok_or_else(|| {
                let reason = "the entry carried no command".to_owned();
                Attempt::Failed(Error::Refused { reason })
            }),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Attempt::NotAppended(format!("this member does not lead ({:?})", forward.reason)))
            }
            Err(RaftError::APIError(error)) => Err(Attempt::Unknown(error.to_string())),
            // It may have been appended, and even replicated, before consensus ended.
            Err(RaftError::Fatal(fatal)) => {
                Err(Attempt::Unknown(format!("this member stopped while the write waited: {fatal}")))
            }
        }
    }

    async fn forward(&self, leader: MemberId, command: Bytes, deadline: Instant) -> Result<Outcome, Attempt> {
        let (tx, rx) = oneshot::channel();
        let stream = self.forwarder().stream_to(self, leader)?;
        if stream.try_send(Forwarded { command, reply: tx }).is_err() {
            return Err(Attempt::NotAppended("the stream to the leader is busy or broken".into()));
        }
        match tokio::time::timeout_at(deadline, rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Attempt::Unknown("contact with the leader was lost".into())),
            Err(_) => Err(Attempt::Unknown("the leader did not answer in time".into())),
        }
    }

    /// A command that another member forwarded: proposed here or not at all.
    pub(crate) async fn propose_for_peer(&self, command: Bytes) -> wire::propose_response::Result {
        use wire::propose_response::Result as R;
        let deadline = Instant::now() + self.config().propose_timeout;
        // A copy, so that the value does not keep the frame it came in alive.
        match self.propose_here(Bytes::copy_from_slice(&command), deadline).await {
            Ok(outcome) => R::Applied(wire::Applied { outcome: outcome.encode() }),
            Err(Attempt::NotAppended(_)) => {
                R::NotLeader(wire::NotLeader { leader_id: self.leadership().leader.unwrap_or(0) })
            }
            Err(Attempt::Unknown(reason)) => R::Unknown(reason),
            Err(Attempt::Failed(error)) => R::Refused(error.to_string()),
        }
    }
}

/// A command on its way to the leader.
struct Forwarded {
    command: Bytes,
    reply: oneshot::Sender<Result<Outcome, Attempt>>,
}

/// The streams to leaders; normally one.
#[derive(Default)]
pub(crate) struct Forwarder {
    current: Mutex<Option<(MemberId, mpsc::Sender<Forwarded>)>>,
}

impl Forwarder {
    fn stream_to(&self, store: &Store, leader: MemberId) -> Result<mpsc::Sender<Forwarded>, Attempt> {
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
        store.tasks().spawn(run_stream(store.clone(), address, rx));
        *current = Some((leader, tx.clone()));
        Ok(tx)
    }
}

/// Carries commands to one leader until the stream breaks; then every command that was sent has an unknown
/// outcome, and those that were not are proposed again by their callers.
async fn run_stream(store: Store, address: String, mut queue: mpsc::Receiver<Forwarded>) {
    let (requests, rx) = mpsc::channel(FORWARDING_QUEUE_MAX);
    let opened = async {
        let mut client = store.connector().client(&address).map_err(|e| e.to_string())?;
        let responses = client.propose(ReceiverStream::new(rx)).await.map_err(|e| e.to_string())?;
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
    let mut sequence = 0;
    loop {
        tokio::select! {
            () = store.stopping() => break,
            forwarded = queue.recv(), if waiting.len() < FORWARDING_QUEUE_MAX => {
                let Some(Forwarded { command, reply }) = forwarded else { break };
                sequence += 1;
                waiting.insert(sequence, reply);
                if requests.send(wire::ProposeRequest { sequence, command }).await.is_err() {
                    break;
                }
            }
            response = responses.next() => {
                let Some(Ok(response)) = response else { break };
                if let Some(reply) = waiting.remove(&response.sequence) {
                    let _ = reply.send(answer(response.result));
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

fn answer(result: Option<wire::propose_response::Result>) -> Result<Outcome, Attempt> {
    use wire::propose_response::Result as R;
    match result {
        Some(R::Applied(applied)) => Outcome::decode(applied.outcome)
            .map_err(|e| Attempt::Unknown(format!("it was applied, but the answer is unreadable: {e}"))),
        Some(R::NotLeader(_)) => Err(Attempt::NotAppended("the member asked does not lead".into())),
        Some(R::Unknown(reason)) => Err(Attempt::Unknown(reason)),
        Some(R::Refused(reason)) => Err(Attempt::Failed(Error::Refused { reason })),
        None => Err(Attempt::Unknown("the leader's answer says nothing".into())),
    }
}
