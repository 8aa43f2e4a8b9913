//! The flags of `barque bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::api::BenchApiArgs;
use super::failover::BenchFailoverArgs;
use super::network::BenchNetworkArgs;
use super::pods::BenchPodsArgs;
use super::scheduler::BenchSchedulerArgs;
use super::work::Work;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Drives stores over etcd's v3 protocol and measures them; compares with etcd when asked.
    Store(BenchStoreArgs),
    /// Starts containers beside runc and crun, and pods in a cluster of its own, and measures them.
    Pods(BenchPodsArgs),
    /// Connects through a Service's address and directly, with 1, 100 and 10,000 Services, and measures both.
    Network(BenchNetworkArgs),
    /// Schedules kube-scheduler's own workloads on simulated nodes, through three replicas of its own, and measures
    /// pods per second.
    Scheduler(BenchSchedulerArgs),
    /// Sends requests of the Kubernetes API (get, list, watch, create, patch) to a cluster, or to three replicas of
    /// its own, and measures them.
    Api(BenchApiArgs),
    /// Kills the leader of three replicas of its own, again and again, and measures how long no write is acknowledged
    /// and no pod bound.
    Failover(BenchFailoverArgs),
}

/// What to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// A three-member etcd, fsync on, in a directory beside ours.
    Etcd,
}

/// Flags of `bench store`. Without `--endpoints` it starts a three-member `barque store` of its own.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchStoreArgs {
    /// Drive these client addresses instead of starting a group, as in 127.0.0.1:2379,127.0.0.1:22379.
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "against")]
    pub(crate) endpoints: Vec<String>,

    /// The processes that serve --endpoints, for their processor time.
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "endpoints")]
    pub(crate) pids: Vec<i32>,

    /// Also start this system, and let the two take turns.
    #[arg(long, value_enum)]
    pub(crate) against: Option<Rival>,

    /// The etcd to start.
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    pub(crate) etcd_binary: PathBuf,

    /// Where the groups' directories are made; the disk under it is what is measured. Default: TMPDIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// What to do. Default: all but memory and leader-kill.
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    pub(crate) work: Vec<Work>,

    /// How many clients (of watch-fanout: watchers), one after another, as in 1,10,100,1000. Default: what suits
    /// each work.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) clients: Vec<usize>,

    /// The size of a value.
    #[arg(long, default_value_t = 256)]
    pub(crate) value_bytes: usize,

    /// How long each measurement lasts.
    #[arg(long, default_value_t = 1.5)]
    pub(crate) seconds: f64,

    /// How often each system gets its turn; the medians are reported.
    #[arg(long, default_value_t = 2)]
    pub(crate) rounds: usize,

    /// How many keys there are to read and overwrite; with memory: to load.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) keys: usize,

    /// With leader-kill: how often.
    #[arg(long, default_value_t = 3)]
    pub(crate) kills: usize,

    /// At most this many connections, spread over all endpoints.
    #[arg(long, default_value_t = 12)]
    pub(crate) connections: usize,

    /// Threads that generate load. Default: half of the processors.
    #[arg(long)]
    pub(crate) threads: Option<usize>,

    /// Write every number to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Plot throughput and latency by clients into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}
