//! The flags of `barque bench pods`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// A container's start, beside other runtimes.
    Containers,
    /// A sandbox with a container through the CRI, beside containerd.
    Cri,
    /// Pods in a cluster.
    Pods,
}

/// Flags of `bench pods`. Needs root.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchPodsArgs {
    /// What to measure. Default: everything.
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    pub(crate) part: Vec<Part>,

    /// The runtimes to compare with; those that are not found are left out, and said.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "runc,crun")]
    pub(crate) against: Vec<PathBuf>,

    /// The containerd to compare with, `ctr` beside it; left out if it is not found, and said.
    #[arg(long, value_name = "FILE", default_value = "containerd")]
    pub(crate) containerd: PathBuf,

    /// How many containers each runtime starts, and sandboxes each server.
    #[arg(long, default_value_t = 30)]
    pub(crate) starts: usize,

    /// How many pods are made and deleted one after another.
    #[arg(long, default_value_t = 20)]
    pub(crate) singles: usize,

    /// How many pods are made at once.
    #[arg(long, default_value_t = 100)]
    pub(crate) pods: usize,

    /// Where directories are made. Default: TMPDIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Write every number to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
