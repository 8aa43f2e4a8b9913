//! Groups of real members over real sockets and real files, in one process.

mod etcd;
mod etcd_auth;
mod group;
mod replication;
mod requests;
mod restart;
mod space;
