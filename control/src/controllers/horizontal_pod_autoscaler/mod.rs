//! HorizontalPodAutoscalers: as many replicas as the load of the pods asks for.
//!
//! Owns the `Scale` of whatever an autoscaler names, and the autoscaler's status. [`replicas`] says what a metric
//! asks for, [`behavior`] how fast that may be followed; both are pure. Use of CPU and memory comes from the node
//! agents ([`crate::usage`]). Metrics of other origins have nobody here who serves them, and say so.

mod behavior;
mod metrics;
mod replicas;
mod status;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api::{LabelSelector, Status, object};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};

use self::behavior::{Bounds, History};
use self::replicas::Measured;
use self::status::Report;
use super::owners::{Controller, Owner, Work};
use crate::registry::{EventType, Object, Scale};
use crate::usage::uid_at_node;

const DISABLED: &str = "scaling is disabled since the replica count of the target is zero";

/// The loop over HorizontalPodAutoscalers.
#[derive(Debug, Default)]
pub(super) struct Autoscalers {
    /// By uid.
    histories: Mutex<BTreeMap<String, History>>,
}

impl Controller for Autoscalers {
    fn owner(&self) -> (&'static str, &'static str) {
        ("autoscaling", "HorizontalPodAutoscaler")
    }

    fn component(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    /// An autoscaler owns nothing.
    fn selector(&self, _owner: &Object) -> Option<LabelSelector> {
        Some(LabelSelector::nothing())
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let uid = object::uid(owner.value()).to_owned();
        if owner.is_deleting {
            return Ok(None);
        }
        self.forget(work);
        let Ok(autoscaler) = owner.object.decode::<HorizontalPodAutoscaler>() else { return Ok(None) };
        let mut history = self.histories().get(&uid).cloned().unwrap_or_default();
        let Some(spec) = &autoscaler.spec else { return Ok(None) };
        let look = Look { owner, autoscaler: &autoscaler, spec, now: Timestamp::now() };
        let report = look.act(work, &mut history).await;
        self.histories().insert(uid, history);
        work.report(owner.object, report.finish()).await?;
        Ok(Some(Instant::now() + work.context.timings.autoscaler_sync))
    }
}

impl Autoscalers {
    /// Histories of autoscalers that are gone go too.
    fn forget(&self, work: &Work<'_>) {
        let (all, mut histories) = (work.owners.list(), self.histories());
        if histories.len() > all.len() {
            histories.retain(|uid, _| all.iter().any(|one| object::uid(one.value()) == uid));
        }
    }

