//! What to do next: a pure function of the record and the time.
//!
//! ```text
//!            ┌──────────── sandbox died ───────────┐
//!            ▼                                     │
//! accepted ─► sandbox ─► init containers, in order ─► containers ─► finished ─► sandbox removed
//!     │           │               │                      │                          │
//!     └───────────┴───────────────┴── deletion ──────────┴──► stop all ─► remove ─► release ─► told
//! ```
//! The worker carries the steps out, in order, and asks again; the same record gives the same steps, so a
//! step that failed is asked for again (after the wait that its failure left in the record).

use jiff::{SignedDuration, Timestamp};

use super::record::{ContainerRecord, InstanceState, PodRecord};
use crate::BackoffConfig;

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Make volumes, sandbox and network.
    CreateSandbox,
    /// Remove the sandbox, its network and every container's root; logs and volumes stay.
    DeleteSandbox,
    /// Make and start the next instance of a container.
    StartContainer { name: String },
    /// A crashed container has to wait.
    NoteBackoff { name: String },
    /// Ask a container to end, `grace_seconds` before it is made to.
    StopContainer { name: String, grace_seconds: i64 },
    /// Make a container end.
    KillContainer { name: String },
    /// Remove volumes, logs and directories.
    Release,
    /// Tell that nothing of the pod is left; the worker ends.
    Finish,
}

/// Steps, and when to ask again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}

/// What the record asks for at `now`.
pub(crate) fn plan(record: &PodRecord, backoff: &BackoffConfig, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if record.terminating() {
        terminate(record, now, &mut plan);
        return plan;
    }
    drive_stops(record, now, &mut plan);
    if record.finished() {
        if record.sandbox.is_some() {
            plan.steps.push(Step::DeleteSandbox);
        }
        return plan;
    }
    match &record.sandbox {
        None => match record.sandbox_retry_at {
            Some(at) if at > now => plan.wake(at),
            _ => plan.steps.push(Step::CreateSandbox),
        },
        Some(sandbox) if !sandbox.ready => replace_sandbox(record, &mut plan),
        Some(_) => run(record, backoff, now, &mut plan),
    }
    plan
}

fn run(record: &PodRecord, backoff: &BackoffConfig, now: Timestamp, plan: &mut Plan) {
    for container in record.init_containers() {
        let Some(state) = record.container(&container.name) else { continue };
        if state.succeeded() {
            continue;
        }
        if !state.is_live() {
            start_or_wait(record, state, &container.name, backoff, now, plan);
        }
        return;
    }
    for container in record.regular_containers() {
        let Some(state) = record.container(&container.name) else { continue };
        if !state.is_live() {
            start_or_wait(record, state, &container.name, backoff, now, plan);
        }
    }
}

fn start_or_wait(
    record: &PodRecord,
    state: &ContainerRecord,
    name: &str,
    backoff: &BackoffConfig,
    now: Timestamp,
    plan: &mut Plan,
) {
    if state.pulling {
        return;
    }
    if let Some(exit) = state.exit() {
        if !record.restart_policy().restarts(exit.exit_code) {
            return;
        }
        if let Some(until) = state.crashes.wait_until(exit.finished_at, backoff).filter(|until| *until > now)
        {
            if state.waiting.is_none() {
                plan.steps.push(Step::NoteBackoff { name: name.to_owned() });
            }
            plan.wake(until);
            return;
        }
    }
    match state.retry_at {
        Some(at) if at > now => plan.wake(at),
        _ => plan.steps.push(Step::StartContainer { name: name.to_owned() }),
    }
}

/// The pause process died: what runs ends, then everything is made anew.
fn replace_sandbox(record: &PodRecord, plan: &mut Plan) {
    for (name, state) in &record.containers {
        let running = state.current.as_ref().filter(|i| !matches!(i.state, InstanceState::Exited(_)));
        if running.is_some_and(|i| i.stop.as_ref().is_none_or(|s| !s.killed)) {
            plan.steps.push(Step::KillContainer { name: name.clone() });
        }
    }
    if !record.any_running() {
        plan.steps.push(Step::DeleteSandbox);
    }
}

/// Stops that were begun (a failed liveness probe) end in KILL when their time is over.
fn drive_stops(record: &PodRecord, now: Timestamp, plan: &mut Plan) {
    for (name, state) in &record.containers {
        let Some(stop) = state.current.as_ref().filter(|_| state.is_live()).and_then(|i| i.stop.as_ref())
        else {
            continue;
        };
        match (stop.killed, stop.deadline <= now) {
            (true, _) => {}
            (false, true) => plan.steps.push(Step::KillContainer { name: name.clone() }),
            (false, false) => plan.wake(stop.deadline),
        }
    }
}

fn terminate(record: &PodRecord, now: Timestamp, plan: &mut Plan) {
    let grace_seconds = record.grace_seconds();
    let since = record.terminating_since.unwrap_or(now);
    let latest = since.checked_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(Timestamp::MAX);
    for (name, state) in &record.containers {
        if !state.is_live() {
            continue;
        }
        match state.current.as_ref().and_then(|i| i.stop.as_ref()) {
            None => plan.steps.push(Step::StopContainer { name: name.clone(), grace_seconds }),
            Some(stop) if stop.killed => {}
            Some(stop) if stop.deadline.min(latest) <= now => {
                plan.steps.push(Step::KillContainer { name: name.clone() });
            }
            Some(stop) => plan.wake(stop.deadline.min(latest)),
        }
    }
    if record.any_running() {
        return;
    }
    if record.sandbox.is_some() {
        plan.steps.push(Step::DeleteSandbox);
    }
    if !record.released {
        plan.steps.push(Step::Release);
    }
    plan.steps.push(Step::Finish);
}

#[cfg(test)]
mod tests;
