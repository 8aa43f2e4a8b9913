//! What the agent does for its images in the background: makes them safe, and removes those that nobody uses.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::images::{self, GcError, ImageStore};
use crate::session::outbox::{EventKind, EventRecord, Outbox, node_record};

/// Makes imported images safe against a power cut, off everybody's path.
pub(crate) async fn flush(images: Arc<ImageStore>, shutdown: CancellationToken) {
    let flushed = tokio::task::spawn_blocking(move || images.flush());
    tokio::select! {
        () = shutdown.cancelled() => {}
        result = flushed => {
            if let Err(error) = result.expect("flushing does not panic") {
                tracing::warn!(%error, "images are not safe against a power cut yet");
            }
        }
    }
}

/// Keeps the disk from filling with images that nobody uses.
pub(crate) async fn collect_garbage(
    images: Arc<ImageStore>,
    config: Config,
    outbox: Arc<Outbox>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(config.images.gc_interval) => {}
        }
        let (store, settings) = (Arc::clone(&images), config.images.clone());
        let pods_dir = config.data_dir.join("pods");
        let collected = tokio::task::spawn_blocking(move || {
            let in_use = images::images_in_use(&pods_dir)?;
            store.collect_garbage(&settings, &in_use)
        });
        match collected.await.expect("collecting images does not panic") {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "removed unused images"),
            Err(error) => {
                tracing::warn!(%error, "images cannot be removed as they should");
                let reason = match error {
                    GcError::NotEnough { .. } => "FreeDiskSpaceFailed",
                    GcError::Store(_) => "ImageGCFailed",
                };
                outbox.event(EventRecord {
                    event_kind: EventKind::Warning,
                    ..node_record(&config.node_name, reason, error.to_string())
                });
            }
        }
    }
}
