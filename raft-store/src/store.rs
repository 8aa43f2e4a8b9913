//! The handle to one member's store: what a control-plane replica embeds.
//!
//! Composition root of this package: opens the log and the checkpoint, starts consensus, forms the group,
//! and stops in the reverse order. Writing is in `propose`, linearizable reading in `read_index`, watching
//! in `watch`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use state_machine::{Alarm, RangeRequest, RangeResponse, ReadError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::blocking;
use crate::bootstrap;
use crate::bundler::{self, PROPOSALS_WAITING_MAX};
use crate::checkpoint;
use crate::compactor;
use crate::config::Config;
use crate::error::Error;
use crate::etcd::Tokens;
use crate::forward::Forwarder;
use crate::guards;
use crate::leadership::{self, Leadership};
use crate::lease_reads;
use crate::lessor;
use crate::log_keeper;
use crate::metrics::Counters;
use crate::offline;
use crate::raft::log_store::LogStore;
use crate::raft::membership;
use crate::raft::peer_client::NetworkFactory;
use crate::raft::snapshot_send::Courier;
use crate::raft::state_machine::{Shared, StateMachineShell};
use crate::raft::types::{LogId, Raft, TypeConfig};
use crate::raft::{Connector, MemberId, PeerClient, PeerServer, PeerService, codec};
use crate::read_index::{self, READS_WAITING_MAX, WaitingRead};
use crate::status::MemberStatus;
use crate::succession;
use crate::version_gate;
use crate::wal::{self, Wal};
use crate::watch::Watcher;

