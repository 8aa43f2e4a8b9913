//! The replicated store: a write-ahead log, consensus over it, and the applied state that it serves.
//!
//! A library: every control-plane replica embeds it through [`Store`]. The state itself, and what commands
//! mean, is the pure core in `state-machine`; this is the shell: disks, sockets, tasks and their order.

mod admission;
mod blocking;
mod bootstrap;
mod bundler;
pub mod chance;
pub mod checkpoint;
mod compactor;
mod config;
mod directories;
mod error;
pub mod etcd;
mod forward;
mod full_disk;
mod gauges;
mod guards;
mod leadership;
mod lease_reads;
mod lessor;
mod log_keeper;
mod metrics;
pub mod mutants;
pub mod offline;
mod propose;
mod quota;
mod raft;
mod read_index;
#[cfg(feature = "simulation")]
pub mod simulation;
mod status;
mod store;
mod succession;
mod version_gate;
pub mod wal;
mod watch;

pub use compactor::Compaction;
pub use config::{Config, LEARNERS_MAX, SNAPSHOT_BYTES_PER_SECOND};
pub use error::Error;
pub use leadership::Leadership;
pub use raft::{
    ConnectError, DecodeError, Description, Member, MemberId, PeerServer, PeerService, PeerTls,
    SnapshotTransfers, describe_cluster,
};
pub use state_machine;
pub use status::{MemberStatus, Role, Status};
pub use store::{OpenError, Store};
pub use watch::Watcher;
