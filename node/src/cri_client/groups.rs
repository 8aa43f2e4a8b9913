//! The groups of pods: the agent makes them with their limits, another runtime puts its containers' groups below
//! them (in hierarchies that the agent itself has no use for, too), the agent removes them.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::{CgroupSpec, OutsideGroups, Unenforced};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    groups: OutsideGroups,
    root: PathBuf,
}

impl Groups {
    pub(super) fn detect(root: &str) -> Result<Self, runtime::Error> {
        let root = PathBuf::from(root.trim_matches('/'));
        Ok(Self { groups: OutsideGroups::detect(Path::new(""))?, root })
    }

    /// A pod's group as the runtime is told of it.
    pub(super) fn path(&self, relative: &Path) -> String {
        format!("/{}", self.root.join(relative).display())
    }

    pub(super) fn create(&self, spec: &CgroupSpec) -> Result<Vec<Unenforced>, runtime::Error> {
        self.groups.create(&CgroupSpec { path: self.root.join(&spec.path), ..spec.clone() })
    }

    /// Removes a pod's group, given as the runtime was told of it, in every hierarchy. May be repeated.
    pub(super) fn remove(&self, group: &str) -> Result<(), runtime::Error> {
        let relative = Path::new(group.trim_matches('/'));
        self.groups.remove(relative)?;
        for hierarchy in hierarchies(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()) {
            // Not there, or in use by what is not ours: nothing to be done about it here.
            let _left = fs::remove_dir(hierarchy.join(relative));
        }
        Ok(())
    }
}

/// Where cgroups are mounted, of either version.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let is_cgroup = kind.split(' ').next().is_some_and(|kind| kind == "cgroup" || kind == "cgroup2");
        is_cgroup.then(|| place.split(' ').nth(4).map(PathBuf::from)).flatten()
    });
    mounts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_their_kind() {
        let text = "25 20 0:22 / /sys/fs/cgroup/cpu rw,nosuid shared:7 - cgroup cgroup rw,cpu\n\
            26 20 0:23 / /proc rw - proc proc rw\n\
            27 20 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = hierarchies(text);
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")]);
    }
}
