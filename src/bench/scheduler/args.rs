//! The flags of `barque bench scheduler`.

use std::path::PathBuf;

use clap::Args;

/// Flags of `bench scheduler`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchSchedulerArgs {
    /// Which workloads, by name; a name's beginning chooses all that begin so. Default: all.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) work: Vec<String>,

    /// How many nodes, one run for each number.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "500")]
    pub(crate) nodes: Vec<usize>,

    /// How many pods are measured. Default: what the workload says for so many nodes.
    #[arg(long)]
    pub(crate) pods: Option<usize>,

    /// Clients that create objects at the same time.
    #[arg(long, default_value_t = 12)]
    pub(crate) clients: usize,

    /// The longest that one workload may take, in seconds.
    #[arg(long, default_value_t = 300)]
    pub(crate) timeout_seconds: u64,

    /// Kill the leader (SIGKILL) when half of the pods are bound. That no pod is bound twice and no node is
    /// over-committed is checked always.
    #[arg(long)]
    pub(crate) kill_leader: bool,

    /// A KubeSchedulerConfiguration for the replicas.
    #[arg(long, value_name = "FILE")]
    pub(crate) scheduler_config: Option<PathBuf>,

    /// Where the replicas' directories are made. Default: TMPDIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Write every number to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw the averages beside kube-scheduler's floors.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}
