//! What a node runs, as seen on its own machine: read from what runtime and agent keep on disk, whether the agent runs or
//! not, and without the control plane. For tools in the manner of `crictl`.
//!
//! Only reads. A pod or container that comes or goes meanwhile is there or not.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use runtime::{ContainerState, Observed, Runtime, RuntimeConfig, Timestamp};

use crate::Config;
use crate::engine::{LogOptions, LogPiece};
use crate::pods::containers::{
    CONTAINER_NAME_LABEL, IMAGE_LABEL, POD_NAME_LABEL, POD_NAMESPACE_LABEL, POD_UID_LABEL,
};
use crate::streaming::log_files::{LogReader, Wanted};

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The node's containers are not the agent's own.
    #[error("this node's containers are those of {0}: ask that runtime, with crictl --runtime-endpoint {0}")]
    OtherRuntime(String),
    /// There are no such files.
    #[error("no node has run here: there is no {0}")]
    NoNode(PathBuf),
    /// What is kept cannot be read.
    #[error("cannot read what the runtime keeps: {0}")]
    Runtime(#[from] runtime::Error),
    /// Nothing is called so.
    #[error("no container's id begins with {0:?}, and none is called that")]
    NoSuchContainer(String),
    /// Much is called so.
    #[error(
        "{0:?} is the beginning of several containers' ids, or several are called that: give more of an id"
    )]
    Ambiguous(String),
    /// The log cannot be read.
    #[error("cannot read the log {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// The sandbox's id.
    pub id: String,
    /// Whether its namespaces are held.
    pub is_ready: bool,
    /// When it was made, in nanoseconds since 1970; `None`: it never was.
    pub created_at: Option<i64>,
    /// The pod's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalContainer {
    /// Its id.
    pub id: String,
    /// The image, as the pod names it.
    pub image: String,
    /// When it began to run, in nanoseconds since 1970; `None`: it never did.
    pub created_at: Option<i64>,
    /// `Created`, `Running`, `Exited` or `Unknown`, the words of the CRI.
    pub state: &'static str,
    /// The container's name in its pod.
    pub name: String,
    /// How many of that name were before it.
    pub attempt: u32,
    /// Its sandbox's id.
    pub pod_id: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    log: Option<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub struct LocalNode {
    runtime: Runtime,
}

impl LocalNode {
    /// The node of a configuration.
    pub fn open(config: &Config) -> Result<Self, LocalError> {
        if !config.container_runtime_endpoint.is_empty() {
            return Err(LocalError::OtherRuntime(config.container_runtime_endpoint.clone()));
        }
        let state_dir = config.runtime_dir();
        if !state_dir.exists() {
            return Err(LocalError::NoNode(state_dir));
        }
        let runtime = RuntimeConfig {
            state_dir,
            // Nothing is started here, but it must be something.
            shim_command: config.shim_command().into_iter().map(Into::into).collect(),
            cgroup_root: config.cgroup_root.trim_start_matches('/').into(),
            every_hierarchy: false,
        };
        Ok(Self { runtime: Runtime::new(runtime)? })
    }

    /// All pods that have a sandbox, the youngest first.
    pub fn pods(&self) -> Result<Vec<LocalPod>, LocalError> {
        let pods = self.runtime.sandboxes()?.into_iter().map(|sandbox| LocalPod {
            is_ready: sandbox.pause.is_some(),
            created_at: sandbox.started_at.map(|at| at.unix_nanos()),
            name: label(&sandbox.spec.labels, POD_NAME_LABEL),
            namespace: label(&sandbox.spec.labels, POD_NAMESPACE_LABEL),
            uid: label(&sandbox.spec.labels, POD_UID_LABEL),
            id: sandbox.id,
        });
        let mut pods: Vec<LocalPod> = pods.collect();
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
        Ok(pods)
    }

    /// All containers, ended ones too, the youngest first.
    pub fn containers(&self) -> Result<Vec<LocalContainer>, LocalError> {
        let mut containers: Vec<LocalContainer> = self.runtime.list()?.into_iter().map(container).collect();
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(containers)
    }

    /// What a container has written. It is named by the beginning of its id, or by its name if no other has that.
    pub fn logs(&self, reference: &str, options: LogOptions) -> Result<LocalLogs<'_>, LocalError> {
        let all = self.containers()?;
        let by_id = |found: &&LocalContainer| found.id.starts_with(reference);
        let mut found: Vec<&LocalContainer> = all.iter().filter(by_id).collect();
        if found.is_empty() {
            found = all.iter().filter(|found| found.name == reference).collect();
        }
        let container = match found.as_slice() {
            [] => return Err(LocalError::NoSuchContainer(reference.to_owned())),
            [only] => (*only).clone(),
            _ => return Err(LocalError::Ambiguous(reference.to_owned())),
        };
        let path = container.log.unwrap_or_default();
        let wanted = Wanted { tail_lines: options.tail, timestamps: options.timestamps, ..Wanted::default() };
        let reader = LogReader::open(&path, wanted).map_err(|source| LocalError::Log { path, source })?;
        Ok(LocalLogs { node: self, id: container.id, follow: options.follow, reader })
    }
}

/// A place in a container's log.
pub struct LocalLogs<'a> {
    node: &'a LocalNode,
    id: String,
    follow: bool,
    reader: LogReader,
}

impl LocalLogs<'_> {
    /// What comes next; waits for it when the log is followed. `None`: no more.
    pub fn next_pieces(&mut self) -> Result<Option<Vec<LogPiece>>, LocalError> {
        let (node, id, follow) = (self.node, &self.id, self.follow);
        let runs = || -> Result<bool, LocalError> {
            let found = node.runtime.observe(id)?;
            Ok(found.is_some_and(|found| matches!(found.state, ContainerState::Running { .. })))
        };
        self.reader.next_pieces(
            || Ok(follow && runs()?),
            |path, source| LocalError::Log { path: path.to_owned(), source },
        )
    }
}

fn container(found: Observed) -> LocalContainer {
    let started = |at: Timestamp| at.unix_nanos();
    let (state, created_at) = match &found.state {
        ContainerState::Creating => ("Created", None),
        ContainerState::Running { started_at, .. } => ("Running", Some(started(*started_at))),
        ContainerState::Exited { started_at, .. } => ("Exited", started_at.map(started)),
        ContainerState::Lost { started_at } => ("Unknown", started_at.map(started)),
    };
    let labels = &found.spec.labels;
    let log = found.spec.log.as_ref().map(|log| log.path.clone());
    // The agent names logs by attempts.
    let attempt = log.as_ref().and_then(|log| log.file_stem()?.to_str()?.parse().ok()).unwrap_or(0);
    LocalContainer {
        image: label(labels, IMAGE_LABEL),
        created_at,
        state,
        name: label(labels, CONTAINER_NAME_LABEL),
        attempt,
        pod_id: found.sandbox,
        pod: label(labels, POD_NAME_LABEL),
        namespace: label(labels, POD_NAMESPACE_LABEL),
        log,
        id: found.id,
    }
}

fn label(labels: &BTreeMap<String, String>, name: &str) -> String {
    labels.get(name).cloned().unwrap_or_default()
}
