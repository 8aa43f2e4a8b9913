//! The applied state as the consensus library wants to see it, and as everybody else reads it.
//!
//! Owns the state machine behind one lock: applying takes it for writing, a batch of entries at a time;
//! reads and watchers take it for reading. Promises: outcomes are answered and watchers woken in log order;
//! what a raft snapshot or a checkpoint says about a log id is the state at exactly that log id.
//!
//! A *raft snapshot* for this library is our checkpoint: building one means writing behind what changed
//! since the last, and the log is purged only behind a checkpoint that is known to be on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use state_machine::{Envelope, Outcome, Position, StateMachine};
use tokio::sync::watch;

use super::checkpointer::Checkpointer;
use super::snapshot_receive::{self, Incoming};
use super::snapshot_send::TransferCounters;
use super::snapshot_transfer::{self, Snapshot, SnapshotData};
use super::types::{Applied, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, log_id};
use crate::blocking;
use crate::checkpoint::{Checkpoint, Loaded};
use crate::gauges::Gauges;
use crate::lessor::Lessor;
use crate::raft::codec;
use crate::store::OpenError;
use crate::watch::Hub;

/// Entries applied under one hold of the lock; readers get a turn in between.
const BATCH_MAX: usize = 256;

/// Between two attempts to write a checkpoint.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);

/// Everything that applying entries changes.
pub(crate) struct State {
    pub(crate) machine: StateMachine,
    pub(crate) last_applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl State {
    /// What a snapshot taken now describes.
    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }

    fn from_meta(machine: StateMachine, meta: SnapshotMeta) -> Self {
        Self { machine, last_applied: meta.last_log_id, membership: meta.last_membership }
    }
}

/// The state of one member, shared by those who apply, read, watch and checkpoint.
pub(crate) struct Shared {
    state: Arc<RwLock<State>>,
    pub(crate) hub: Hub,
    pub(crate) gauges: Gauges,
    pub(crate) lessor: Lessor,
    /// Index of the newest applied entry.
    pub(crate) applied: watch::Sender<Option<u64>>,
    checkpointer: Checkpointer,
    pub(crate) snapshot_directory: PathBuf,
    pub(crate) incoming: Incoming,
    pub(crate) transfers: Arc<TransferCounters>,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no code panics while it holds the state's lock")
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no code panics while it holds the state's lock")
    }

    pub(crate) fn state(&self) -> &Arc<RwLock<State>> {
        &self.state
    }

    /// Applied index of the newest checkpoint on disk.
    pub(crate) fn checkpoint_index(&self) -> u64 {
        self.checkpointer.durable_index()
    }

    /// Asks for a checkpoint without waiting for it.
    pub(crate) fn checkpoint_soon(&self) {
        self.checkpointer.write_in_background();
    }

    /// Writes a checkpoint of the state as it is and waits until it is on disk.
    pub(crate) async fn checkpoint_now(&self) -> io::Result<SnapshotMeta> {
        self.checkpointer.write().await
    }
}

/// See the module's head.
#[derive(Clone)]
pub(crate) struct StateMachineShell {
    shared: Arc<Shared>,
}

