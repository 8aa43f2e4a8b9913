//! Which pods this node has and what they do, for those who only look (streams). Written by the dispatcher
//! and the workers, each its own part.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::record::{InstanceState, PodRecord};

/// The pods of the node by uid.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pods: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    status: Option<Arc<PodStatus>>,
    /// Attempt numbers by container id, of the instances whose logs are kept.
    attempts: BTreeMap<String, u32>,
    /// Ids of the instances whose process runs, by container name. While a postStart hook runs the status says less.
    running: BTreeMap<String, String>,
    /// Once the sandbox is ready: its network namespace, or none of its own.
    network: Option<Option<PathBuf>>,
}

impl Roster {
    /// The pod's newest desired object.
    pub(crate) fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.lock().get(uid).map(|e| Arc::clone(&e.pod))
    }

    /// The pod's newest status.
    pub(crate) fn status(&self, uid: &str) -> Option<Arc<PodStatus>> {
        self.lock().get(uid)?.status.clone()
    }

    /// Which attempt of its container an instance is.
    pub(crate) fn attempt(&self, uid: &str, id: &str) -> Option<u32> {
        self.lock().get(uid)?.attempts.get(id).copied()
    }

    /// The id of the instance of a container whose process runs.
    pub(crate) fn running(&self, uid: &str, container: &str) -> Option<String> {
        self.lock().get(uid)?.running.get(container).cloned()
    }

    /// The network of the pod's sandbox, if it is ready: its namespace, or `None` for the host's.
    pub(crate) fn network(&self, uid: &str) -> Option<Option<PathBuf>> {
        self.lock().get(uid)?.network.clone()
    }

    pub(super) fn set_pod(&self, uid: &str, pod: Arc<Pod>) {
        let mut pods = self.lock();
        match pods.get_mut(uid) {
            Some(entry) => entry.pod = pod,
            None => drop(pods.insert(
                uid.to_owned(),
                Entry {
                    pod,
                    status: None,
                    attempts: BTreeMap::new(),
                    running: BTreeMap::new(),
                    network: None,
                },
            )),
        }
    }

    pub(super) fn set_status(&self, record: &PodRecord) {
        let mut pods = self.lock();
        let Some(entry) = pods.get_mut(record.uid()) else { return };
        entry.status = record.last_status.clone().map(Arc::new);
        let containers = record.containers.values();
        let instances = containers.flat_map(|c| {
            let current = c.current.iter().map(|i| (i.id.clone(), i.attempt));
            current.chain(c.last.iter().map(|e| (e.id.clone(), e.attempt)))
        });
        entry.attempts = instances.collect();
        entry.network = record.sandbox.as_ref().filter(|s| s.ready).map(|s| s.netns.clone());
    }

    /// Which processes run; this may change without any change of the status.
    pub(super) fn set_running(&self, record: &PodRecord) {
        let running = record.containers.iter().filter_map(|(name, c)| Some((name, c.current.as_ref()?)));
        let running = running.filter(|(_, i)| matches!(i.state, InstanceState::Running { .. }));
        let running = running.map(|(name, i)| (name.clone(), i.id.clone())).collect();
        if let Some(entry) = self.lock().get_mut(record.uid()) {
            entry.running = running;
        }
    }

    pub(super) fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.pods.lock().expect("no holder of the roster panics")
    }
}
