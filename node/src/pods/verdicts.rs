//! What the worker makes of probes' verdicts: readiness, started, restarts.

use super::events::{Told, tell};
use super::record::InstanceState;
use super::worker::Worker;
use crate::probes::{ProbeKind, Verdict};

impl Worker {
    /// Takes a probe's verdict about the instance that runs now; older ones say nothing any more.
    pub(super) async fn probed(&mut self, verdict: Verdict) {
        let Verdict { container: name, id, kind, failure, now } = verdict;
        let terminating = self.record.terminating() || self.record.done();
        let Some(instance) = self.record.containers.get_mut(&name).and_then(|c| c.current.as_mut()) else {
            return;
        };
        let asked = instance.id == id && matches!(instance.state, InstanceState::Running { .. });
        if !asked || instance.stop.is_some() || terminating {
            return;
        }
        match (kind, now) {
            (ProbeKind::Startup, Some(true)) => instance.started = true,
            (ProbeKind::Readiness, Some(ready)) => instance.ready = ready,
            _ => {}
        }
        if let Some(failure) = failure {
            let message = format!("{} probe failed: {failure}", kind.word());
            tell(&self.context, &self.record, Some(&name), Told::warning("Unhealthy", message));
        }
        if now == Some(false) && kind != ProbeKind::Readiness {
            self.restart_unhealthy(&name, kind).await;
        }
        self.save();
    }

    async fn restart_unhealthy(&mut self, name: &str, kind: ProbeKind) {
        let container = self.record.container_spec(name);
        let probe = container.and_then(|c| match kind {
            ProbeKind::Startup => c.startup_probe.as_ref(),
            _ => c.liveness_probe.as_ref(),
        });
        let grace = probe
            .and_then(|p| p.termination_grace_period_seconds)
            .unwrap_or_else(|| self.record.spec_grace_seconds());
        let word = kind.word().to_lowercase();
        let message = format!("Container {name} failed {word} probe, will be restarted");
        if let Err(error) = self.stop_container(name, grace, message).await {
            tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot stop an unhealthy container");
        }
    }
}
