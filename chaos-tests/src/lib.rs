//! Starts real clusters, loads them, and breaks them.
//!
//! Owns what fault experiments share: clusters of real processes in network namespaces ([`cluster`]), a disk
//! that loses what was not synced ([`cluster::disk`]), a client of the API that never retries by itself
//! ([`client`]), and workloads that remember what was acknowledged ([`workload`]). Nothing here judges: the
//! tests do.

pub mod client;
pub mod cluster;
pub mod workload;
