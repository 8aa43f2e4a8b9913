//! What a worker knows about its pod: what is desired, what was decided, what is observed. The checkpoint
//! holds exactly this. Data and questions about it; no decisions (see `plan`), no effects (see `steps`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, PodStatus};
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use crate::session::outbox::EventKind;

/// What a container is given to end when nobody says otherwise.
const GRACE_SECONDS_DEFAULT: i64 = 30;

/// Everything about one pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    /// The newest desired object.
    pub(crate) pod: Arc<Pod>,
    /// The object is gone from the store: end without grace.
    pub(crate) removed: bool,
    /// When this node took the pod on.
    pub(crate) accepted_at: Timestamp,
    /// When termination was first asked for.
    pub(crate) terminating_since: Option<Timestamp>,
    /// When what still runs of a terminating pod is killed; only ever moved nearer.
    #[serde(default)]
    pub(crate) terminating_until: Option<Timestamp>,
    /// Why the node ended the pod, if it did.
    #[serde(default)]
    pub(crate) failure: Option<Failure>,
    /// A regular container was begun in this sandbox: init containers are over, sidecars only kept up.
    #[serde(default)]
    pub(crate) initialized: bool,
    pub(crate) sandbox: Option<SandboxRecord>,
    /// Sandboxes made so far.
    pub(crate) sandbox_attempts: u32,
    /// When to try again to make a sandbox or its volumes.
    pub(crate) sandbox_retry_at: Option<Timestamp>,
    /// The pod's ephemeral containers as ordinary ones.
    #[serde(default)]
    pub(crate) ephemeral: Vec<Container>,
    /// By container name, of every kind.
    pub(crate) containers: BTreeMap<String, ContainerRecord>,
    /// Volumes, log files and directories are gone.
    pub(crate) released: bool,
    /// Volumes are gone; logs stay as long as the object.
    #[serde(default)]
    pub(crate) volumes_freed: bool,
    /// The API already knew the pod as Succeeded or Failed when this node first saw it.
    pub(crate) ended_before: bool,
    /// What was last told; transition times are taken from it.
    pub(crate) last_status: Option<PodStatus>,
}

/// The pod's sandbox. Its id is written down before it is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    /// Set once namespaces and network are there; cleared when the pause process has died.
    pub(crate) ready: bool,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) netns: Option<PathBuf>,
}

/// One container of the pod over all its instances.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// The instance's attempt number, counted from 0; what `restartCount` says.
    pub(crate) restart_count: u32,
    pub(crate) current: Option<Instance>,
    /// How the instance before ended.
    pub(crate) last: Option<Ended>,
    /// Why no instance is started just now.
    pub(crate) waiting: Option<Waiting>,
    /// When to try again after a failure that left no instance.
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) crashes: Backoff,
    pub(crate) image_tries: Backoff,
    /// Its image is being pulled; a pull does not outlive its agent.
    #[serde(skip)]
    pub(crate) pulling: bool,
}

/// Why the node ended a pod that was not asked to end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
    /// What its containers are given to end, if not what the pod itself says.
    #[serde(default)]
    pub(crate) grace_seconds: Option<i64>,
    /// The pod was never taken on: nothing of it exists.
    #[serde(default)]
    pub(crate) refused: bool,
    /// The node ended it for the node's sake.
    #[serde(default)]
    pub(crate) disrupted: bool,
}

/// That a pod has to end, and the event that tells of it.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) failure: Failure,
    /// Kind, reason, message.
    pub(crate) event: Option<(EventKind, String, String)>,
}

/// A reason and a message, as `state.waiting` carries them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// 64 hex digits.
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) image: String,
    pub(crate) image_id: String,
    /// The signal, by number, that asks it to end.
    pub(crate) stop_signal: i32,
    pub(crate) state: InstanceState,
    pub(crate) stop: Option<Stop>,
    /// As the readiness probe says; true without one.
    pub(crate) ready: bool,
    /// As the startup probe says; true without one.
    pub(crate) started: bool,
    /// The postStart hook has not ended well yet: the container still counts as being created.
    #[serde(default)]
    pub(crate) post_start: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum InstanceState {
    /// Written down, perhaps not made yet.
    Creating,
    Running {
        started_at: Timestamp,
    },
    Exited(Termination),
}

/// How a run ended, in the words of `state.terminated`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Termination {
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

