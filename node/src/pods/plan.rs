//! What to do next: a pure function of the record and the time.
//!
//! ```text
//!            ┌──────────── sandbox died ───────────┐
//!            ▼                                     │
//! accepted ─► sandbox ─► init containers, in order ─► containers ─► done ─► sidecars end ─► sandbox removed
//!     │           │               │                      │            ▲
//!     │           │               └── active too long ───┴────────────┘
//!     └───────────┴───────────────┴── deletion ──────────┴──► stop all ─► remove ─► release ─► told
//!
//! stop of a container:  preStop hook ─► stop signal ─► KILL at the deadline
//! ```
//! The worker carries the steps out, in order, and asks again; the same record gives the same steps, so a
//! step that failed is asked for again (after the wait that its failure left in the record).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use super::record::{ContainerRecord, Instance, InstanceState, PodRecord, Stop};
use crate::BackoffConfig;

/// The reason of a container that waits because it crashed.
pub(crate) const CRASH_LOOP: &str = "CrashLoopBackOff";

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
    /// End the pod: it was active for as long as it may be.
    FailPod,
    /// Ask a container to end, `grace_seconds` before it is made to.
    StopContainer { name: String, grace_seconds: i64 },
    /// The preStop hook took all the time there was: send the stop signal now.
    EndHook { name: String },
    /// Make a container end.
    KillContainer { name: String },
    /// Remove volumes: nothing runs that could use them.
    FreeVolumes,
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

/// What a container is given at least to obey the stop signal, however long others or its hook took.
pub(crate) const GRACE_SECONDS_MIN: i64 = 2;
/// How long another reason to wait is shown before the back-off is, at most.
const REASON_SHOWN_MAX: SignedDuration = SignedDuration::from_secs(1);

/// What the record asks for at `now`.
pub(crate) fn plan(record: &PodRecord, backoff: &BackoffConfig, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if record.terminating() {
        terminate(record, now, &mut plan);
        return plan;
    }
    if record.done() {
        let until = record.done_at().unwrap_or(now);
        let grace = record.ending_grace_seconds();
        stop_all(record, later(until, grace), grace, now, &mut plan);
        match (record.any_running(), &record.sandbox) {
            (true, _) => {}
            (false, Some(_)) => plan.steps.push(Step::DeleteSandbox),
            (false, None) if !record.volumes_freed => plan.steps.push(Step::FreeVolumes),
            (false, None) => {}
        }
        return plan;
    }
    if let Some(at) = record.active_until() {
        if at <= now {
            plan.steps.push(Step::FailPod);
            return plan;
        }
        plan.wake(at);
    }
    for (name, state) in &record.containers {
        if let Some(stop) = state.current.as_ref().filter(|_| state.is_live()).and_then(|i| i.stop.as_ref()) {
            drive_stop(name, stop, now, &mut plan);
        }
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
    let mut starter = Starter { record, backoff, now, plan };
    if !starter.initialize() {
        return;
    }
    for container in record.regular_containers() {
        let Some(state) = record.container(&container.name) else { continue };
        // KIA-HOOK-011: the next container is made when this one's postStart hook has ended.
        let hooking = match state.is_live() {
            true => state.current.as_ref().is_some_and(|i| i.post_start),
            false => starter.start_or_wait(&container.name, state) && has_post_start(container),
        };
        if hooking {
            break;
        }
    }
    for container in &record.ephemeral {
        let Some(state) = record.container(&container.name) else { continue };
        if state.current.is_none() && record.initialized {
            starter.start_or_wait(&container.name, state);
        }
    }
}

fn has_post_start(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
}

/// Starts what is to be started, or notes until when it has to wait.
struct Starter<'a> {
    record: &'a PodRecord,
    backoff: &'a BackoffConfig,
    now: Timestamp,
    plan: &'a mut Plan,
}

