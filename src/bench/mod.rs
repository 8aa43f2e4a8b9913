//! `barque bench store`: a load generator for anything that speaks etcd v3, and the comparison with etcd.
//!
//! Owns the closed loop of clients, the measuring of servers from outside (`/proc`, `/metrics`), and the groups
//! that it starts beside each other. It promises that systems compared in one run get the same work in turns, and
//! that whatever it started is ended and removed when it returns, also on Ctrl-C and on errors.
//! It does not look inside a server: everything goes over the wire that every client uses.
//!
//! ```text
//! run ── systems ── group (three members: processes, ports, directories)
//!  │                  └ usage (/proc, /metrics)
//!  ├─ load ── connection, client (one operation), fanout (watchers) ── histogram
//!  ├─ memory, leader_kill (works of their own)
//!  └─ report ── plot
//! ```

pub(crate) mod api;
mod args;
mod caller;
mod client;
mod connection;
pub(crate) mod failover;
mod fanout;
mod group;
mod histogram;
mod leader_kill;
mod load;
mod memory;
pub(crate) mod network;
mod plot;
pub(crate) mod pods;
mod report;
mod run;
pub(crate) mod scheduler;
mod systems;
mod usage;
mod work;

pub(crate) use args::BenchCommand;
pub(crate) use run::run;
