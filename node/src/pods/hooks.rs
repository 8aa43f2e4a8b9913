//! What the worker makes of hooks' ends: a container that is created at last, or one that has to go; a stop
//! signal that waited.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::LifecycleHandler;

use super::events::{Told, tell};
use super::plan::GRACE_SECONDS_MIN;
use super::record::{InstanceState, Waiting};
use super::steps::StepError;
use super::worker::{Worker, add};
use crate::handlers::HookFailure;
use crate::hooks::{HookEnd, HookKind};

impl Worker {
    /// What a container that runs needs beside it: its postStart hook, and after that its probes.
    pub(super) fn accompany(&mut self, name: &str) {
        let Some(instance) = self.record.container(name).and_then(|c| c.current.as_ref()) else { return };
        if instance.stop.is_some() || self.record.terminating() || self.record.done() {
            return;
        }
        match instance.post_start {
            true => self.hooks.start(&self.record, name, HookKind::PostStart),
            false => self.probes.start(&self.record, name),
        }
    }

    /// Takes the end of a hook of the instance that runs now; older ones say nothing any more.
    pub(super) async fn hooked(&mut self, end: HookEnd) {
        let HookEnd { container: name, id, kind, failure } = end;
        let Some(instance) = self.record.containers.get_mut(&name).and_then(|c| c.current.as_mut()) else {
            return;
        };
        if instance.id != id || !matches!(instance.state, InstanceState::Running { .. }) {
            return;
        }
        self.hooks.stop(&name);
        match kind {
            HookKind::PostStart if instance.stop.is_some() || !instance.post_start => {}
            HookKind::PostStart => match failure {
                None => {
                    instance.post_start = false;
                    self.accompany(&name);
                    self.save();
                }
                Some(failure) => self.post_start_failed(&name, &failure).await,
            },
            HookKind::PreStop => {
                if let Some(failure) = failure {
                    let message = self.hook_message(&name, kind, &failure);
                    tell(
                        &self.context,
                        &self.record,
                        Some(&name),
                        Told::warning("FailedPreStopHook", message),
                    );
                }
                if let Err(error) = self.end_hook(&name).await {
                    tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot send the stop signal");
                }
            }
        }
    }

    /// KIA-HOOK-005: the container is ended like one that is asked to, and says why it waits.
    async fn post_start_failed(&mut self, name: &str, failure: &HookFailure) {
        let message = self.hook_message(name, HookKind::PostStart, failure);
        tell(&self.context, &self.record, Some(name), Told::warning("FailedPostStartHook", message.clone()));
        if let Some(known) = self.record.containers.get_mut(name) {
            let reason = format!("PostStartHookError: {}", failure.error);
            known.waiting = Some(Waiting { reason, message });
        }
        let grace = self.record.spec_grace_seconds();
        let stopped = self.stop_container(name, grace, "FailedPostStartHook".to_owned()).await;
        if let Err(error) = stopped {
            tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot stop a container whose hook failed");
        }
    }

    /// The preStop hook is over or out of time: the stop signal follows, with a little time to obey it.
    pub(super) async fn end_hook(&mut self, name: &str) -> Result<(), StepError> {
        self.hooks.stop(name);
        let Some(instance) = self.record.containers.get_mut(name).and_then(|c| c.current.as_mut()) else {
            return Ok(());
        };
        let Some(stop) = instance.stop.as_mut().filter(|stop| stop.pre_stop && !stop.killed) else {
            return Ok(());
        };
        stop.pre_stop = false;
        let least = add(Timestamp::now(), Duration::from_secs(GRACE_SECONDS_MIN as u64));
        stop.deadline = stop.deadline.max(least.unwrap_or(Timestamp::MAX));
        let (id, signal) = (instance.id.clone(), instance.stop_signal);
        self.save();
        self.signal(name, &id, signal).await
    }

    fn hook_message(&self, name: &str, kind: HookKind, failure: &HookFailure) -> String {
        let what = match kind.handler(&self.record, name) {
            Some(LifecycleHandler { exec: Some(exec), .. }) => {
                format!("Exec lifecycle hook ([{}])", exec.command.unwrap_or_default().join(" "))
            }
            Some(LifecycleHandler { http_get: Some(get), .. }) => {
                format!("Http lifecycle hook ({})", get.path.unwrap_or_default())
            }
            _ => "Lifecycle hook".to_owned(),
        };
        let (error, output) = (&failure.error, api::status::quoted(&failure.output));
        let pod = self.record.full_name();
        format!("{what} for Container \"{name}\" in Pod \"{pod}\" failed - error: {error}, message: {output}")
    }
}
