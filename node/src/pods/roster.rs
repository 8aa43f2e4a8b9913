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
    /// Uids of mirror pods, under which the API speaks of static pods.
    aliases: Mutex<BTreeMap<String, String>>,
}

/// A pod as those see it who look over all of them.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    pub(crate) uid: String,
    pub(crate) pod: Arc<Pod>,
    /// Names and ids of the containers that run.
    pub(crate) containers: Vec<(String, String)>,
    pub(crate) over: bool,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    status: Option<Arc<PodStatus>>,
    /// Attempt numbers by container id, of the instances whose logs are kept.
    attempts: BTreeMap<String, u32>,
    /// Ids of the instances whose process runs, by container name. While a postStart hook runs the status says less.
    running: BTreeMap<String, String>,
    /// Live instances: container names and ids.
    live: Vec<(String, String)>,
    /// Nothing of the pod runs or will run again.
    over: bool,
    /// Once the sandbox is ready: its network namespace, or none of its own.
    network: Option<Option<PathBuf>>,
}

impl Roster {
    /// The pod's newest desired object.
    pub(crate) fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.lock().get(&*self.own(uid)).map(|e| Arc::clone(&e.pod))
    }

    /// The pod's newest status.
    pub(crate) fn status(&self, uid: &str) -> Option<Arc<PodStatus>> {
        self.lock().get(&*self.own(uid))?.status.clone()
    }

    /// Which attempt of its container an instance is.
    pub(crate) fn attempt(&self, uid: &str, id: &str) -> Option<u32> {
        self.lock().get(&*self.own(uid))?.attempts.get(id).copied()
    }

    /// The id of the instance of a container whose process runs.
    pub(crate) fn running(&self, uid: &str, container: &str) -> Option<String> {
        self.lock().get(&*self.own(uid))?.running.get(container).cloned()
    }

    /// The network of the pod's sandbox, if it is ready: its namespace, or `None` for the host's.
    pub(crate) fn network(&self, uid: &str) -> Option<Option<PathBuf>> {
        self.lock().get(&*self.own(uid))?.network.clone()
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
                    live: Vec::new(),
                    over: false,
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
        let live = record.containers.iter().filter(|(_, c)| c.is_live());
        let live = live.filter_map(|(name, c)| Some((name.clone(), c.current.as_ref()?.id.clone())));
        entry.live = live.collect();
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

    pub(super) fn set_over(&self, uid: &str, over: bool) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.over = over;
        }
    }

    /// Under which uids the API speaks of static pods. Returns the static pods that are new among them.
    pub(super) fn set_aliases(&self, aliases: BTreeMap<String, String>) -> Vec<String> {
        let mut known = self.aliases.lock().expect("no holder of the aliases panics");
        let new = aliases.iter().filter(|(mirror, _)| !known.contains_key(*mirror));
        let new = new.map(|(_, uid)| uid.clone()).collect();
        *known = aliases;
        new
    }

    /// Every pod.
    pub(crate) fn all(&self) -> Vec<Looked> {
        let pods = self.lock();
        let looked = pods.iter().map(|(uid, entry)| Looked {
            uid: uid.clone(),
            pod: Arc::clone(&entry.pod),
            containers: entry.live.clone(),
            over: entry.over,
        });
        looked.collect()
    }

    /// Whether nothing of the pod runs or will run again.
    pub(crate) fn is_over(&self, uid: &str) -> bool {
        self.lock().get(uid).is_none_or(|entry| entry.over)
    }

    /// The uid by which this node knows a pod that the API names.
    pub(crate) fn own<'a>(&self, uid: &'a str) -> std::borrow::Cow<'a, str> {
        let aliases = self.aliases.lock().expect("no holder of the aliases panics");
        aliases.get(uid).map_or(uid.into(), |own| own.clone().into())
    }

    pub(super) fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.pods.lock().expect("no holder of the roster panics")
    }
}
