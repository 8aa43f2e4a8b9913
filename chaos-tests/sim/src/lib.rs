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
//! Checkpoints, received snapshots and changes of the membership are part of it; an operator (`steward`) asks for the latter, and
//! for maintenance. Every tenth seed is a whole cluster: members have the control plane above their stores (registry, watches,
//! scheduler, controllers, node sessions: `control`), and there are nodes, with agents (`agent`) that begin and end programs of
//! simulated machines (`machine`) instead of containers. Left out: TLS. All hosts have one clock; in every second seed members'
//! own times are longer or shorter, as if theirs ran apart.

mod agent;
pub mod chance;
mod faults;
mod machine;
mod masters;
mod members;
mod net;
pub mod plan;
mod run;
mod shrink;
mod steward;

pub use members::Settings;
pub use run::{Outcome, run};
pub use shrink::shrink;
