//! The API over real sockets with TLS, on a store in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod accounts;
mod admission;
mod apply;
mod at_rest;
mod audit;
mod certificates;
mod client;
mod clients;
mod conversion;
mod custom;
mod every_kind;
mod fairness;
mod grpc_objects;
mod kubectl;
mod limits;
mod nodes;
mod objects;
mod port;
mod proxy;
mod rbac;
mod server;
mod streams;
mod tokens;
mod versions;
mod watching;
mod webhook;
mod writes;
