//! Pods: what should run against what does run.
//!
//! ```text
//! session ─► dispatcher ─► one Worker task per pod uid ─► plan (pure) ─► steps ─► runtime, network, images
//!                              ▲   ▲                                        │
//!              exits, probes ──┘   └── timers                 status ◄──────┘─► outbox
//! ```
//! A worker's whole knowledge is a [`record::PodRecord`]; every decision is written to its checkpoint before
//! it is acted upon, so that an agent which dies anywhere is replaced by one that can tell what exists.

pub(crate) mod admission;
mod backoff;
pub(crate) mod bandwidth;
pub(crate) mod checkpoint;
mod confinement;
pub(crate) mod container_spec;
pub(crate) mod containers;
pub(crate) mod context;
pub(crate) mod dispatcher;
pub(crate) mod env;
mod env_from;
mod env_services;
mod events;
mod files;
mod hooks;
mod mirrors;
mod needs;
mod plan;
mod pull;
pub(crate) mod qos;
pub(crate) mod record;
pub(crate) mod roster;
mod start;
mod status;
pub(crate) mod steps;
mod support;
mod termination;
mod verdicts;
mod volumes;
pub(crate) mod worker;
