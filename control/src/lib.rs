//! One control-plane replica: the embedded store, the Kubernetes API, node sessions, the scheduler.

pub mod audit;
pub mod auth;
mod backends;
pub mod cluster_work;
pub mod config;
pub mod controllers;
mod custom_copies;
pub mod encryption;
pub mod flow_control;
pub mod grpc;
pub mod heartbeats;
pub mod leader;
pub mod object_store;
pub mod pki;
pub mod pod_cidr;
pub mod port;
pub mod reflector;
pub mod registry;
pub mod rest;
pub mod scheduling;
pub mod server;
pub mod usage;

pub use config::Config;
pub use server::{Error, run, run_telling};

#[cfg(test)]
mod test_cluster;
