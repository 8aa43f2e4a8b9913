//! The `.proto` files as Rust types and gRPC stubs. Generated code only, no logic.
//!
//! These types are the wire: they stop at the edges of the packages that speak it (the peer client and
//! service in `raft-store`, its `etcd/` services, `grpc/` in `control`, the session and `cri` in `node`).

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

/// `barque.objects.v1`: the objects of the API, for clients.
pub mod objects {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("barque.objects.v1");
}

/// `google.rpc`: what errors carry.
pub mod rpc {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("google.rpc");
}

/// The files of what is open to every client, encoded as a `FileDescriptorSet`.
pub const REFLECTED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reflected.bin"));

/// `grpc.health.v1`: how gRPC servers say that they are well.
pub mod health {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("grpc.health.v1");
}

/// `runtime.v1`: the Kubernetes container runtime interface (CRI).
pub mod cri {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}

/// etcd's v3 protocol: five packages under the names that its clients use.
pub mod etcd {
    /// `mvccpb`: key-value pairs and events.
    pub mod mvccpb {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("mvccpb");
    }

    /// `authpb`: users, roles, permissions.
    pub mod authpb {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("authpb");
    }

    /// `etcdserverpb`: the services that every etcd v3 client uses.
    pub mod etcdserverpb {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("etcdserverpb");
    }

    /// `v3lockpb`: the lock service.
    pub mod v3lockpb {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("v3lockpb");
    }

    /// `v3electionpb`: the election service.
    pub mod v3electionpb {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("v3electionpb");
    }
}
