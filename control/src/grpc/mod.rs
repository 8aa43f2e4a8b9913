//! The gRPC services of a replica: node sessions and questions about the cluster. Generated types stop here.

pub mod cluster;
pub mod node_sessions;

use crate::auth::Identity;

/// Who calls, as the server found out; nobody if it did not say.
fn identity<T>(request: &tonic::Request<T>) -> Identity {
    request.extensions().get::<Identity>().cloned().unwrap_or_else(Identity::anonymous)
}
