//! Groups of real members over real sockets and real files, in one process.

mod group;
mod replication;
mod restart;