impl Starter<'_> {
    /// Init containers one by one; a sidecar is done with once it has started. Returns whether all are.
    fn initialize(&mut self) -> bool {
        let record = self.record;
        for container in record.init_containers() {
            let Some(state) = record.container(&container.name) else { continue };
            let sidecar = record.is_sidecar(&container.name);
            let over = match (sidecar, record.initialized) {
                (true, _) => state.is_started(),
                (false, initialized) => initialized || state.succeeded(),
            };
            if over {
                continue;
            }
            if !state.is_live() {
                self.start_or_wait(&container.name, state);
            }
            if !record.initialized {
                return false;
            }
        }
        true
    }

    /// Returns whether a start was asked for, now or before an image that is on its way.
    fn start_or_wait(&mut self, name: &str, state: &ContainerRecord) -> bool {
        if state.pulling {
            return true;
        }
        if let Some(exit) = state.exit() {
            if !self.record.restarts(name, exit.exit_code) {
                return false;
            }
            let until = state.crashes.wait_until(exit.finished_at, self.backoff);
            if let Some(until) = until.filter(|until| *until > self.now) {
                self.note_backoff(name, state, exit.finished_at, until);
                self.plan.wake(until);
                return false;
            }
        }
        match state.retry_at {
            Some(at) if at > self.now => {
                self.plan.wake(at);
                false
            }
            _ => {
                self.plan.steps.push(Step::StartContainer { name: name.to_owned() });
                true
            }
        }
    }

    /// The back-off is told once; what went wrong before it is shown for a moment.
    fn note_backoff(&mut self, name: &str, state: &ContainerRecord, ended: Timestamp, until: Timestamp) {
        let step = || Step::NoteBackoff { name: name.to_owned() };
        match &state.waiting {
            None => self.plan.steps.push(step()),
            Some(waiting) if waiting.reason == CRASH_LOOP => {}
            Some(_) => {
                let shown = (until.duration_since(ended) / 4).min(REASON_SHOWN_MAX);
                match ended.checked_add(shown) {
                    Ok(at) if at > self.now => self.plan.wake(at),
                    _ => self.plan.steps.push(step()),
                }
            }
        }
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

/// A stop that was begun goes on: the hook's time ends, then the container's.
fn drive_stop(name: &str, stop: &Stop, now: Timestamp, plan: &mut Plan) {
    let name = name.to_owned();
    match (stop.killed, stop.deadline <= now) {
        (true, _) => {}
        (false, true) if stop.pre_stop => plan.steps.push(Step::EndHook { name }),
        (false, true) => plan.steps.push(Step::KillContainer { name }),
        (false, false) => plan.wake(stop.deadline),
    }
}

/// Ends everything that runs by `until`: all at once, but sidecars only when nothing that may need them is
/// left, the last one first.
fn stop_all(record: &PodRecord, until: Timestamp, grace_seconds: i64, now: Timestamp, plan: &mut Plan) {
    // Who was given three seconds is not asked to end in two and a bit.
    let left = ((until.duration_since(now).as_millis() + 999) / 1000) as i64;
    let grace_seconds = if grace_seconds == 0 { 0 } else { left.max(GRACE_SECONDS_MIN).min(grace_seconds) };
    let stop = |name: &str, state: &ContainerRecord, plan: &mut Plan| match &state.current {
        Some(Instance { stop: Some(stop), .. }) if grace_seconds == 0 && !stop.killed => {
            plan.steps.push(Step::KillContainer { name: name.to_owned() });
        }
        Some(Instance { stop: Some(stop), .. }) => drive_stop(name, stop, now, plan),
        _ => plan.steps.push(Step::StopContainer { name: name.to_owned(), grace_seconds }),
    };
    let mut needed = false;
    for (name, state) in record.containers.iter().filter(|(name, c)| c.is_live() && !record.is_sidecar(name))
    {
        needed = true;
        stop(name, state, plan);
    }
    for container in record.init_containers().iter().rev().filter(|c| record.is_sidecar(&c.name)) {
        let Some(state) = record.container(&container.name).filter(|c| c.is_live()) else { continue };
        if needed && until > now {
            plan.wake(until);
            break;
        }
        needed = true;
        stop(&container.name, state, plan);
    }
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

fn terminate(record: &PodRecord, now: Timestamp, plan: &mut Plan) {
    let grace_seconds = record.grace_seconds();
    let until = record.terminating_until.unwrap_or_else(|| later(now, grace_seconds));
    stop_all(record, until, grace_seconds, now, plan);
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
