//! The flags of `barque bench api`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// New objects.
    Create,
    /// One object, linearizable.
    Get,
    /// One object, as the replica asked has it.
    #[value(name = "get-local")]
    #[serde(rename = "get-local")]
    GetLocal,
    /// A merge patch of one object.
    Patch,
    /// All objects in one answer.
    List,
    /// Changes on their way to many watchers.
    Watch,
}

impl Work {
    /// As flags and reports name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::GetLocal => "get-local",
            Self::Patch => "patch",
            Self::List => "list",
            Self::Watch => "watch",
        }
    }
}

/// Flags of `bench api`. Without `--kubeconfig` it starts three replicas of its own.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchApiArgs {
    /// Measure this cluster, in a namespace of its own, instead of starting one.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Which works. Default: all.
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    pub(crate) work: Vec<Work>,

    /// Clients at the same time, spread over the replicas.
    #[arg(long, default_value_t = 16)]
    pub(crate) clients: usize,

    /// How long each work is measured, in seconds.
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,

    /// Objects that are there when gets, patches and lists begin.
    #[arg(long, default_value_t = 1000)]
    pub(crate) objects: usize,

    /// Bytes of data in each object.
    #[arg(long, default_value_t = 1024)]
    pub(crate) bytes: usize,

    /// Watchers of all objects.
    #[arg(long, default_value_t = 100)]
    pub(crate) watchers: usize,

    /// Changes in a second that the watchers are shown.
    #[arg(long, default_value_t = 50)]
    pub(crate) changes: u64,

    /// Where the replicas' directories are made. Default: TMPDIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Write every number to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
