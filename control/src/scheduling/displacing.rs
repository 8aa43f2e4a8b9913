//! Sending pods away to make room for a more important one.
//!
//! Victims are deleted with their own grace, all at once; each is told why by the same write (condition
//! `DisruptionTarget`). The room is kept by the core meanwhile. If a victim cannot be deleted, the pod is tried again.

use std::sync::Arc;

use api::Status;
use futures_util::future::join_all;
use scheduler::{Displacement, PodInfo};

use super::Shell;
use super::reports::{change_status, pod_kind, regarding};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, Disruption, EventType, Regarding, Registry, Target};

/// How sending the victims away ended.
pub(super) struct Displaced {
    epoch: Epoch,
    /// For whom.
    pod: Arc<str>,
    /// The victims that were deleted.
    gone: Vec<(Regarding, String)>,
    error: Option<Status>,
}

impl Shell {
    pub(super) fn displace(&mut self, epoch: Epoch, pod: &PodInfo, displacement: &Displacement) {
        let registry = self.registry.clone();
        let victims: Vec<Regarding> = displacement
            .victims
            .iter()
            .map(|victim| regarding(&victim.namespace, &victim.name, &victim.uid))
            .collect();
        let passed_over: Vec<Regarding> = displacement
            .passed_over
            .iter()
            .map(|other| regarding(&other.namespace, &other.name, &other.uid))
            .collect();
        let message = format!("Preempted by pod {} on node {}", pod.uid, displacement.node);
        let pod = pod.uid.clone();
        self.displacing.push(Box::pin(async move {
            let (mut gone, mut error) = (Vec::new(), None);
            let sent = victims.iter().map(|victim| send_away(&registry, victim, epoch));
            let sent = join_all(sent).await;
            for (victim, outcome) in victims.into_iter().zip(sent) {
                match outcome {
                    Ok(()) => gone.push((victim, message.clone())),
                    Err(status) => error = Some(status),
                }
            }
            for other in passed_over {
                let cleared = change_status(&registry, &other, epoch, |value, _| {
                    if let Some(status) = value["status"].as_object_mut() {
                        status.remove("nominatedNodeName");
                    }
                });
                if let Err(status) = cleared.await {
                    tracing::debug!(pod = other.name, %status, "the nominated node was not cleared");
                }
            }
            Displaced { epoch, pod, gone, error }
        }));
    }

    pub(super) fn displaced(&mut self, displaced: Displaced) {
        if self.epoch != Some(displaced.epoch) {
            return;
        }
        for (victim, message) in displaced.gone {
            self.say(displaced.epoch, victim, (EventType::Normal, "Preempted"), message);
        }
        if let Some(status) = displaced.error {
            tracing::warn!(%status, "pods could not be displaced; the pod is tried again");
            self.core.displacing_failed(&displaced.pod, self.now());
        }
    }
}

async fn send_away(registry: &Registry, victim: &Regarding, epoch: Epoch) -> Result<(), Status> {
    let options = DeleteOptions {
        uid: Some(victim.uid.clone()),
        disruption: Some(Disruption::Preemption),
        fence: epoch.fence(),
        ..DeleteOptions::default()
    };
    let target = Target::new(pod_kind(), &victim.namespace, &victim.name);
    match registry.delete(target, &options).await {
        Err(status) if matches!(status.reason(), "NotFound" | "Conflict") => Ok(()),
        deleted => deleted.map(|_| ()),
    }
}
