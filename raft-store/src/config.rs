//! What one member must know to start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::compactor::Compaction;
use crate::etcd::AuthToken;
use crate::raft::{Member, MemberId, PeerTls};

/// Learners at the same time, unless configured otherwise: each costs the leader as much as a voter.
pub const LEARNERS_MAX: usize = 8;

/// Half of what a network of one gigabit carries, unless configured otherwise.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// Settings of one member's store. [`Config::new`] fills in everything that has a sensible default.
#[derive(Clone)]
pub struct Config {
    /// Members of one group share it; a member refuses to talk to another group.
    pub cluster_id: [u8; 16],
    /// This member's id; never reused within the group.
    pub member_id: MemberId,
    /// This member's name and address.
    pub member: Member,
    /// Directory of the log, the checkpoint and received snapshots.
    pub data_dir: PathBuf,
    /// The members that form the group when it is first started; the same at each of them.
    pub initial_members: BTreeMap<MemberId, Member>,
    /// The group exists already and has this member on its list: never form a new one.
    pub join: bool,
    /// Refuse changes of the membership that could lose the majority.
    pub strict_membership: bool,
    /// Learners at the same time.
    pub learners_max: usize,
    /// How members prove who they are. `None`: clear text, for tests on loopback.
    pub peer_tls: Option<PeerTls>,
    /// Time between a leader's heartbeats.
    pub heartbeat_interval: Duration,
    /// A follower that hears nothing campaigns after a random time between this…
    pub election_timeout_min: Duration,
    /// …and this. The longer bound is also how long a follower trusts its leader.
    pub election_timeout_max: Duration,
    /// The leader answers linearizable reads by its lease; the module `lease_reads` says what that assumes of clocks.
    pub lease_reads: bool,
    /// Most bytes a second that this member, as the leader, sends of snapshots, to all others together, lest they take the
    /// network from the log; 0: no bound.
    pub snapshot_bytes_per_second: u64,
    /// Largest encoded command.
    pub request_bytes_max: usize,
    /// Most compares, and most operations in one branch, of an etcd client's transaction.
    pub txn_ops_max: usize,
    /// How long a write looks for a leader and waits for a majority.
    pub propose_timeout: Duration,
    /// How long a linearizable read looks for a leader and waits to be applied here.
    pub read_timeout: Duration,
    /// At most so many log entries between two checkpoints…
    pub checkpoint_entries: u64,
    /// …and about so many bytes of log.
    pub checkpoint_log_bytes: usize,
    /// At most so many entries are kept in the log behind a checkpoint, for followers that lag…
    pub log_entries_kept: u64,
    /// …and about so many bytes of them.
    pub log_bytes_kept: usize,
    /// How often a watch that asks for it hears how far it is when nothing happens.
    pub watch_progress_interval: Duration,
    /// How often the leader notes in the log what is left of leases that live longer than this.
    pub lease_checkpoint_interval: Duration,
    /// How much history is kept for watches and paged lists.
    pub compaction: Compaction,
    /// Most bytes that the state may take (`StateMachine::bytes_in_use`); 0: etcd's default of 2 GiB;
    /// negative: no limit.
    pub quota_bytes: i64,
    /// How users of the etcd services prove who they are after they have given their password.
    pub auth_token: AuthToken,
    /// bcrypt's work factor for new passwords, 4 to 31.
    pub bcrypt_cost: u32,
    /// Between two comparisons of the members' states; zero: none.
    pub hash_check_period: Duration,
    /// Size of one segment of the write-ahead log.
    pub wal_segment_bytes: u64,
    /// What takes the place of disk and network.
    #[cfg(feature = "simulation")]
    pub simulation: Option<crate::simulation::Simulation>,
}

impl Config {
    /// A configuration with default timings and limits.
    pub fn new(
        cluster_id: [u8; 16],
        member_id: MemberId,
        initial_members: BTreeMap<MemberId, Member>,
        data_dir: PathBuf,
    ) -> Self {
        Self {
            cluster_id,
            member_id,
            member: initial_members.get(&member_id).cloned().unwrap_or_default(),
            data_dir,
            initial_members,
            join: false,
            strict_membership: true,
            learners_max: LEARNERS_MAX,
            peer_tls: None,
            heartbeat_interval: Duration::from_millis(40),
            election_timeout_min: Duration::from_millis(150),
            election_timeout_max: Duration::from_millis(300),
            lease_reads: false,
            snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
            request_bytes_max: 3 * 512 * 1024,
            txn_ops_max: 128,
            propose_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            checkpoint_entries: 10_000,
            checkpoint_log_bytes: 16 * 1024 * 1024,
            log_entries_kept: 5_000,
            log_bytes_kept: 8 * 1024 * 1024,
            watch_progress_interval: Duration::from_secs(600),
            lease_checkpoint_interval: Duration::from_secs(300),
            compaction: Compaction::Period(Duration::from_secs(300)),
            quota_bytes: 0,
            auth_token: AuthToken::default(),
            bcrypt_cost: 10,
            hash_check_period: Duration::from_secs(60),
            wal_segment_bytes: 64 * 1024 * 1024,
            #[cfg(feature = "simulation")]
            simulation: None,
        }
    }

    /// The group's id in hexadecimal.
    pub(crate) fn cluster_id_text(&self) -> String {
        self.cluster_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
