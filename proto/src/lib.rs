//! The `.proto` files as Rust types and gRPC stubs. Generated code only, no logic.
//!
//! These types are the wire: they stop at the edges of the packages that speak it (the peer client and
//! service in `raft-store`, `grpc/` in `control`, the session in `node`).

/// `barque.raft.v1`: what members of the consensus group say to each other.
pub mod raft {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("barque.raft.v1");
}

/// `barque.node.v1`: node sessions and streams.
pub mod node {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("barque.node.v1");
}

/// `barque.control.v1`: status, joining, leadership.
pub mod control {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("barque.control.v1");
}
