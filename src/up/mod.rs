//! A whole cluster on this machine, made and removed.
//!
//! `up` makes masters and nodes that are hosts of their own in every respect that matters here: each has a
//! network namespace, an address, a data directory and one process, and can be cut off or killed alone.
//!
//! ```text
//!             127.0.0.1:6443  barque endpoint
//!                   │ follows the ready masters
//!   ┌───────────────┴─── bridge 10.89.0.1/24 ────────────────┐
//!   │           │           │            │           │       │
//! netns       netns       netns        netns       netns
//! master-1    master-2    master-3     node-1      node-2
//! barque      barque      barque       barque      barque
//! control     control     control      node        node ── pods
//! ```
//!
//! With `--master-nodes` a master's namespace holds the process of an agent too, as `master-1-node`.
//!
//! The steps: plan (stored first) → network → files → processes → wait. Each can be repeated, so a cluster
//! some of whose processes were killed is completed by another `up`. `down` undoes them in reverse.

mod configs;
mod files;
pub(crate) mod mounts;
mod network;
pub(crate) mod plan;
pub(crate) mod preflight;
pub(crate) mod process;
pub(crate) mod progress;
mod start;
pub(crate) mod teardown;
pub(crate) mod wait;

pub(crate) use start::{ENDPOINT, Outcome, lock, up};
