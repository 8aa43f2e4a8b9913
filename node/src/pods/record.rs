//! What a worker knows about its pod: what is desired, what was decided, what is observed. The checkpoint
//! holds exactly this. Data and questions about it; no decisions (see `plan`), no effects (see `steps`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;

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
    pub(crate) sandbox: Option<SandboxRecord>,
    /// Sandboxes made so far.
    pub(crate) sandbox_attempts: u32,
    /// When to try again to make a sandbox or its volumes.
    pub(crate) sandbox_retry_at: Option<Timestamp>,
    /// By container name, init containers included.
    pub(crate) containers: BTreeMap<String, ContainerRecord>,
    /// Volumes, log files and directories are gone.
    pub(crate) released: bool,
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
    pub(crate) killed: bool,
}

impl PodRecord {
    pub(crate) fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        let mut record = Self {
            pod,
            removed: false,
            accepted_at: now,
            terminating_since: None,
            sandbox: None,
            sandbox_attempts: 0,
            sandbox_retry_at: None,
            containers: BTreeMap::new(),
            released: false,
            ended_before: false,
            last_status: None,
        };
        let known = record.pod.status.clone().unwrap_or_default();
        let statuses = known.init_container_statuses.iter().chain(&known.container_statuses).flatten();
        // A container that ran once keeps its count, even if this node's own memory of it is lost.
        let counts: BTreeMap<String, u32> = statuses
            .filter(|s| s.container_id.is_some())
            .map(|s| (s.name.clone(), s.restart_count.max(0) as u32 + 1))
            .collect();
        let names =
            record.init_containers().iter().chain(record.regular_containers()).map(|c| c.name.clone());
        record.containers = names
            .map(|name| {
                let restart_count = counts.get(&name).copied().unwrap_or(0);
                (name, ContainerRecord { restart_count, ..ContainerRecord::default() })
            })
            .collect();
        record.ended_before = matches!(known.phase.as_deref(), Some("Succeeded" | "Failed"));
        if let Some(start) = &known.start_time {
            record.accepted_at = start.0;
        }
        record.last_status = known.phase.is_some().then_some(known);
        record
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

    pub(crate) fn container_spec(&self, name: &str) -> Option<&Container> {
        self.init_containers().iter().chain(self.regular_containers()).find(|c| c.name == name)
    }

    pub(crate) fn is_init(&self, name: &str) -> bool {
        self.init_containers().iter().any(|c| c.name == name)
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
        grace.or(self.spec().termination_grace_period_seconds).unwrap_or(30).max(0)
    }

    pub(crate) fn container(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.get(name)
    }

    pub(crate) fn any_running(&self) -> bool {
        self.containers.values().any(ContainerRecord::is_live)
    }

    /// Nothing of the pod will run again, whatever happens.
    pub(crate) fn finished(&self) -> bool {
        if self.ended_before {
            return true;
        }
        let policy = self.restart_policy();
        if policy == RestartPolicy::Never
            && self
                .init_containers()
                .iter()
                .any(|c| self.container(&c.name).is_some_and(ContainerRecord::failed))
        {
            return !self.any_running();
        }
        self.regular_containers().iter().all(|c| {
            self.container(&c.name)
                .and_then(ContainerRecord::exit)
                .is_some_and(|exit| !policy.restarts(exit.exit_code))
        })
    }
}

impl ContainerRecord {
    /// An instance exists and has not ended.
    pub(crate) fn is_live(&self) -> bool {
        self.current.as_ref().is_some_and(|i| !matches!(i.state, InstanceState::Exited(_)))
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
