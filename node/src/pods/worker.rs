//! One task per pod: takes the newest desired object, exits and timers, asks `plan`, carries its steps out,
//! tells the status. It owns the pod's record; nobody else writes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::containers::Seen;
use super::context::Context;
use super::needs::Needs;
use super::plan::{self, Plan};
use super::record::{End, InstanceState, PodRecord};
use super::{checkpoint, pull, status, termination};
use crate::hooks::{HookEnd, Hooks};
use crate::probes::{Probes, Verdict};
use crate::session::outbox::PodKey;

/// Notices that may wait for a worker; senders wait when it is full.
const NOTICES_MAX: usize = 64;
/// The wait after a step that could not be done and left no time of its own.
const HOLD: Duration = Duration::from_secs(1);
/// The wait before a container that cannot be watched is looked at.
const WATCH_RETRY: Duration = Duration::from_millis(50);

/// What the dispatcher wants of a worker; only the newest counts.
#[derive(Debug, Clone)]
pub(crate) struct Desired {
    pub(crate) pod: Arc<Pod>,
    /// The object is gone.
    pub(crate) removed: bool,
}

/// Something that happened to a worker's pod.
pub(crate) enum Notice {
    /// A container's exit watch fired.
    Exited {
        name: String,
        id: String,
    },
    /// The runtime's listing differs from what the worker believes: look again.
    Recheck,
    Probe(Verdict),
    Hook(HookEnd),
    /// The node ends the pod.
    End(Box<End>),
    /// A pull has ended, well or not.
    PullEnded {
        name: String,
        ended: Box<pull::Ended>,
    },
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing of the pod is left.
    Finished,
    /// The agent stops; the pod goes on.
    Stopped,
}

/// A worker before and while it runs.
pub(crate) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) record: PodRecord,
    pub(super) probes: Probes,
    pub(super) hooks: Hooks,
    desired: watch::Receiver<Desired>,
    notices: mpsc::Receiver<Notice>,
    pub(super) sender: mpsc::Sender<Notice>,
    /// Pulls under way, by container.
    pub(super) pulls: HashMap<String, AbortHandle>,
    /// Pulls that have ended, by container, until it is started.
    pub(super) pulled: HashMap<String, pull::Ended>,
    watches: HashMap<String, AbortHandle>,
    /// Set after a step failed without a time of its own.
    hold_until: Option<Timestamp>,
    /// This life of the agent has told the pod's status.
    told: bool,
    pub(super) needs: Needs,
}

impl Worker {
    /// A worker for a record that is new or was loaded; the sender tells it what happened.
    pub(crate) fn new(
        context: Arc<Context>,
        record: PodRecord,
        desired: watch::Receiver<Desired>,
    ) -> (Self, mpsc::Sender<Notice>) {
        let (sender, notices) = mpsc::channel(NOTICES_MAX);
        let probes = Probes::new(Arc::clone(&context.runtime), sender.clone());
        let hooks = Hooks::new(Arc::clone(&context.runtime), sender.clone());
        let needs = Needs::new(&context);
        let worker = Self {
            context,
            record,
            probes,
            hooks,
            desired,
            notices,
            sender: sender.clone(),
            pulls: HashMap::new(),
            pulled: HashMap::new(),
            watches: HashMap::new(),
            hold_until: None,
            told: false,
            needs,
        };
        (worker, sender)
    }

