//! `barque bench api`: requests of the Kubernetes API against a cluster, or against three replicas of its own.
//!
//! Owns what it starts and what it makes: its replicas and their directory, or its namespace in somebody's cluster,
//! are gone when it returns, also on errors. Load is a closed loop: each client sends its next request when the
//! last one is answered. Latencies are the clients'; nothing is asked of a server that a user could not ask.
//!
//! ```text
//! run ── site (whose replicas) ── load (create, get, patch, list) ── histogram
//!  │                          └─ watch (watchers, and one who changes things)
//!  └─ report (table, JSON)
//! ```

mod args;
mod load;
mod report;
mod run;
mod site;
mod watch;

pub(crate) use args::BenchApiArgs;
pub(crate) use run::run;
