//! The limit on all pods of the node together: memory of the `kubepods` group, on cgroup v1 or v2.
//!
//! Everything below that group is the runtime's to make and remove; this only sets the one limit on it.

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

/// Limits the memory of all pods below the node's root group.
pub(crate) fn enforce(cgroup_root: &str, memory_bytes: u64) -> Result<(), AllocatableError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (hierarchy, file) = memory_hierarchy(&mounts).ok_or(AllocatableError::NoController)?;
    let group = hierarchy.join(cgroup_root.trim_start_matches('/')).join(PODS_GROUP);
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| AllocatableError::File { operation, path, source }
    };
    fs::create_dir_all(&group).map_err(failed("create", &group))?;
    if file == "memory.max" {
        delegate(&hierarchy, &group)?;
    }
    let limit = group.join(file);
    fs::write(&limit, memory_bytes.to_string()).map_err(failed("write", &limit))
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

/// The mount of the hierarchy with the memory controller, and the name of its limit.
fn memory_hierarchy(mountinfo: &str) -> Option<(PathBuf, &'static str)> {
    let mut unified = None;
    for line in mountinfo.lines() {
        let (head, tail) = line.split_once(" - ")?;
        let mount = PathBuf::from(head.split(' ').nth(4)?);
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1).unwrap_or_default());
        match kind {
            "cgroup" if options.split(',').any(|o| o == "memory") => {
                return Some((mount, "memory.limit_in_bytes"));
            }
            "cgroup2" => unified = Some(mount),
            _ => {}
        }
    }
    let has_memory = |mount: &PathBuf| {
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        controllers.split_ascii_whitespace().any(|c| c == "memory")
    };
    unified.filter(has_memory).map(|mount| (mount, "memory.max"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_versions_hierarchy() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = memory_hierarchy(mounts);
        assert_eq!(found, Some((PathBuf::from("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")));
        assert_eq!(memory_hierarchy("1 1 0:1 / / rw - ext4 /dev/x rw\n"), None);
    }
}
