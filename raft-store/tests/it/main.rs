//! Groups of real members over real sockets and real files, in one process.

mod etcd;
mod group;
mod membership;
mod replication;
mod restart;