    fn histories(&self) -> MutexGuard<'_, BTreeMap<String, History>> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One look at one autoscaler.
struct Look<'a> {
    owner: &'a Owner<'a>,
    autoscaler: &'a HorizontalPodAutoscaler,
    spec: &'a HorizontalPodAutoscalerSpec,
    now: Timestamp,
}

/// What should become of the target.
struct Wanted {
    replicas: i32,
    why: String,
}

impl Look<'_> {
    async fn act(&self, work: &Work<'_>, history: &mut History) -> Report {
        let mut report = Report::new(self.autoscaler, self.now);
        let target = &self.spec.scale_target_ref;
        let namespace = self.owner.object.namespace();
        let group = api::kinds::split_api_version(target.api_version.as_deref().unwrap_or("v1")).0;
        let found = work.context.registry.scale(group, &target.kind, namespace, &target.name).await;
        let scale = match found {
            Ok(scale) => scale,
            Err(status) => {
                let why = status.message();
                work.say(self.owner.object, EventType::Warning, "FailedGetScale", why.to_owned());
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                report.able(false, "FailedGetScale", &message);
                return report;
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        report.able(true, "SucceededGetScale", message);
        let current = i32::try_from(scale.replicas).unwrap_or(i32::MAX);
        report.current(current);
        history.begin(self.now, current);
        match self.wanted(work, &scale, current, history, &mut report) {
            Some(wanted) if wanted.replicas != current => {
                self.rescale(work, &scale, (current, wanted), history, &mut report).await;
            }
            _ => report.desired(current),
        }
        report
    }

    /// What the target should have; `None`: nobody can say, so it stays.
    fn wanted(
        &self,
        work: &Work<'_>,
        scale: &Scale,
        current: i32,
        history: &mut History,
        report: &mut Report,
    ) -> Option<Wanted> {
        let spec = self.spec;
        let (min, max) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        if current == 0 && min != 0 {
            report.active(false, "ScalingDisabled", DISABLED);
            return None;
        }
        let edge = |replicas, why: &str| Some(Wanted { replicas, why: why.to_owned() });
        if current > max {
            return edge(max, "Current number of replicas above Spec.MaxReplicas");
        }
        if current < min {
            return edge(min, "Current number of replicas below Spec.MinReplicas");
        }
        let pods = match self.pods(work, scale) {
            Ok(pods) => pods,
            Err((reason, why)) => {
                report.active(false, reason, why);
                work.say(self.owner.object, EventType::Warning, reason, why.to_owned());
                return None;
            }
        };
        let asked = metrics::asked(spec.metrics.as_deref().unwrap_or_default(), current, &pods, self.now);
        for failure in &asked.failures {
            work.say(self.owner.object, EventType::Warning, failure.reason, failure.why.clone());
        }
        report.metrics(asked.statuses);
        let Some((proposed, name)) = asked.proposal else {
            let first = asked.failures.first()?;
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            report.active(false, first.reason, &message);
            let said = format!(
                "invalid metrics ({} invalid out of {}), first error is: {}",
                asked.failures.len(),
                asked.count,
                first.why
            );
            work.say(self.owner.object, EventType::Warning, "FailedComputeMetricsReplicas", said);
            return None;
        };
        let message = format!("the HPA was able to successfully calculate a replica count from {name}");
        report.active(true, "ValidMetricFound", &message);
        let bounds = Bounds { current, min, max };
        let settled = history.settle(spec.behavior.as_ref(), bounds, proposed, self.now);
        report.able(true, settled.able.0, settled.able.1);
        report.limited(settled.limited.0, settled.limited.1.0, settled.limited.1.1);
        let why = match settled.replicas > current {
            true => format!("{name} above target"),
            false => "All metrics below target".to_owned(),
        };
        Some(Wanted { replicas: settled.replicas, why })
    }

    /// The pods of the target with what they use.
    fn pods(&self, work: &Work<'_>, scale: &Scale) -> Result<Vec<Measured>, (&'static str, &'static str)> {
        let selector = LabelSelector::parse(&scale.selector).ok();
        let selector = selector.filter(|selector| !selector.is_everything());
        let selector = selector.ok_or(("InvalidSelector", "the HPA target's scale is missing a selector"))?;
        let namespace = self.owner.object.namespace();
        let pods = work.context.pods.list();
        let own = pods
            .iter()
            .filter(|pod| pod.namespace() == namespace && selector.matches_object(pod.value()))
            .filter(|pod| pod.value()["status"]["phase"] != "Succeeded");
        let measured = own.filter_map(|object| {
            let pod: k8s_openapi::api::core::v1::Pod = object.decode().ok()?;
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            let usage = work.context.usage.pod(node, uid_at_node(object.value()));
            Some(Measured { pod, usage })
        });
        Ok(measured.collect())
    }

    async fn rescale(
        &self,
        work: &Work<'_>,
        scale: &Scale,
        (current, wanted): (i32, Wanted),
        history: &mut History,
        report: &mut Report,
    ) {
        let Wanted { replicas, why } = wanted;
        let about = self.owner.object;
        match work.context.registry.rescale(scale, i64::from(replicas), &work.options()).await {
            Ok(()) => {
                let message = format!("the HPA controller was able to update the target scale to {replicas}");
                report.able(true, "SucceededRescale", &message);
                report.rescaled();
                report.desired(replicas);
                history.scaled(self.now, current, replicas);
                let message = format!("New size: {replicas}; reason: {why}");
                work.say(about, EventType::Normal, "SuccessfulRescale", message);
            }
            Err(status) => {
                let error = status.message();
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                report.able(false, "FailedUpdateScale", &message);
                report.desired(current);
                let message = format!("New size: {replicas}; reason: {why}; error: {error}");
                work.say(about, EventType::Warning, "FailedRescale", message);
            }
        }
    }
}
