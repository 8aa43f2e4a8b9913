//! A member's numbers as etcd's dashboards read them: Prometheus text, etcd's names.
//!
//! Owns the counters that nobody else keeps. A number that etcd has and that means nothing here is left out
//! rather than made up. What a server adds of its own (requests, the process) is the server's.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use exposition::Exposition;

use crate::etcd;
use crate::raft::SnapshotTransfers;
use crate::status::Role;
use crate::store::Store;
use crate::wal::Latency;

/// Upper bounds of etcd's histogram of fsyncs: 1 ms, doubled 13 times.
const FSYNC_BUCKETS: u32 = 14;
const FSYNC_FIRST: Duration = Duration::from_millis(1);

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    leaders: AtomicU64,
    proposals_pending: AtomicI64,
    proposals_failed: AtomicU64,
    lease_reads: AtomicU64,
}

impl Counters {
    /// This member sees another leader than before.
    pub(crate) fn count_leader(&self) {
        self.leaders.fetch_add(1, Relaxed);
    }

    /// A round of reads was answered by the leader's lease.
    pub(crate) fn count_lease_read(&self) {
        self.lease_reads.fetch_add(1, Relaxed);
    }

    /// A proposal begins; it pends until the answer is dropped or ended.
    pub(crate) fn proposal(&self) -> Proposal<'_> {
        self.proposals_pending.fetch_add(1, Relaxed);
        Proposal { counters: self, failed: true }
    }
}

/// A proposal that pends; one whose caller goes away counts as failed.
pub(crate) struct Proposal<'a> {
    counters: &'a Counters,
    failed: bool,
}

impl Proposal<'_> {
    pub(crate) fn end(mut self, succeeded: bool) {
        self.failed = !succeeded;
    }
}

impl Drop for Proposal<'_> {
    fn drop(&mut self) {
        self.counters.proposals_pending.fetch_sub(1, Relaxed);
        self.counters.proposals_failed.fetch_add(u64::from(self.failed), Relaxed);
    }
}

impl Store {
    /// How much snapshots have moved between this member and others.
    pub fn snapshot_transfers(&self) -> SnapshotTransfers {
        self.shared().transfers.read()
    }

    /// Adds this member's numbers to the text.
    pub fn expose_metrics(&self, out: &mut Exposition) {
        self.expose_consensus(out);
        self.expose_state(out);
        let wal = self.wal_stats();
        expose_fsyncs(out, &wal.sync);
        out.counter(
            "etcd_disk_wal_write_bytes_total",
            "Total number of bytes written in WAL.",
            wal.written_bytes,
        );
        self.expose_own(out);
    }

    fn expose_consensus(&self, out: &mut Exposition) {
        let status = self.status();
        let counters = self.counters();
        let leader = status.leadership.leader;
        let flag = u8::from;
        out.head(
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            "gauge",
        );
        out.sample("etcd_server_version", &format!("server_version=\"{}\"", etcd::VERSION), 1);
        out.head(
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            "gauge",
        );
        out.sample("etcd_server_id", &format!("server_id=\"{:x}\"", self.member_id()), 1);
        out.gauge(
            "etcd_server_has_leader",
            "Whether or not a leader exists. 1 is existence, 0 is not.",
            flag(leader.is_some()),
        );
        out.gauge(
            "etcd_server_is_leader",
            "Whether or not this member is a leader. 1 if is, 0 otherwise.",
            flag(leader == Some(self.member_id())),
        );
        out.gauge(
            "etcd_server_is_learner",
            "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            flag(status.role == Role::Learner),
        );
        out.counter(
            "etcd_server_leader_changes_seen_total",
            "The number of leader changes seen.",
            counters.leaders.load(Relaxed),
        );
        out.gauge(
            "etcd_server_proposals_committed_total",
            "The total number of consensus proposals committed.",
            status.committed_index.max(status.applied_index),
        );
        out.gauge(
            "etcd_server_proposals_applied_total",
            "The total number of consensus proposals applied.",
            status.applied_index,
        );
        out.gauge(
            "etcd_server_proposals_pending",
            "The current number of pending proposals to commit.",
            counters.proposals_pending.load(Relaxed),
        );
        out.counter(
            "etcd_server_proposals_failed_total",
            "The total number of failed proposals seen.",
            counters.proposals_failed.load(Relaxed),
        );
    }

    fn expose_own(&self, out: &mut Exposition) {
        let snapshots = self.snapshot_transfers();
        for (name, help, value) in [
            ("snapshot_sent_bytes", "Bytes of raft snapshots sent to other members.", snapshots.sent_bytes),
            ("snapshot_received_bytes", "Bytes of raft snapshots received.", snapshots.received_bytes),
            ("snapshot_sent_resumed", "Transfers to others that broke and went on.", snapshots.sent_resumed),
            (
                "snapshot_received_resumed",
                "Transfers from others that broke and went on.",
                snapshots.received_resumed,
            ),
            (
                "lease_reads",
                "Rounds of linearizable reads that the leader answered by its lease.",
                self.counters().lease_reads.load(Relaxed),
            ),
        ] {
            out.counter(&format!("barque_{name}_total"), help, value);
        }
    }

    fn expose_state(&self, out: &mut Exposition) {
        let (revision, compacted, keys, bytes) = {
            let state = self.shared().read();
            let machine = &state.machine;
            (machine.revision(), machine.compact_revision(), machine.records(), machine.bytes_in_use())
        };
        out.gauge(
            "etcd_server_quota_backend_bytes",
            "Current backend storage quota size in bytes.",
            self.quota_bytes().unwrap_or(0),
        );
        out.gauge(
            "etcd_mvcc_db_total_size_in_bytes",
            "Total size of the underlying database physically allocated in bytes.",
            bytes,
        );
        out.gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Total size of the underlying database logically in use in bytes.",
            bytes,
        );
        out.gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", keys);
        out.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", revision);
        out.gauge(
            "etcd_debugging_mvcc_compact_revision",
            "The revision of the last compaction in store.",
            compacted,
        );
    }
}

fn expose_fsyncs(out: &mut Exposition, latency: &Latency) {
    let name = "etcd_disk_wal_fsync_duration_seconds";
    out.head(name, "The latency distributions of fsync called by WAL.", "histogram");
    let bounds = (0..FSYNC_BUCKETS).map(|power| FSYNC_FIRST * (1 << power));
    let buckets = bounds.map(|bound| (bound.as_secs_f64(), latency.count_within(bound)));
    out.buckets(name, "", buckets, (latency.count(), latency.total.as_secs_f64()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_pends_until_it_ends_or_is_dropped() {
        let counters = Counters::default();
        let (good, lost) = (counters.proposal(), counters.proposal());
        assert_eq!(counters.proposals_pending.load(Relaxed), 2);
        good.end(true);
        drop(lost);
        assert_eq!(counters.proposals_pending.load(Relaxed), 0);
        assert_eq!(counters.proposals_failed.load(Relaxed), 1);
    }
}
