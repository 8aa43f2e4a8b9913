//! etcd's v3 services over one member's store: the same answers, errors and texts that etcd gives.
//!
//! Owns the translation between etcd's protocol and the store, and what etcd does beside its log: watch
//! streams, lease clocks, users' tokens. Generated types stop here. It promises nothing that the store does
//! not: a read is linearizable unless it asks to be serializable; a write is acknowledged when a majority
//! has it on disk.

mod access;
mod auth;
pub(crate) mod cluster;
mod concurrency;
mod convert;
mod election;
pub mod frame;
mod jwt;
mod kv;
mod lease;
mod limits;
mod lock;
mod maintenance;
mod range_stream;
mod request_id;
mod status;
mod tokens;
mod unary;
mod watch;
mod watch_codec;

pub use access::ClientIdentity;
pub use jwt::{Jwt, JwtError};
pub(crate) use tokens::Tokens;
pub use tokens::{AuthToken, AuthTokenError};
pub use unary::{Method, Unary};

use proto::etcd::etcdserverpb as pb;
use tonic::service::{Routes, RoutesBuilder};

use crate::store::Store;

/// The version of etcd whose behaviour is served, where clients ask for one. Clients turn on what a version is
/// known to have: the Kubernetes API server wants 3.5.13 or newer before it asks watches for their progress.
pub const VERSION: &str = "3.5.21";
/// The cluster version: the oldest that every member understands.
pub const CLUSTER_VERSION: &str = "3.5.0";

impl Store {
    /// The header of an answer that shows the store as of `revision`.
    pub(crate) fn etcd_header(&self, revision: u64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.etcd_cluster_id(),
            member_id: self.member_id(),
            revision: convert::signed(revision),
            raft_term: self.leadership().term,
        }
    }

    /// The group's id as etcd has it: the first half of ours.
    pub(crate) fn etcd_cluster_id(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.config().cluster_id;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Every etcd v3 service of this member, ready to be served. TLS and who may connect are the server's matter.
pub fn services(store: &Store) -> Routes {
    let mut routes = RoutesBuilder::default();
    routes.add_service(auth::service(store.clone()));
    routes.add_service(kv::service(store.clone()));
    routes.add_service(cluster::service(store.clone()));
    routes.add_service(watch::service(store.clone()));
    routes.add_service(lease::service(store.clone()));
    routes.add_service(lock::service(store.clone()));
    routes.add_service(election::service(store.clone()));
    routes.add_service(maintenance::service(store.clone()));
    routes.routes()
}
