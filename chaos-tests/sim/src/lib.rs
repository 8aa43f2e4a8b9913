//! The store in a simulation: real members, real clients, and a clock, network and disks that follow from one number.
//!
//! A run is one thread. [turmoil](https://docs.rs/turmoil) gives each member an event loop of its own with a clock that
//! stands still until everything has happened, and streams between them that take time, break and are cut. The members are the
//! store's own code, gRPC and all, with logs on disks in memory that forget what was not flushed
//! (`raft_store::simulation`); the clients are the workloads that real clusters get, and so are the judges.
//! What the standard library draws at random it draws from the seed as well ([`chance`]). So a seed is a run: the same faults at
//! the same moments between the same messages, and the same [`Outcome::trace`], today and on another machine.
//!
//! ```text
//! plan (seed ─▶ faults, workloads) ──▶ run ──▶ members (turmoil hosts)   clients (workloads of chaos-tests)
//!                                       │         └ disks, net              └ histories ──▶ checkers ──▶ verdicts, trace
//!                                       └ shrink (which faults does it take?)
//! ```
//!
//! Left out: checkpoints and snapshots, which have threads of their own; pods and controllers. Real processes have those.

pub mod chance;
mod faults;
mod members;
mod net;
pub mod plan;
mod run;
mod shrink;

pub use run::{Outcome, run};
pub use shrink::shrink;
