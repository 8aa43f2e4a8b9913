//! Groups of real members over real sockets and real files, in one process.

mod etcd;
mod etcd_auth;
mod group;
mod lease_reads;
mod membership;
mod proxy;
mod read_only_txn;
mod replication;
mod requests;
mod restart;
mod snapshots;
mod space;