/// How long a stopping leader waits for another member to take over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a store could not be started.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The write-ahead log.
    #[error("cannot open the write-ahead log: {0}")]
    Wal(#[from] wal::Error),
    /// The checkpoint.
    #[error("cannot open the checkpoint: {0}")]
    Checkpoint(#[from] checkpoint::Error),
    /// The log holds something that this version does not understand.
    #[error("the log holds an entry that this version cannot read ({0}); was it written by a newer one?")]
    Log(#[from] codec::DecodeError),
    /// A directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Timings that cannot work.
    #[error("the raft timings cannot work: {0}")]
    Timings(#[from] openraft::ConfigError),
    /// The checkpoint is older than the beginning of the log: entries between them are lost.
    #[error(
        "the checkpoint ends at log index {applied}, but the log begins after {purged}: what lies between is lost \
         on this member. Its peers have it, and go on without this member as long as they are a majority; keep \
         the directory, or put a whole copy of it back"
    )]
    Gap {
        /// What the checkpoint holds.
        applied: u64,
        /// What the log no longer holds.
        purged: u64,
    },
    /// The directory's cluster was given up.
    #[error("{reason}")]
    Fenced {
        /// What took its place.
        reason: String,
    },
    /// Consensus refused what it found on disk.
    #[error("consensus cannot start: {0}")]
    Raft(String),
}

struct Inner {
    config: Config,
    raft: Raft,
    log: LogStore,
    shared: Arc<Shared>,
    connector: Connector,
    forwarder: Forwarder,
    tokens: Tokens,
    proposals: mpsc::Sender<bundler::Waiting>,
    reads: mpsc::Sender<WaitingRead>,
    leadership: watch::Receiver<Leadership>,
    counters: Counters,
    admission: Admission,
    membership_lock: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// One member's store. Clones are handles to the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl Store {
    /// Opens the data directory, starts consensus and, in the background, forms the group if there is none.
    /// The caller must serve [`Store::peer_service`] before a group can form.
    ///
    /// # Errors
    /// When the directory is in use, damaged beyond what peers can repair, or of another cluster or member.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let opening = config.clone();
        let disk = blocking::run(move || Disk::open(&opening)).await;
        let disk = disk.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let connector = Connector::of(&config);
        let shared = Arc::clone(&disk.shared);
        let courier = Courier::new(config.snapshot_bytes_per_second, Arc::clone(&shared.transfers));

        let raft = Raft::build(
            config.member_id,
            Arc::new(raft_config(&config)?),
            NetworkFactory { id: config.member_id, connector: connector.clone(), courier },
            disk.log.clone(),
            disk.machine,
        )
        .await
        .map_err(|fatal: Fatal<TypeConfig>| OpenError::Raft(fatal.to_string()))?;
        raft.run();

        let (proposals, waiting_proposals) = mpsc::channel(PROPOSALS_WAITING_MAX);
        let (reads, waiting_reads) = mpsc::channel(READS_WAITING_MAX);
        let (leadership_tx, leadership) = watch::channel(Leadership::default());
        let tokens = Tokens::new(&config.auth_token);
        let store = Self(Arc::new(Inner {
            config,
            tokens,
            raft,
            log: disk.log,
            shared,
            connector,
            forwarder: Forwarder::default(),
            proposals,
            reads,
            leadership,
            counters: Counters::default(),
            admission: Admission::default(),
            membership_lock: tokio::sync::Mutex::new(()),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }));
        store.tasks().spawn(bundler::run(store.clone(), waiting_proposals));
        store.tasks().spawn(log_keeper::run(store.clone()));
        store.tasks().spawn(store.shared().incoming.clone().sweep(store.stop_token()));
        store.tasks().spawn(read_index::run(store.clone(), waiting_reads));
        store.tasks().spawn(leadership::follow(store.clone(), leadership_tx));
        store.tasks().spawn(crate::watch::fan_out(Arc::clone(store.shared()), store.stop_token()));
        store.tasks().spawn(lease_reads::run(store.clone()));
        store.tasks().spawn(lessor::run(store.clone()));
        store.tasks().spawn(bootstrap::run(store.clone()));
        store.tasks().spawn(succession::run(store.clone()));
        store.tasks().spawn(membership::steward(store.clone()));
        store.tasks().spawn(membership::publish(store.clone()));
        store.tasks().spawn(guards::compare(store.clone()));
        store.tasks().spawn(guards::watch_disk(store.clone()));
        store.tasks().spawn(compactor::run(store.clone()));
        store.tasks().spawn(compactor::trim(store.clone()));
        store.tasks().spawn(version_gate::run(store.clone()));
        Ok(store)
    }

    /// Hands leadership over if this member leads, then stops consensus and writes a last checkpoint.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.0.stop.cancel();
        if let Err(error) = self.raft().shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        self.tasks().close();
        self.tasks().wait().await;
        if let Err(error) = self.0.shared.checkpoint_now().await {
            tracing::warn!(%error, "no last checkpoint; the next start replays more of the log");
        }
    }

    pub(crate) async fn hand_over(&self) {
        if !self.leadership().is_self {
            return;
        }
        let status = self.status();
        let best = status
            .members
            .iter()
            .filter(|member| member.voter && member.id != self.member_id())
            .max_by_key(|member| member.matched_index);
        let Some(best) = best else { return };
        if self.transfer_leader(best.id).await.is_ok() {
            let mut leadership = self.watch_leadership();
            let gone = leadership.wait_for(|leadership| !leadership.is_self);
            // Without an answer the others notice by themselves, only later.
            let _ = tokio::time::timeout(HANDOVER_TIMEOUT, gone).await;
        }
    }

    /// Asks another voter to take over the leadership. Only the leader can.
    ///
    /// # Errors
    /// When this member does not lead, or is stopping.
    pub async fn transfer_leader(&self, to: MemberId) -> Result<(), Error> {
        if !self.leadership().is_self {
            return Err(Error::Refused { reason: "this member does not lead".into() });
        }
        let stopped = |fatal: Fatal<TypeConfig>| Error::Stopped { reason: fatal.to_string() };
        self.raft().trigger().transfer_leader(to).await.map_err(stopped)
    }

    /// The gRPC service through which the other members reach this one. Mount it behind a check that the
    /// caller is a member.
    pub fn peer_service(&self) -> PeerServer {
        PeerService::server(self.clone())
    }

    /// Reads from this member's applied state; may be behind. For a read that sees every acknowledged
    /// write, await [`Store::linearize`] first.
    ///
    /// # Errors
    /// When the revision asked for cannot be read.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        self.0.shared.read().machine.range(request).map_err(read_error)
    }

    /// The newest revision applied here.
    pub fn revision(&self) -> u64 {
        self.0.shared.read().machine.revision()
    }

    /// The oldest revision that can still be read here.
    pub fn compact_revision(&self) -> u64 {
        self.0.shared.read().machine.compact_revision()
    }

    /// Follows changes of the keys from `key` to `range_end` (as in a range), beginning with
    /// `from_revision` (0: from now on).
    ///
    /// # Errors
    /// When history back to that revision is compacted away.
    pub fn watch(
        &self,
        key: bytes::Bytes,
        range_end: bytes::Bytes,
        from_revision: u64,
    ) -> Result<Watcher, Error> {
        Watcher::start(Arc::clone(&self.0.shared), key, range_end, from_revision)
    }

    /// Who leads, now.
    pub fn leadership(&self) -> Leadership {
        *self.0.leadership.borrow()
    }

    /// Who leads, and every change of it.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// This member's id.
    pub fn member_id(&self) -> MemberId {
        self.0.config.member_id
    }

    /// The group's id, in hexadecimal.
    pub fn cluster_id(&self) -> String {
        self.0.config.cluster_id_text()
    }

    /// The alarms that are raised, as applied here.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.0.shared.read().machine.alarms().collect()
    }

    /// Counters of the write-ahead log.
    pub fn wal_stats(&self) -> wal::Stats {
        self.0.log.stats()
    }

    pub(crate) fn admission(&self) -> &Admission {
        &self.0.admission
    }

    pub(crate) fn membership_lock(&self) -> &tokio::sync::Mutex<()> {
        &self.0.membership_lock
    }

    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.0.log.last_log_id()
    }

    /// The newest entry that another member has acknowledged to this leader.
    pub(crate) fn acknowledged_by(&self, id: MemberId) -> Option<LogId> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        metrics.replication.as_ref()?.get(&id).copied().flatten()
    }

    /// The members by the newest list in the log, which may not be committed yet.
    pub(crate) fn newest_members(&self) -> Vec<MemberStatus> {
        self.status().members
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.0.connector
    }

    pub(crate) fn forwarder(&self) -> &Forwarder {
        &self.0.forwarder
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    pub(crate) fn log(&self) -> &LogStore {
        &self.0.log
    }

    /// Applied index of the newest checkpoint on disk that this process has written.
    pub(crate) fn checkpoint_index(&self) -> u64 {
        self.0.shared.checkpoint_index()
    }

    pub(crate) fn proposals(&self) -> &mpsc::Sender<bundler::Waiting> {
        &self.0.proposals
    }

    pub(crate) fn reads(&self) -> &mpsc::Sender<WaitingRead> {
        &self.0.reads
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(crate) fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.0.stop.cancelled()
    }

    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    pub(crate) fn has_log(&self) -> bool {
        !self.0.log.is_blank()
    }

    /// Where a member is reached, by the newest membership or else by the initial one.
    pub(crate) fn address_of(&self, id: MemberId) -> Option<String> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let known = metrics.membership_config.membership().get_node(&id).cloned();
        known.or_else(|| self.config().initial_members.get(&id).cloned()).map(|member| member.address)
    }

    /// A client of the leader for single questions.
    pub(crate) fn leader_client(&self, leader: MemberId) -> Result<PeerClient, String> {
        let address = self.address_of(leader).ok_or("the leader's address is not known yet")?;
        self.connector().cached_client(leader, &address).map_err(|e| e.to_string())
    }

    /// The index of the newest entry applied here.
    pub(crate) fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.0.shared.applied.subscribe()
    }

    pub(crate) async fn wait_applied(&self, index: u64) -> Result<(), Error> {
        let mut applied = self.applied();
        let stopped = |_| Error::Stopped { reason: "it is shutting down".into() };
        applied.wait_for(|applied| *applied >= Some(index)).await.map(drop).map_err(stopped)
    }
}

