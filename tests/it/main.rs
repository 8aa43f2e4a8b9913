//! The `barque` binary from outside.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is the report")]

mod cluster;
mod command_line;
mod demo;
mod down;
mod endpoint;
mod etcd_clients;
mod hello;
mod store;
mod support;
mod up;
