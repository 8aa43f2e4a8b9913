//! What a pod waits for from the control plane beside itself: ConfigMaps, Secrets.
//!
//! Owns the worker's view of them. A pod that could not be started for want of an object is tried again the
//! moment that the object changes; nobody waits out a back-off for it.

use std::collections::BTreeSet;

use api::references::{self, Reference};
use tokio::sync::watch;

use super::context::Context;
use super::record::PodRecord;
use super::worker::Worker;

/// The reason of a container that waits for a valid configuration.
pub(super) const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// The reasons of a container whose image cannot be pulled.
const PULL_ERRORS: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

/// One worker's view.
pub(super) struct Needs {
    changes: watch::Receiver<u64>,
    /// Of the referenced objects when they were last looked at.
    fingerprint: Option<u64>,
}

impl Needs {
    pub(super) fn new(context: &Context) -> Self {
        Self { changes: context.objects.subscribe(), fingerprint: None }
    }

    /// Resolves when some object of the node changed since the last look.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // Cannot be: the objects live in the context that the worker holds.
            std::future::pending().await
        }
    }
}

/// Everything that the pod refers to.
pub(super) fn of(record: &PodRecord) -> BTreeSet<Reference> {
    references::of_pod(record.namespace(), record.spec())
}

impl Worker {
    /// Looks whether anything changed that the pod refers to; what waited for it is tried again now.
    pub(super) fn look_at_needs(&mut self) {
        let references = of(&self.record);
        let fingerprint = self.context.objects.fingerprint(&references);
        if self.needs.fingerprint.replace(fingerprint) == Some(fingerprint) {
            return;
        }
        self.record.sandbox_retry_at = None;
        // Credentials may have come; other changes do not make a registry any readier.
        let with_credentials = self.record.spec().image_pull_secrets.as_ref().is_some_and(|s| !s.is_empty());
        for container in self.record.containers.values_mut() {
            let waits = container.waiting.as_ref().map(|waiting| waiting.reason.as_str());
            if with_credentials && waits.is_some_and(|reason| PULL_ERRORS.contains(&reason)) {
                container.retry_at = None;
                container.image_tries = Default::default();
            }
            if container.waiting.as_ref().is_some_and(|waiting| waiting.reason == CONFIG_ERROR) {
                container.retry_at = None;
            }
        }
    }
}