    /// Runs until nothing of the pod is left or the agent stops.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Ending {
        self.take_desired();
        self.recheck().await;
        self.resend_stops().await;
        self.context.roster.set_running(&self.record);
        self.context.roster.set_status(&self.record);
        loop {
            self.take_desired();
            self.look_at_needs().await;
            let now = Timestamp::now();
            let plan = self.plan(now);
            self.publish();
            if plan.steps.is_empty() {
                self.context.roster.set_over(self.record.uid(), self.record.finished());
                if !self.wait(plan.wake_at, &shutdown).await {
                    return Ending::Stopped;
                }
                continue;
            }
            let mut steps = plan.steps.into_iter().peekable();
            while let Some(step) = steps.next() {
                let finishing = step == plan::Step::Finish;
                let starting = matches!(step, plan::Step::StartContainer { .. });
                let result = self.perform(step).await;
                if finishing && result.is_ok() {
                    return Ending::Finished;
                }
                if let Err(error) = result {
                    tracing::warn!(pod = %self.record.full_name(), %error, "step failed; it will be tried again");
                    self.hold_until = add(Timestamp::now(), HOLD);
                    break;
                }
                // KIA-INIT-004: containers that are started one after the other are told of together.
                let more = matches!(steps.peek(), Some(plan::Step::StartContainer { .. }));
                if starting && more {
                    continue;
                }
                self.publish();
                if self.desired.has_changed().unwrap_or(false) {
                    break;
                }
            }
            if shutdown.is_cancelled() {
                return Ending::Stopped;
            }
        }
    }

    /// The plan, or only a time to wake up while a failed step is held back.
    fn plan(&mut self, now: Timestamp) -> Plan {
        if let Some(until) = self.hold_until.filter(|until| *until > now) {
            return Plan { steps: Vec::new(), wake_at: Some(until) };
        }
        self.hold_until = None;
        plan::plan(&self.record, &self.context.config.restart_backoff, now)
    }

    /// Waits for something to happen. False: the agent stops.
    async fn wait(&mut self, wake_at: Option<Timestamp>, shutdown: &CancellationToken) -> bool {
        let sleep = async {
            match wake_at {
                Some(at) => {
                    let left = at.duration_since(Timestamp::now());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => false,
            () = sleep => true,
            changed = self.desired.changed() => changed.is_ok(),
            () = self.needs.changed() => true,
            Some(notice) = self.notices.recv() => {
                self.notice(notice).await;
                true
            }
        }
    }

    async fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Exited { name, id } => {
                self.watches.remove(&id);
                self.observe(&name, &id).await;
            }
            Notice::Recheck => self.recheck().await,
            Notice::Probe(verdict) => self.probed(verdict).await,
            Notice::Hook(end) => self.hooked(end).await,
            Notice::End(end) => self.end_pod(*end),
            Notice::PullEnded { name, ended } => self.pull_ended(name, *ended),
        }
    }

    fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        self.record.pod = desired.pod;
        self.record.removed |= desired.removed;
        self.record.take_containers();
        self.record.note_termination(Timestamp::now());
        if self.record.terminating() || self.record.done() {
            self.probes.stop_all();
            self.stop_pulls();
        }
    }

    /// Compares the record with what exists: adopts what runs, records what ended meanwhile.
    pub(super) async fn recheck(&mut self) {
        let current = |r: &PodRecord| -> Vec<(String, String)> {
            let live = r.containers.iter().filter(|(_, c)| c.is_live());
            live.filter_map(|(name, c)| Some((name.clone(), c.current.as_ref()?.id.clone()))).collect()
        };
        for (name, id) in current(&self.record) {
            self.observe(&name, &id).await;
        }
        if let Some(sandbox) = self.record.sandbox.clone().filter(|s| s.ready) {
            let listed = self.blocking(|context| context.runtime.list()).await;
            match listed {
                Ok((sandboxes, _)) if !sandboxes.iter().any(|s| s.id == sandbox.id && s.alive) => {
                    if let Some(sandbox) = self.record.sandbox.as_mut() {
                        sandbox.ready = false;
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(pod = %self.record.full_name(), %error, "cannot list sandboxes"),
            }
        }
        self.save();
    }

    /// Looks at one instance and takes over what is seen.
    pub(super) async fn observe(&mut self, name: &str, id: &str) {
        let is_current =
            |r: &PodRecord| r.container(name).and_then(|c| c.current.as_ref()).is_some_and(|i| i.id == id);
        if !is_current(&self.record) {
            return;
        }
        let asked = id.to_owned();
        let seen = match self.blocking(move |context| context.runtime.observe(&asked)).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot observe a container");
                self.hold_until = add(Timestamp::now(), HOLD);
                return;
            }
        };
        match seen {
            Some(Seen::Running { started_at }) => {
                self.set_state(name, InstanceState::Running { started_at });
                self.watch(name, id);
                self.accompany(name);
            }
            Some(Seen::Half | Seen::Lost { started_at: None }) | None if self.is_creating(name) => {
                // The agent died between writing the id down and the start: nothing ran, nothing to count.
                let id = id.to_owned();
                let removed = self.blocking(move |context| context.runtime.delete_container(&id)).await;
                if let Err(error) = removed {
                    tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot remove half a container");
                }
                if let Some(container) = self.record.containers.get_mut(name) {
                    container.current = None;
                }
            }
            seen => {
                let termination = termination::of_seen(&self.context, &self.record, name, seen);
                self.set_state(name, InstanceState::Exited(termination));
                self.unwatch(id);
                self.probes.stop(name);
                self.hooks.stop(name);
            }
        }
        self.save();
    }

    fn is_creating(&self, name: &str) -> bool {
        let current = self.record.container(name).and_then(|c| c.current.as_ref());
        current.is_some_and(|i| i.state == InstanceState::Creating)
    }

    pub(super) fn set_state(&mut self, name: &str, state: InstanceState) {
        if let Some(instance) = self.record.containers.get_mut(name).and_then(|c| c.current.as_mut()) {
            instance.state = state;
        }
    }

    /// Wakes this worker when the container ends.
    pub(super) fn watch(&mut self, name: &str, id: &str) {
        if self.watches.contains_key(id) {
            return;
        }
        let (sender, name, owned) = (self.sender.clone(), name.to_owned(), id.to_owned());
        let context = Arc::clone(&self.context);
        let task = tokio::spawn(async move {
            let id = owned.clone();
            let watched = tokio::task::spawn_blocking(move || context.runtime.exit_watch(&id)).await;
            match watched.expect("watching a container does not panic") {
                Ok(exited) => exited.await,
                Err(error) => {
                    // It ended in between, or cannot be watched: looking again tells which.
                    tracing::debug!(container = %owned, %error, "no exit watch");
                    tokio::time::sleep(WATCH_RETRY).await;
                }
            }
            drop(sender.send(Notice::Exited { name, id: owned }).await);
        });
        self.watches.insert(id.to_owned(), task.abort_handle());
    }

    pub(super) fn unwatch(&mut self, id: &str) {
        if let Some(task) = self.watches.remove(id) {
            task.abort();
        }
    }

    /// Runs a runtime or file operation on a thread that may block.
    pub(super) async fn blocking<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&Context) -> T + Send + 'static,
    {
        let context = Arc::clone(&self.context);
        tokio::task::spawn_blocking(move || work(&context)).await.expect("blocking steps do not panic")
    }

    /// Writes the record down. A disk that takes no more is told in the log; the pod goes on.
    pub(super) fn save(&self) {
        if let Err(error) = checkpoint::save(&self.context.pod_dir(self.record.uid()), &self.record) {
            tracing::error!(pod = %self.record.full_name(), %error, "cannot write the pod's checkpoint");
        }
    }

    /// Tells the status if it differs from what was told.
    pub(super) fn publish(&mut self) {
        self.context.roster.set_running(&self.record);
        let status = self.status();
        if self.told && self.record.last_status.as_ref() == Some(&status) {
            return;
        }
        self.told = true;
        let bytes = serde_json::to_vec(&status).expect("a status has string keys only");
        self.record.last_status = Some(status);
        self.save();
        self.context.roster.set_status(&self.record);
        self.context.outbox.pod_status(self.key(), bytes.into());
    }

    /// The status as it is now.
    pub(super) fn status(&self) -> k8s_openapi::api::core::v1::PodStatus {
        let ending = self.record.terminating() && !self.record.any_running();
        let over = ending || self.record.finished();
        status::pod_status(&self.record, self.context.facts(), over, Timestamp::now())
    }

    pub(super) fn key(&self) -> PodKey {
        PodKey {
            namespace: self.record.namespace().to_owned(),
            name: self.record.name().to_owned(),
            uid: self.record.uid().to_owned(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.watches.values().chain(self.pulls.values()).for_each(AbortHandle::abort);
    }
}

/// `at` later by `by`, as far as time goes.
pub(super) fn add(at: Timestamp, by: Duration) -> Option<Timestamp> {
    at.checked_add(SignedDuration::try_from(by).ok()?).ok()
}
