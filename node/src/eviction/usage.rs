//! What the machine has left, and what pods use of it: memory and processes by their control groups, disk by
//! looking at their directories.
//!
//! Everything is read from the host; nothing here asks the container runtime. Looking at disks is the one
//! thing that costs: see `disk`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodSpec;

use super::disk::{self, Used};
use super::threshold::{Observation, Signal};
use super::watch::Observations;
use crate::allocatable::Groups;
use crate::machine;
use crate::pods::qos;
use crate::pods::roster::Looked;

/// Where things lie, and how much of them there is.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) data_dir: PathBuf,
    pub(crate) images_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    /// Absent where no group counts memory.
    pub(crate) groups: Option<Groups>,
    pub(crate) memory_capacity: u64,
    /// What all pods together are held to.
    pub(crate) pods_memory_limit: u64,
}

/// What one container uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ContainerUsage {
    pub(crate) name: String,
    /// Memory that cannot be given back at once.
    pub(crate) memory: u64,
    /// Its writable layer and its log.
    pub(crate) disk: Used,
}

/// What one pod uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PodUsage {
    pub(crate) memory: u64,
    pub(crate) processes: u64,
    pub(crate) containers: Vec<ContainerUsage>,
    /// `emptyDir`s on the node's disk, by volume name.
    pub(crate) empty_dirs: BTreeMap<String, Used>,
}

impl PodUsage {
    /// Everything of the pod on the node's disk.
    pub(crate) fn disk(&self) -> Used {
        let containers = self.containers.iter().map(|container| container.disk);
        containers.chain(self.empty_dirs.values().copied()).sum()
    }
}

impl Places {
    /// What every signal says now.
    pub(crate) fn observe(&self) -> Observations {
        let mut observations = Observations::new();
        let capacity = self.memory_capacity;
        let available = machine::memory("MemAvailable").min(capacity);
        observations.insert(Signal::MemoryAvailable, Observation { available, capacity });
        if let Some(used) = self.groups.as_ref().and_then(Groups::pods_memory) {
            let capacity = self.pods_memory_limit;
            let available = capacity.saturating_sub(used);
            observations.insert(Signal::AllocatableMemoryAvailable, Observation { available, capacity });
        }
        for (dir, bytes, inodes) in [
            (&self.data_dir, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
            (&self.images_dir, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        ] {
            let Some(found) = machine::storage(dir) else { continue };
            let of_bytes = Observation { available: found.available_bytes, capacity: found.usable_bytes };
            observations.insert(bytes, of_bytes);
            // Some file systems have as many as they need.
            if found.inodes > 0 {
                let of_inodes = Observation { available: found.inodes_free, capacity: found.inodes };
                observations.insert(inodes, of_inodes);
            }
        }
        if let Some((running, max)) = machine::processes() {
            let of_pids = Observation { available: max.saturating_sub(running), capacity: max };
            observations.insert(Signal::PidAvailable, of_pids);
        }
        observations
    }

    /// Whether images lie on a disk of their own.
    pub(crate) fn images_apart(&self) -> bool {
        let device = |dir: &Path| fs::metadata(dir).map(|found| found.dev()).ok();
        device(&self.images_dir) != device(&self.data_dir)
    }

    /// Memory and processes of a pod.
    pub(crate) fn of_groups(&self, looked: &Looked) -> PodUsage {
        let (Some(spec), Some(groups)) = (&looked.pod.spec, &self.groups) else { return PodUsage::default() };
        let group = qos::pod_cgroup(spec, &looked.uid).path;
        let containers = looked.containers.iter().map(|(name, id)| ContainerUsage {
            name: name.clone(),
            memory: groups.memory(&group.join(id)).unwrap_or(0),
            disk: Used::default(),
        });
        PodUsage {
            memory: groups.memory(&group).unwrap_or(0),
            processes: groups.processes(&group),
            containers: containers.collect(),
            empty_dirs: BTreeMap::new(),
        }
    }

    /// What lies on the node's disk for a pod.
    pub(crate) fn on_disk(&self, looked: &Looked) -> PodUsage {
        let dir = self.data_dir.join("pods").join(&looked.uid);
        let metadata = &looked.pod.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let name = metadata.name.as_deref().unwrap_or_default();
        let logs = crate::pods::context::pod_log_dir(&self.log_dir, namespace, name, &looked.uid);
        let mut budget = disk::ENTRIES_MAX;
        let containers = looked.containers.iter().map(|(name, id)| {
            let layer = disk::used(&dir.join("roots").join(id).join("upper"), &mut budget);
            let log = disk::used(&logs.join(name), &mut budget);
            ContainerUsage { name: name.clone(), memory: 0, disk: layer + log }
        });
        let containers = containers.collect();
        let empty_dirs = looked
            .pod
            .spec
            .iter()
            .flat_map(disk_volumes)
            .map(|name| (name.to_owned(), disk::used(&dir.join("volumes").join(name), &mut budget)));
        let empty_dirs = empty_dirs.collect();
        PodUsage { memory: 0, processes: 0, containers, empty_dirs }
    }
}

/// The pod's `emptyDir`s that are not in memory.
fn disk_volumes(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let volumes = spec.volumes.iter().flatten();
    let on_disk = volumes.filter(|volume| {
        volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() != Some("Memory"))
    });
    on_disk.map(|volume| volume.name.as_str())
}
