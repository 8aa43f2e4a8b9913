//! Starts real clusters, loads them, breaks them, and judges what they did.
//!
//! Owns what fault experiments share: clusters of real processes ([`cluster`]), workloads that record what they asked
//! and were told ([`workload`]), the record itself ([`history`]), and the judges ([`checker`]). `barque chaos` and the
//! tests are made of these. It promises that nothing outlives an experiment, however it ends.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod experiment;
pub mod history;
pub mod nemesis;
pub mod report;
pub mod workload;
