//! The one way a command gets into the log.
//!
//! Checks the size, finds the leader and proposes there: here (`bundler`), if this member leads, or over one
//! stream to the leader otherwise (`forward`), never further. A command that was certainly not appended is tried again until the
//! deadline; one whose fate is unknown only if it names a request, which the state carries out once.

use std::time::Duration;

use bytes::Bytes;
use proto::raft as wire;
use state_machine::{Author, Command, Envelope, Outcome, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::bundler::{PROPOSALS_WAITING_MAX, Waiting};
use crate::error::Error;
use crate::forward::Forwarded;
use crate::raft::MemberId;
use crate::store::Store;

/// How long to wait before asking again who leads.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The cluster version from which on an entry may name author and request, and hold several commands.
pub(crate) const ENVELOPE_CLUSTER_VERSION: u32 = 2;

/// How one attempt ended when it did not end with an outcome.
#[derive(Debug, Clone)]
pub(crate) enum Attempt {
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
        if let Err(refusal) = command.check_depth() {
            return Ok(Outcome::Rejected(refusal));
        }
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
            tokio::select! {
                () = self.stopping() => return Err(match doubt {
                    Some(reason) => Error::Unknown { reason },
                    None => Error::Stopped { reason: "it is shutting down".into() },
                }),
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
    }

    fn given_up(&self, reason: String, doubt: Option<String>) -> Error {
        if let Some(reason) = doubt {
            return Error::Unknown { reason };
        }
        let members = self.members().len();
        let reason = format!("{reason}; a majority of the {members} members must be up to accept writes");
        Error::Unavailable { reason }
    }

    async fn propose_here(&self, command: Bytes, deadline: Instant) -> Result<Outcome, Attempt> {
        let (waiting, ticket, reply) = Waiting::new(command);
        if self.proposals().try_send(waiting).is_err() {
            let reason =
                format!("more than {PROPOSALS_WAITING_MAX} writes wait already, or this member stops");
            return Err(Attempt::NotAppended(reason));
        }
        match tokio::time::timeout_at(deadline, reply).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Attempt::Unknown("this member stopped while the write waited".into())),
            Err(_) if ticket.take() => {
                Err(Attempt::NotAppended("the writes before it were not confirmed in time".into()))
            }
            Err(_) => Err(Attempt::Unknown(
                "it is in this member's log, but a majority did not confirm it in time".into(),
            )),
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
    pub(crate) async fn propose_for_peer(&self, command: Bytes) -> wire::propose_answer::Result {
        use wire::propose_answer::Result as R;
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
