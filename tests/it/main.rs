//! The `barque` binary from outside.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is the report")]

mod bench_api;
mod bench_scheduler;
mod chaos;
mod cluster;
mod command_line;
mod containers;
mod demo;
mod down;
mod endpoint;
mod etcd_clients;
mod hello;
mod store;
mod support;
mod up;
