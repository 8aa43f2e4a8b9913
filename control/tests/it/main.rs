//! The API over real sockets with TLS, on a store in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod accounts;
mod client;
mod kubectl;
mod limits;
mod objects;
mod port;
mod rbac;
mod server;
mod streams;
mod watching;
mod writes;
