//! Whether this member takes part in consensus, and why it stopped if it did. Decided in `bootstrap`.

use std::sync::Mutex;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::lease_reads::LeaseReads;
use crate::store::Store;
use crate::succession::BrokenStreams;

#[derive(Debug)]
enum Phase {
    Asking,
    Admitted,
    Refused(String),
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Admission {
    phase: watch::Sender<Phase>,
    /// When a leader last said something.
    heard: Mutex<Option<Instant>>,
    broken_streams: BrokenStreams,
    lease_reads: LeaseReads,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            phase: watch::channel(Phase::Asking).0,
            heard: Mutex::default(),
            broken_streams: BrokenStreams::default(),
            lease_reads: LeaseReads::default(),
        }
    }
}

impl Admission {
    pub(crate) fn lease_reads(&self) -> &LeaseReads {
        &self.lease_reads
    }
}

impl Store {
    /// Why this member has stopped by itself, if it has: for example because the disk failed, because it was
    /// removed, or because its directory is not what it was. The process should end then.
    pub async fn failed(&self) -> String {
        tokio::select! {
            reason = self.consensus_failed() => reason,
            reason = self.refused() => reason,
        }
    }

    async fn refused(&self) -> String {
        let mut phase = self.admission().phase.subscribe();
        loop {
            if let Phase::Refused(reason) = &*phase.borrow_and_update() {
                return reason.clone();
            }
            if phase.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn consensus_failed(&self) -> String {
        // These change seldom, and end with consensus; the others change with every entry.
        let mut seldom = self.raft().server_metrics();
        while seldom.changed().await.is_ok() {}
        match &self.raft().metrics().borrow_watched().running_state {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "consensus has ended".to_owned(),
        }
    }

    /// This member may vote, acknowledge and campaign from now on.
    pub(crate) fn admit(&self) {
        self.raft().runtime_config().elect(true);
        self.admission().phase.send_replace(Phase::Admitted);
    }

    /// This member must not take part, any more or at all.
    pub(crate) fn refuse(&self, reason: String) {
        tracing::error!(%reason, "this member stops");
        self.raft().runtime_config().elect(false);
        self.admission().phase.send_replace(Phase::Refused(reason));
    }

    /// A leader has said something.
    pub(crate) fn heard_leader(&self) {
        *self.admission().heard.lock().expect("no code panics while it holds this lock") =
            Some(Instant::now());
    }

    /// Whoever sees a leader's stream break says so here.
    pub(crate) fn broken_streams(&self) -> &BrokenStreams {
        &self.admission().broken_streams
    }

    /// How long no leader has said anything; `None`: none ever has.
    pub(crate) fn leader_silence(&self) -> Option<Duration> {
        self.admission()
            .heard
            .lock()
            .expect("no code panics while it holds this lock")
            .map(|heard| heard.elapsed())
    }

    pub(crate) fn takes_part(&self) -> bool {
        matches!(*self.admission().phase.borrow(), Phase::Admitted)
    }
}
