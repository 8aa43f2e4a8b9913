//! The gRPC services of a replica: objects, node sessions and questions about the cluster. Generated types stop
//! here.

pub mod cluster;
mod health;
pub mod node_sessions;
pub mod objects;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::RoutesBuilder;

use crate::auth::Identity;
use crate::object_store::SharedStore;
use crate::rest::Rest;

/// The services that are for every client: objects, health, and what describes them. Who may what is decided
/// where objects are read and written.
pub const OPEN_SERVICES: [&str; 4] = [
    "barque.objects.v1.Objects",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Mounts [`OPEN_SERVICES`]. Health follows the store's leadership, in `tasks`, until `stop`.
pub fn add_open_services(
    routes: &mut RoutesBuilder,
    rest: Arc<Rest>,
    store: &SharedStore,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::REFLECTED)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(objects::Objects::new(rest).service()).add_service(health::start(store, tasks, stop));
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(newer), Ok(older)) => {
            routes.add_service(newer).add_service(older);
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "the gRPC services cannot be described to clients");
        }
    }
}

/// Who calls, as the server found out; nobody if it did not say.
fn identity<T>(request: &tonic::Request<T>) -> Identity {
    request.extensions().get::<Identity>().cloned().unwrap_or_else(Identity::anonymous)
}
