//! A container's process: how the shim makes it, what it does before it executes its program, and how
//! it tells what went wrong.

pub(crate) mod channel;
pub(crate) mod enter;
pub(crate) mod exec;
pub(crate) mod failure;
pub(crate) mod init;
pub(crate) mod parent;
pub(crate) mod users;
