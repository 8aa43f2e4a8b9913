//! What every pod worker of the node shares, and where a pod's files lie.
//!
//! ```text
//! <dataDir>/pods/<uid>/checkpoint.json      the worker's record
//!                      etc/                 hosts, hostname, resolv.conf
//!                      volumes/<name>       volumes (see `volumes`)
//!                      containers/<name>/   termination messages
//!                      roots/<id>/          writable layers
//! <logDir>/pods/<namespace>_<name>_<uid>/<container>/<attempt>.log
//! <logDir>/containers/<pod>_<namespace>_<container>-<id>.log   links to them
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::confinement;
use super::containers::ContainerRuntime;
use super::record::PodRecord;
use super::roster::Roster;
use super::status::NodeFacts;
use crate::Config;
use crate::images::{ImageStore, Puller};
use crate::local_volumes::LocalVolumes;
use crate::network::PodNetwork;
use crate::network::cluster::ClusterNetwork;
use crate::network::policies::Policies;
use crate::node_state::NodeState;
use crate::objects::Objects;
use crate::session::outbox::Outbox;
use crate::tokens::Tokens;
use crate::user_ids::UserIdPool;

/// Shared by all workers of a node.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) puller: Arc<Puller>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) cluster: Arc<ClusterNetwork>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) user_ids: Arc<UserIdPool>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) objects: Arc<Objects>,
    pub(crate) local_volumes: Arc<LocalVolumes>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) resources: NodeResources,
    pub(crate) state: Arc<NodeState>,
}

/// The machine's size, as workers need it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeResources {
    pub(crate) memory_bytes: u64,
    /// What all pods together are held to.
    pub(crate) pods_memory_limit_bytes: u64,
    pub(crate) allocatable_cpu_milli: i64,
    pub(crate) allocatable_memory_bytes: i64,
}

impl Context {
    pub(crate) fn facts(&self) -> NodeFacts {
        NodeFacts { internal_ip: self.config.internal_ip }
    }

    /// What the node decides about confinement.
    pub(crate) fn confinement(&self) -> confinement::Host<'_> {
        let Config { seccomp_default, seccomp_dir, .. } = &self.config;
        confinement::Host { seccomp_default: *seccomp_default, seccomp_dir }
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.config.data_dir.join("pods")
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    pub(crate) fn pod_log_dir(&self, record: &PodRecord) -> PathBuf {
        pod_log_dir(&self.config.log_dir(), record.namespace(), record.name(), record.uid())
    }

    /// The file that the kubelet's users look for: one link per instance.
    pub(crate) fn log_link(&self, record: &PodRecord, container: &str, id: &str) -> PathBuf {
        let file = format!("{}_{}_{container}-{id}.log", record.name(), record.namespace());
        self.config.log_dir().join("containers").join(file)
    }
}

/// The directory of all logs of a pod.
pub(crate) fn pod_log_dir(log_dir: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    log_dir.join("pods").join(format!("{namespace}_{name}_{uid}"))
}
