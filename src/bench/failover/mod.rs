//! `barque bench failover`: what clients of the API miss while leaders die, one after the other.
//!
//! Three replicas of its own, nodes without machines behind them, clients that write all the time. From each kill
//! (SIGKILL) on, a new pod is sent to a survivor every few milliseconds, whatever became of the ones before. The first
//! that is acknowledged ends the outage of writes, the first of them that a watch shows with a node ends that of
//! scheduling. So both depend on no client's retry policy, and are exact to that interval. The replica comes back before
//! the next one dies.

mod plot;
mod report;
mod run;

pub(crate) use run::{BenchFailoverArgs, run};