impl StateMachineShell {
    /// Loads the newest state on disk: the checkpoint, or a snapshot that was received after it.
    pub(crate) fn open(checkpoint: &Path, snapshot_directory: PathBuf) -> Result<Self, OpenError> {
        let (checkpoint, loaded) = Checkpoint::open(checkpoint)?;
        let mut state = match loaded {
            Loaded::State { machine, extra } => State::from_meta(*machine, codec::meta_from_record(extra)?),
            Loaded::Fresh | Loaded::Discarded { .. } => {
                State::from_meta(StateMachine::new(), SnapshotMeta::default())
            }
        };
        let installed = snapshot_transfer::installed_path(&snapshot_directory);
        if let Some((meta, machine)) = newer_snapshot(&installed, &state) {
            state = State::from_meta(machine, meta);
        }
        remove_strays(&snapshot_directory, &installed);
        let applied = state.last_applied.map(|id| id.index);
        let hub = Hub::default();
        hub.publish_all(state.machine.revision());
        let gauges = Gauges::default();
        gauges.set(&state.machine);
        let state = Arc::new(RwLock::new(state));
        let checkpointer = Checkpointer::start(checkpoint, Arc::clone(&state), installed);
        let applied = watch::channel(applied).0;
        let lessor = Lessor::default();
        let transfers = Arc::<TransferCounters>::default();
        let incoming = Incoming::new(snapshot_directory.clone(), Arc::clone(&transfers));
        let shared = Shared {
            state,
            hub,
            gauges,
            lessor,
            applied,
            checkpointer,
            snapshot_directory,
            incoming,
            transfers,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn apply_batch(&self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut decoded = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            decoded.push((Step::of(&entry)?, entry, responder));
        }
        let mut answers: Vec<(ApplyResponder<TypeConfig>, Vec<Outcome>)> = Vec::with_capacity(decoded.len());
        let mut applied = None;
        {
            let mut state = self.shared.write();
            let before = state.machine.revision();
            for (step, entry, responder) in decoded {
                let outcomes = step.apply(&mut state, entry);
                applied = state.last_applied.map(|id| id.index);
                for outcome in &outcomes {
                    self.shared.lessor.note(outcome);
                }
                answers.extend(responder.map(|responder| (responder, outcomes)));
            }
            self.shared.hub.publish(&state.machine, before);
            state.machine.discard_events();
            self.shared.gauges.set(&state.machine);
        }
        self.shared.applied.send_replace(applied);
        for (responder, outcomes) in answers {
            responder.send(Applied(outcomes));
        }
        Ok(())
    }

    fn install(&self, meta: &SnapshotMeta, path: &Path) -> Result<(), snapshot_transfer::SnapshotFileError> {
        let (_, machine) = snapshot_transfer::restore(path)?;
        let installed = snapshot_transfer::keep(path, &self.shared.snapshot_directory)?;
        let revision = machine.revision();
        {
            let mut state = self.shared.write();
            *state = State::from_meta(machine, meta.clone());
            self.shared.gauges.set(&state.machine);
            self.shared.hub.publish_all(revision);
        }
        self.shared.applied.send_replace(meta.last_log_id.map(|id| id.index));
        tracing::info!(path = %installed.display(), revision, "took over the leader's state");
        Ok(())
    }
}

/// What applying an entry means, decided before the lock is taken.
enum Step {
    Commands(Vec<Envelope>),
    Other,
}

impl Step {
    fn of(entry: &Entry) -> io::Result<Self> {
        match &entry.payload {
            EntryPayload::Normal(proposal) => Envelope::decode_all(proposal.0.clone())
                .map(Self::Commands)
                .map_err(|error| {
                    io::Error::other(format!(
                        "log entry {} holds a command that this version cannot read ({error}): upgrade this member",
                        entry.log_id.index
                    ))
                }),
            EntryPayload::Blank | EntryPayload::Membership(_) => Ok(Self::Other),
        }
    }

    fn apply(self, state: &mut State, entry: Entry) -> Vec<Outcome> {
        let id = entry.log_id;
        let position = Position { log_index: id.index, term: id.leader_id.term };
        let outcomes = match self {
            Self::Commands(commands) => state.machine.apply_all(position, &commands),
            Self::Other => {
                state.machine.skip(position);
                Vec::new()
            }
        };
        if let EntryPayload::Membership(membership) = entry.payload {
            state.membership = StoredMembership::new(Some(id), membership);
        }
        state.last_applied = Some(log_id(id.leader_id.term, id.index));
        outcomes
    }
}

/// The state in the installed snapshot, if there is one that is newer than the checkpoint.
fn newer_snapshot(installed: &Path, state: &State) -> Option<(SnapshotMeta, StateMachine)> {
    if !installed.exists() {
        return None;
    }
    match snapshot_transfer::restore(installed) {
        Ok((meta, machine)) if meta.last_log_id > state.last_applied => Some((meta, machine)),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(%error, "a received snapshot is of no use; the leader will send another");
            None
        }
    }
}

/// Removes what interrupted installations left; transfers that may go on are left to `snapshot_receive`.
fn remove_strays(directory: &Path, keep: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let stray = |path: &PathBuf| path != keep && !snapshot_receive::is_partial(path);
    for path in entries.flatten().map(|entry| entry.path()).filter(stray) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished snapshot");
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachineShell {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.shared.read();
        Ok((state.last_applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut entries = entries.fuse();
        while let Some(first) = entries.next().await {
            let mut batch = vec![first?];
            while batch.len() < BATCH_MAX {
                match entries.next().now_or_never() {
                    Some(Some(entry)) => batch.push(entry?),
                    Some(None) | None => break,
                }
            }
            self.apply_batch(batch)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::File(path) = snapshot else {
            return Err(io::Error::other("only a received snapshot can be installed"));
        };
        let shell = self.clone();
        let meta = meta.clone();
        let installing = blocking::run(move || shell.install(&meta, &path));
        installing.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        // The file that was received is durable; the checkpoint follows in its own time.
        self.shared.checkpointer.write_in_background();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let meta = self.shared.read().meta();
        Ok(meta.last_log_id.is_some().then(|| openraft::Snapshot {
            meta,
            snapshot: SnapshotData::Live(Arc::clone(self.shared.state())),
        }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachineShell {
    type SnapshotData = SnapshotData;

    /// Goes on until a checkpoint is on disk. An error would end consensus, and a full disk is no reason for that:
    /// the log is only kept for longer. Only when nobody is left to write one is it an error.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = loop {
            match self.shared.checkpoint_now().await {
                Ok(meta) => break meta,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(error),
                // The checkpointer has said why.
                Err(_) => tokio::time::sleep(CHECKPOINT_RETRY).await,
            }
        };
        Ok(openraft::Snapshot { meta, snapshot: SnapshotData::Live(Arc::clone(self.shared.state())) })
    }
}
