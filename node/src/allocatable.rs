//! The control groups of pods as the node as a whole sees them: the one limit on all pods together, and what
//! pods use of memory, on cgroup v1 or v2.
//!
//! Everything below the group of all pods is the runtime's to make and remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The group that holds every pod; see `pods::qos`.
const PODS_GROUP: &str = "kubepods";

/// Why the limit cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AllocatableError {
    #[error("no memory controller of cgroups is mounted")]
    NoController,
    #[error("cannot {operation} {path}: {source}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
}

/// The names of a version's files.
#[derive(Debug, PartialEq)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The line of `memory.stat` with what the kernel gives back first.
    reclaimable: &'static str,
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const VERSION_2: Files = Files { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

/// The node's part of the hierarchy that has the memory controller.
#[derive(Debug)]
pub(crate) struct Groups {
    hierarchy: PathBuf,
    /// The group below which the agent makes all others.
    root: PathBuf,
    files: &'static Files,
}

impl Groups {
    /// Finds the hierarchy of this host.
    pub(crate) fn detect(cgroup_root: &str) -> Result<Self, AllocatableError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (hierarchy, files) = memory_hierarchy(&mounts).ok_or(AllocatableError::NoController)?;
        let root = hierarchy.join(cgroup_root.trim_start_matches('/'));
        Ok(Self { hierarchy, root, files })
    }

    /// Limits the memory of all pods below the node's root group.
    pub(crate) fn enforce(&self, memory_bytes: u64) -> Result<(), AllocatableError> {
        let group = self.root.join(PODS_GROUP);
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| AllocatableError::File { operation, path, source }
        };
        fs::create_dir_all(&group).map_err(failed("create", &group))?;
        if *self.files == VERSION_2 {
            delegate(&self.hierarchy, &group)?;
        }
        let limit = group.join(self.files.limit);
        fs::write(&limit, memory_bytes.to_string()).map_err(failed("write", &limit))
    }

    /// Memory of all pods that cannot be given back at once.
    pub(crate) fn pods_memory(&self) -> Option<u64> {
        self.memory(Path::new(PODS_GROUP))
    }

    /// The same of one group, given below the node's root group.
    pub(crate) fn memory(&self, group: &Path) -> Option<u64> {
        let dir = self.root.join(group);
        let usage: u64 = fs::read_to_string(dir.join(self.files.usage)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        let line = stat.lines().find_map(|line| line.strip_prefix(self.files.reclaimable));
        let reclaimable = line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0);
        Some(usage.saturating_sub(reclaimable))
    }

    /// Processes in a group and below it.
    pub(crate) fn processes(&self, group: &Path) -> u64 {
        processes_below(&self.root.join(group))
    }
}

fn processes_below(dir: &Path) -> u64 {
    let own = fs::read_to_string(dir.join("cgroup.procs")).map_or(0, |text| text.lines().count() as u64);
    let children = fs::read_dir(dir).into_iter().flatten().flatten();
    let groups = children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own + groups.map(|entry| processes_below(&entry.path())).sum::<u64>()
}

/// On v2 a group has a controller only if every group above passes it on.
fn delegate(hierarchy: &Path, group: &Path) -> Result<(), AllocatableError> {
    let above: Vec<&Path> = group.ancestors().skip(1).take_while(|p| p.starts_with(hierarchy)).collect();
    for dir in above.into_iter().rev() {
        let path = dir.join("cgroup.subtree_control");
        fs::write(&path, "+memory").map_err(|source| AllocatableError::File {
            operation: "write",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The mount of the hierarchy with the memory controller, and the names of its files.
fn memory_hierarchy(mountinfo: &str) -> Option<(PathBuf, &'static Files)> {
    let mut unified = None;
    for line in mountinfo.lines() {
        let (head, tail) = line.split_once(" - ")?;
        let mount = PathBuf::from(head.split(' ').nth(4)?);
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1).unwrap_or_default());
        match kind {
            "cgroup" if options.split(',').any(|o| o == "memory") => return Some((mount, &VERSION_1)),
            "cgroup2" => unified = Some(mount),
            _ => {}
        }
    }
    let has_memory = |mount: &PathBuf| {
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        controllers.split_ascii_whitespace().any(|c| c == "memory")
    };
    unified.filter(has_memory).map(|mount| (mount, &VERSION_2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_versions_hierarchy() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = memory_hierarchy(mounts);
        assert_eq!(found, Some((PathBuf::from("/sys/fs/cgroup/memory"), &VERSION_1)));
        assert_eq!(memory_hierarchy("1 1 0:1 / / rw - ext4 /dev/x rw\n"), None);
    }

    #[test]
    fn the_working_set_is_what_cannot_be_given_back() {
        let dir = tempfile::tempdir().unwrap();
        for (files, version) in [(&VERSION_1, "one"), (&VERSION_2, "two")] {
            let root = dir.path().join(version);
            let pod = root.join(PODS_GROUP).join("pod");
            fs::create_dir_all(&pod).unwrap();
            fs::write(pod.join(files.usage), "1000\n").unwrap();
            fs::write(pod.join("memory.stat"), "inactive_file 300\ntotal_inactive_file 300\n").unwrap();
            fs::write(pod.join("cgroup.procs"), "1\n2\n").unwrap();
            fs::write(root.join(PODS_GROUP).join("cgroup.procs"), "3\n").unwrap();
            let groups = Groups { hierarchy: dir.path().to_owned(), root, files };
            assert_eq!(groups.memory(Path::new("kubepods/pod")), Some(700));
            assert_eq!(groups.pods_memory(), None);
            assert_eq!(groups.processes(Path::new(PODS_GROUP)), 3);
        }
    }
}
