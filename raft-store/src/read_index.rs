//! Linearizable reads at any member (Raft thesis, section 6.4).
//!
//! A read waits for the log index that the leader had committed, confirmed by a quorum, after the read
//! began; then for this member to have applied it. Reads that arrive while a round is under way share the
//! next one, so that a thousand readers cost one round trip. With `lease_reads` the leader mostly needs no quorum.

use std::time::Duration;

use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy};
use proto::raft as wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::Error;
use crate::mutants::{self, Mutant};
use crate::store::Store;

/// Reads that wait for a round; more are refused.
pub(crate) const READS_WAITING_MAX: usize = 16 * 1024;
/// One question to the leader. A lost answer must not hold a read for long.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A read that waits for its index.
pub(crate) type WaitingRead = oneshot::Sender<Result<u64, Error>>;

impl Store {
    /// Returns once this member has applied everything that was committed when the call began.
    pub async fn linearize(&self) -> Result<(), Error> {
        if mutants::is(Mutant::SkipReadIndex) {
            return Ok(());
        }
        let (tx, rx) = oneshot::channel();
        self.reads().try_send(tx).map_err(|_| Error::Unavailable {
            reason: format!("more than {READS_WAITING_MAX} reads wait already, or this member is stopping"),
        })?;
        let stopped = || Error::Stopped { reason: "it is shutting down".into() };
        let index = rx.await.map_err(|_| stopped())??;
        let timeout = self.config().read_timeout;
        tokio::time::timeout(timeout, self.wait_applied(index)).await.map_err(|_| Error::Unavailable {
            reason: format!("this member lags behind: it has not applied index {index} yet"),
        })?
    }

    /// The answer to another member's question.
    pub(crate) async fn read_index_for_peer(&self) -> wire::ReadIndexResponse {
        use wire::read_index_response::Result as R;
        let result = match self.read_index_here().await {
            Ok(index) => R::LogIndex(index),
            Err(Round::NotLeader) => {
                R::NotLeader(wire::NotLeader { leader_id: self.leadership().leader.unwrap_or(0) })
            }
            Err(Round::Failed(reason)) => R::Unavailable(reason),
        };
        wire::ReadIndexResponse { result: Some(result) }
    }

    async fn read_index_here(&self) -> Result<u64, Round> {
        if let Some(index) = self.read_index_by_lease().await {
            return Ok(index);
        }
        let option = LinearizerOption::from(ReadPolicy::ReadIndex);
        match self.raft().get_read_linearizer(option).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(Round::NotLeader),
            Err(error) => Err(Round::Failed(error.to_string())),
        }
    }

    async fn read_index_at_leader(&self) -> Result<u64, Round> {
        let Some(leader) = self.leadership().leader else {
            return Err(Round::Failed("no leader is known".into()));
        };
        if leader == self.member_id() {
            return self.read_index_here().await;
        }
        let mut client = self.leader_client(leader).map_err(Round::Failed)?;
        let response = client.read_index(wire::ReadIndexRequest {}).await;
        let response = response.map_err(|status| Round::Failed(status.to_string()))?.into_inner();
        use wire::read_index_response::Result as R;
        match response.result {
            Some(R::LogIndex(index)) => Ok(index),
            Some(R::NotLeader(_)) => Err(Round::NotLeader),
            Some(R::Unavailable(reason)) => Err(Round::Failed(reason)),
            None => Err(Round::Failed("the leader's answer says nothing".into())),
        }
    }
}

/// How one round ended without an index.
enum Round {
    NotLeader,
    Failed(String),
}

/// Serves waiting reads, a round at a time, until the store stops.
pub(crate) async fn run(store: Store, mut waiting: mpsc::Receiver<WaitingRead>) {
    let mut round = Vec::new();
    loop {
        let received = tokio::select! {
            () = store.stopping() => return,
            received = waiting.recv_many(&mut round, READS_WAITING_MAX) => received,
        };
        if received == 0 {
            return;
        }
        let result = one_round(&store).await;
        for read in round.drain(..) {
            // A reader that gave up is of no concern.
            let _ = read.send(result.clone());
        }
    }
}

async fn one_round(store: &Store) -> Result<u64, Error> {
    let deadline = Instant::now() + store.config().read_timeout;
    loop {
        let reason = match tokio::time::timeout(ROUND_TIMEOUT, store.read_index_at_leader()).await {
            Ok(Ok(index)) => return Ok(index),
            Ok(Err(Round::NotLeader)) => "the member asked does not lead".to_owned(),
            Ok(Err(Round::Failed(reason))) => reason,
            Err(_) => "the leader did not answer".to_owned(),
        };
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(Error::Unavailable { reason });
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
