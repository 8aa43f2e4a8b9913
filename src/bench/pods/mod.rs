//! `barque bench pods`: how long a container takes to its first instruction, beside `runc` and `crun`, and a sandbox
//! with one beside containerd's; and what pods take and cost in a cluster of one master and one node that it makes and removes.
//!
//! Owns what it starts: containers, bundles, the cluster; all of it is gone when it returns, also on errors. It
//! promises that runtimes compared in one run get the same work in turns. Times of containers are read from the
//! containers themselves: their program prints the machine's monotonic clock as its first deed.
//!
//! ```text
//! run ── containers ── oci (runc, crun)
//!  │          └ clock (the program inside)
//!  ├─ cri (barque cri, containerd)
//!  ├─ lives ── cluster (barque up, down)
//!  │      └ api (HTTP, watches)
//!  └─ report
//! ```

pub(crate) mod api;
mod args;
pub(crate) mod clock;
mod cluster;
mod containers;
mod cri;
mod lives;
mod oci;
mod report;
mod run;

pub(crate) use args::BenchPodsArgs;
pub(in crate::bench) use cluster::Cluster;
pub(crate) use run::run;
