//! The service `grpc.health.v1.Health`: whether clients should use this replica, as `/readyz` tells it.
//!
//! Serving while a leader is known: without one there is no quorum within reach. Not serving once the replica
//! stops.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use super::OPEN_SERVICES;
use crate::object_store::{ObjectStore, SharedStore};

/// The service, kept current in `tasks` until `stop` is cancelled.
pub(super) fn start(
    store: &SharedStore,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> HealthServer<impl Health> {
    let (reporter, service) = health_reporter();
    let mut leadership = store.leadership();
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            let is_ready = leadership.borrow_and_update().leader.is_some();
            report(&reporter, is_ready).await;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = leadership.changed() => if changed.is_err() { break },
            }
        }
        report(&reporter, false).await;
    });
    service
}

async fn report(reporter: &HealthReporter, is_ready: bool) {
    let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", OPEN_SERVICES[0]] {
        reporter.set_service_status(service, status).await;
    }
}