/// An ended instance whose container may run again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) termination: Termination,
}

/// A stop in progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stop {
    /// When KILL follows.
    pub(crate) deadline: Timestamp,
    /// The preStop hook has not ended yet; the stop signal waits for it.
    #[serde(default)]
    pub(crate) pre_stop: bool,
    pub(crate) killed: bool,
}

impl PodRecord {
    pub(crate) fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        let mut record = Self {
            pod,
            removed: false,
            accepted_at: now,
            terminating_since: None,
            terminating_until: None,
            failure: None,
            initialized: false,
            ephemeral: Vec::new(),
            sandbox: None,
            sandbox_attempts: 0,
            sandbox_retry_at: None,
            containers: BTreeMap::new(),
            released: false,
            volumes_freed: false,
            ended_before: false,
            last_status: None,
        };
        let known = record.pod.status.clone().unwrap_or_default();
        let lists =
            [&known.init_container_statuses, &known.container_statuses, &known.ephemeral_container_statuses];
        let statuses = lists.into_iter().flatten().flatten();
        // A container that ran once keeps its count, even if this node's own memory of it is lost.
        let counts: BTreeMap<String, u32> = statuses
            .filter(|s| s.container_id.is_some())
            .map(|s| (s.name.clone(), s.restart_count.max(0) as u32 + 1))
            .collect();
        record.take_containers();
        for (name, count) in counts {
            if let Some(container) = record.containers.get_mut(&name) {
                container.restart_count = count;
            }
        }
        record.ended_before = matches!(known.phase.as_deref(), Some("Succeeded" | "Failed"));
        if let Some(start) = &known.start_time {
            record.accepted_at = start.0;
        }
        record.last_status = known.phase.is_some().then_some(known);
        record
    }

    /// Makes room for containers that the object names and the record does not: ephemeral ones come late.
    pub(crate) fn take_containers(&mut self) {
        let given = self.spec().ephemeral_containers.as_deref().unwrap_or_default();
        if given.len() != self.ephemeral.len() {
            self.ephemeral = given.iter().filter_map(as_container).collect();
        }
        let names: Vec<String> = self.all_containers().map(|c| c.name.clone()).collect();
        for name in names {
            self.containers.entry(name).or_default();
        }
    }

    /// Notes until when the pod may take to end, once that was asked for. A later, shorter grace moves the end
    /// of what was already asked to stop; a longer one changes nothing.
    pub(crate) fn note_termination(&mut self, now: Timestamp) {
        if !self.terminating() {
            return;
        }
        let since = *self.terminating_since.get_or_insert(now);
        let grace = SignedDuration::from_secs(self.grace_seconds());
        let until = since.checked_add(grace).unwrap_or(Timestamp::MAX);
        if self.terminating_until.is_some_and(|known| known <= until) {
            return;
        }
        self.terminating_until = Some(until);
        let stops = self.containers.values_mut().filter_map(|c| c.current.as_mut()?.stop.as_mut());
        stops.for_each(|stop| stop.deadline = stop.deadline.min(until));
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().expect("pods without a spec are refused by the dispatcher")
    }

    pub(crate) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// `name_namespace(uid)`, as the kubelet's messages name a pod.
    pub(crate) fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    pub(crate) fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    pub(crate) fn regular_containers(&self) -> &[Container] {
        &self.spec().containers
    }

    pub(crate) fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().chain(self.regular_containers()).chain(&self.ephemeral)
    }

    pub(crate) fn container_spec(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|c| c.name == name)
    }

    pub(crate) fn is_init(&self, name: &str) -> bool {
        self.init_containers().iter().any(|c| c.name == name)
    }

    /// An init container that is kept running beside the regular ones.
    pub(crate) fn is_sidecar(&self, name: &str) -> bool {
        self.init_containers().iter().any(|c| c.name == name && is_sidecar(c))
    }

    pub(crate) fn is_ephemeral(&self, name: &str) -> bool {
        self.ephemeral.iter().any(|c| c.name == name)
    }

    /// Whether a container that ended so is started again while the pod goes on.
    pub(crate) fn restarts(&self, name: &str, exit_code: i32) -> bool {
        !self.is_ephemeral(name) && (self.is_sidecar(name) || self.restart_policy().restarts(exit_code))
    }

    pub(crate) fn restart_policy(&self) -> RestartPolicy {
        match self.spec().restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    pub(crate) fn host_network(&self) -> bool {
        self.spec().host_network.unwrap_or(false)
    }

    /// Termination was asked for.
    pub(crate) fn terminating(&self) -> bool {
        self.removed || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The grace that a termination gives, in seconds.
    pub(crate) fn grace_seconds(&self) -> i64 {
        if self.removed && self.pod.metadata.deletion_timestamp.is_none() {
            return 0;
        }
        let grace = self.pod.metadata.deletion_grace_period_seconds;
        let grace = if self.removed { Some(0) } else { grace };
        grace.map_or_else(|| self.spec_grace_seconds(), |seconds| seconds.max(0))
    }

    pub(crate) fn container(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.get(name)
    }

    pub(crate) fn any_running(&self) -> bool {
        self.containers.values().any(ContainerRecord::is_live)
    }

    /// What a requested stop gives when the pod itself goes on.
    pub(crate) fn spec_grace_seconds(&self) -> i64 {
        self.spec().termination_grace_period_seconds.unwrap_or(GRACE_SECONDS_DEFAULT).max(0)
    }

    /// What a pod whose work is over gives what still runs of it.
    pub(crate) fn ending_grace_seconds(&self) -> i64 {
        let given = self.failure.as_ref().and_then(|failure| failure.grace_seconds);
        given.unwrap_or_else(|| self.spec_grace_seconds())
    }

    /// Until when the pod may be active, if that is limited.
    pub(crate) fn active_until(&self) -> Option<Timestamp> {
        let limit = SignedDuration::from_secs(self.spec().active_deadline_seconds?);
        self.accepted_at.checked_add(limit).ok()
    }

    /// The pod's work is over: no container is started any more. Sidecars may still have to end.
    pub(crate) fn done(&self) -> bool {
        if self.ended_before || self.failure.is_some() {
            return true;
        }
        let policy = self.restart_policy();
        let failed =
            |c: &Container| !is_sidecar(c) && self.container(&c.name).is_some_and(ContainerRecord::failed);
        if policy == RestartPolicy::Never && self.init_containers().iter().any(failed) {
            return true;
        }
        self.regular_containers().iter().all(|c| {
            self.container(&c.name)
                .and_then(ContainerRecord::exit)
                .is_some_and(|exit| !policy.restarts(exit.exit_code))
        })
    }

    /// Nothing of the pod runs or will run again, whatever happens.
    pub(crate) fn finished(&self) -> bool {
        self.done() && !self.any_running()
    }

    /// When the pod's work was over, as far as the record tells.
    pub(crate) fn done_at(&self) -> Option<Timestamp> {
        let exits = self.containers.iter().filter(|(name, _)| !self.is_sidecar(name));
        let last = exits.filter_map(|(_, c)| Some(c.exit()?.finished_at)).max();
        self.failure.as_ref().map(|f| f.at).or(last)
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// An ephemeral container has an ordinary one's fields, and the name of the one that it looks into.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    serde_json::from_value(serde_json::to_value(ephemeral).ok()?).ok()
}

impl ContainerRecord {
    /// An instance exists and has not ended.
    pub(crate) fn is_live(&self) -> bool {
        self.current.as_ref().is_some_and(|i| !matches!(i.state, InstanceState::Exited(_)))
    }

    /// An instance runs, its postStart hook has ended well and its startup probe has succeeded.
    pub(crate) fn is_started(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|i| matches!(i.state, InstanceState::Running { .. }) && i.started && !i.post_start)
    }

    pub(crate) fn exit(&self) -> Option<&Termination> {
        match &self.current.as_ref()?.state {
            InstanceState::Exited(termination) => Some(termination),
            _ => None,
        }
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.exit().is_some_and(|t| t.exit_code == 0)
    }

    pub(crate) fn failed(&self) -> bool {
        self.exit().is_some_and(|t| t.exit_code != 0)
    }

    /// The ended instance becomes the one before; the next one is another attempt.
    pub(crate) fn retire(&mut self) -> Option<Ended> {
        let termination = self.exit()?.clone();
        let instance = self.current.take()?;
        self.restart_count = instance.attempt + 1;
        let ended = Ended { id: instance.id, attempt: instance.attempt, termination };
        self.last.replace(ended)
    }
}

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}
