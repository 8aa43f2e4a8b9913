//! Sending pods away to make room for a more important one.
//!
//! Each victim is told first (condition `DisruptionTarget`), then deleted with its own grace. The room is
//! kept by the core meanwhile. If a victim cannot be deleted, the pod is tried again.

use std::sync::Arc;

use api::Status;
use scheduler::{Displacement, PodInfo};
use serde_json::{Value, json};

use super::Shell;
use super::reports::{change_status, pod_kind, regarding, set_condition};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, EventType, Regarding, Registry, Target};

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
            for victim in victims {
                match send_away(&registry, &victim, epoch).await {
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
    change_status(registry, victim, epoch, |value: &mut Value, now| {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
            "lastProbeTime": null,
        });
        set_condition(value, condition, now);
    })
    .await?;
    let options =
        DeleteOptions { uid: Some(victim.uid.clone()), fence: epoch.fence(), ..DeleteOptions::default() };
    let target = Target::new(pod_kind(), &victim.namespace, &victim.name);
    match registry.delete(target, &options).await {
        Err(status) if matches!(status.reason(), "NotFound" | "Conflict") => Ok(()),
        deleted => deleted.map(|_| ()),
    }
}
