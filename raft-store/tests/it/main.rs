//! Groups of real members over real sockets and real files, in one process.

mod etcd;
mod group;
mod replication;
mod restart;