pub(crate) fn read_error(error: ReadError) -> Error {
    match error {
        ReadError::Compacted { requested, compact_revision } => {
            Error::Compacted { requested, compact_revision }
        }
        ReadError::Future { requested, revision } => Error::Future { requested, newest: revision },
    }
}

fn raft_config(config: &Config) -> Result<openraft::Config, openraft::ConfigError> {
    let millis = |duration: Duration| duration.as_millis() as u64;
    openraft::Config {
        cluster_name: "barque".into(),
        heartbeat_interval: millis(config.heartbeat_interval),
        election_timeout_min: millis(config.election_timeout_min),
        election_timeout_max: millis(config.election_timeout_max),
        enable_pre_vote: Some(true),
        // Switched on when the member is admitted.
        enable_elect: false,
        // A leader that comes back campaigns again: `bootstrap` says why.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.checkpoint_entries),
        max_in_snapshot_log_to_keep: config.log_entries_kept,
        replication_lag_threshold: config.log_entries_kept,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    }
    .validate()
}

/// What lies in the data directory, opened.
pub(crate) struct Disk {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachineShell,
    pub(crate) shared: Arc<Shared>,
}

impl Disk {
    fn open_log(config: &Config, options: &wal::Options) -> Result<(Wal, wal::Recovered), wal::Error> {
        #[cfg(feature = "simulation")]
        if let Some(simulation) = &config.simulation {
            return Wal::simulate(&simulation.disk, options, Arc::clone(&simulation.flush_time));
        }
        #[cfg(not(feature = "simulation"))]
        let _ = config;
        Wal::open(options)
    }

    pub(crate) fn open(config: &Config) -> Result<Self, OpenError> {
        if let Some(reason) = offline::fenced(&config.data_dir) {
            return Err(OpenError::Fenced { reason });
        }
        let directory = |name: &str| {
            let path = config.data_dir.join(name);
            crate::directories::make(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
            Ok::<_, OpenError>(path)
        };
        let mut options = wal::Options::new(directory("wal")?, config.cluster_id, config.member_id);
        options.segment_bytes = config.wal_segment_bytes;
        let (wal, recovered) = Self::open_log(config, &options)?;
        if recovered.truncated_tail_bytes > 0 {
            tracing::info!(bytes = recovered.truncated_tail_bytes, "cut off the log's unacknowledged tail");
        }
        let log = LogStore::new(wal, recovered)?;
        let machine = StateMachineShell::open(&directory("checkpoint")?, directory("snapshot")?)?;
        let shared = machine.shared();
        let applied = shared.read().last_applied.map(|id| id.index);
        if let Some(purged) = log.purged_index()
            && applied < Some(purged)
        {
            return Err(OpenError::Gap { applied: applied.unwrap_or(0), purged });
        }
        Ok(Self { log, machine, shared })
    }
}
