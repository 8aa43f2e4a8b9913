//! `barque bench scheduler`: kube-scheduler's own workloads, end to end, against a cluster of three replicas.
//!
//! Owns what it starts: three replicas with their directory, gone when it returns, also on errors. Nodes are
//! objects of the API without machines behind them (the replicas are told to bear their silence), pods are made
//! through all three replicas, and a pod counts once a watch shows the node that it is bound to: every binding
//! that is counted is on a majority's disks.
//!
//! ```text
//! run ── cluster (three `barque control`) ── workload (what is made) ── measure (watch, samples)
//!  └─ report (table, JSON) ── plot (SVG)
//! ```

mod args;
pub(crate) mod cluster;
mod measure;
mod plot;
mod report;
mod run;
pub(crate) mod workload;

pub(crate) use args::BenchSchedulerArgs;
pub(crate) use run::run;
