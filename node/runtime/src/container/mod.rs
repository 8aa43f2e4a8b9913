//! Containers and sandboxes: what is asked for, what is, and the way from one to the other.

pub(crate) mod delete;
pub(crate) mod exec;
pub(crate) mod plan;
pub(crate) mod reboot;
pub(crate) mod spec;
pub(crate) mod start;
pub(crate) mod state;
