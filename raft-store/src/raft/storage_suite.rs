//! The consensus library's own suite for logs and state machines, over ours on a real disk.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use openraft::StorageError;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::snapshot_send::{Courier, Transfer};
use super::snapshot_transfer::{Snapshot, SnapshotData};
use super::state_machine::StateMachineShell;
use super::types::{LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::config::Config;
use crate::store::Disk;

/// Makes an empty log and state, each in a directory of its own.
struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, Member, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Member), StorageError<TypeConfig>> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::new([1; 16], 1, [].into(), directory.path().to_owned());
        config.wal_segment_bytes = 8 * 1024 * 1024;
        let disk = Disk::open(&config).expect("an empty directory opens");
        Ok((directory, disk.log, Member(disk.machine)))
    }
}

/// Our state machine. The suite hands it another member's snapshot as that member has it; it travels here as it
/// does between members, in the messages of a transfer.
struct Member(StateMachineShell);

impl RaftStateMachine<TypeConfig> for Member {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = StateMachineShell;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.0.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        self.0.apply(entries).await
    }

    async fn get_snapshot_builder(&mut self) -> StateMachineShell {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), io::Error> {
        let transfer = Transfer::begin(Vote::new(1, 1), meta.clone(), data);
        let messages = Courier::new(0, Arc::default()).all_messages(transfer).map(Ok);
        let received = self.0.shared().incoming.receive(messages.boxed()).await;
        let (_, snapshot) = received.map_err(io::Error::other)?;
        self.0.install_snapshot(&snapshot.meta, snapshot.snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.0.get_current_snapshot().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_state_are_what_the_library_expects() {
    let passed = Suite::test_all(OnDisk).await;
    passed.expect("the suite asserts by itself; this is an i/o error");
}
