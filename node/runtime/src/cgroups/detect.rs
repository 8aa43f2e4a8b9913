//! Which cgroup hierarchies the host has, read from `mountinfo`: version 1 (a mount per controller or a
//! few), version 2 (one mount), or both (*hybrid*: a controller is then in one of the two only).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Controllers of version 1 that groups are made in, where they are mounted.
const V1_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];
/// Controllers of version 2 that are switched on for groups.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Controllers of either version that act only on groups that ask for them: each is a price that most need not pay.
const OPTIONAL_CONTROLLERS: [&str; 4] = ["cpuset", "hugetlb", "blkio", "io"];

/// A mounted hierarchy of version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct V1Mount {
    pub(crate) path: PathBuf,
    /// All controllers on it, ours or not, as the mount option names them; for a hierarchy without any, its name.
    pub(crate) controllers: Vec<String>,
    /// Whether groups are made in it whatever they ask for.
    #[serde(default)]
    pub(crate) always: bool,
}

impl V1Mount {
    /// Whether it has a controller.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|found| found == controller)
    }

    /// Whether groups are made in it only where they ask for its limits.
    pub(super) fn is_optional(&self) -> bool {
        !self.always && !self.controllers.iter().any(|name| V1_CONTROLLERS.contains(&name.as_str()))
    }
}

/// Whether a controller acts only on groups that ask for it.
pub(super) fn is_optional(controller: &str) -> bool {
    OPTIONAL_CONTROLLERS.contains(&controller)
}

/// The mounted hierarchy of version 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct V2Mount {
    pub(crate) path: PathBuf,
    /// Those of [`V2_CONTROLLERS`] and [`OPTIONAL_CONTROLLERS`] that it offers.
    pub(crate) controllers: Vec<String>,
}

/// The host's hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchies {
    pub(crate) v1: Vec<V1Mount>,
    pub(crate) v2: Option<V2Mount>,
}

impl Hierarchies {
    /// Those of the calling process's mount namespace; with `every`, also those that no limit of ours needs.
    pub(crate) fn detect(every: bool) -> Result<Hierarchies, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        Ok(Hierarchies::parse(&text, every))
    }

    /// Whether memory and swap are counted together (version 1 may be told not to; version 2 counts swap always).
    pub(crate) fn limit_swap(&self) -> bool {
        let memory = self.v1.iter().find(|mount| mount.has("memory"));
        match memory {
            Some(mount) => mount.path.join("memory.memsw.limit_in_bytes").exists(),
            None => self.v2.as_ref().is_some_and(|v2| v2.controllers.iter().any(|name| name == "memory")),
        }
    }

    /// Version 2 is left out where it adds nothing: beside version 1, without controllers.
    fn parse(mountinfo: &str, every: bool) -> Hierarchies {
        let mut found = Hierarchies::default();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(path) = mount.split(' ').nth(4).map(unescape) else { continue };
            let mut fields = filesystem.split(' ');
            let (kind, options) = (fields.next(), fields.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup") => found.v1.extend(v1_mount(path, options, every)),
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(v2_mount(path)),
                _ => {}
            }
        }
        if !found.v1.is_empty() && found.v2.as_ref().is_some_and(|mount| mount.controllers.is_empty()) {
            found.v2 = None;
        }
        found
    }
}

fn v1_mount(path: PathBuf, options: &str, every: bool) -> Option<V1Mount> {
    let controllers: Vec<String> = options
        .split(',')
        .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children"))
        .filter(|option| !option.contains('=') || every && option.starts_with("name="))
        .map(str::to_owned)
        .collect();
    let ours = controllers.iter().any(|name| V1_CONTROLLERS.contains(&name.as_str()) || is_optional(name));
    (ours || every).then_some(V1Mount { path, controllers, always: every })
}

fn v2_mount(path: PathBuf) -> V2Mount {
    let offered = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    let controllers = offered
        .split_ascii_whitespace()
        .filter(|controller| V2_CONTROLLERS.contains(controller) || is_optional(controller))
        .map(str::to_owned)
        .collect();
    V2Mount { path, controllers }
}

/// Spaces and backslashes in paths stand in octal.
fn unescape(field: &str) -> PathBuf {
    let mut plain = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLIT: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu\\040x rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
";

    #[test]
    fn version_1_mounts_that_matter_are_found() {
        let found = Hierarchies::parse(SPLIT, false);
        let paths: Vec<_> = found.v1.iter().map(|mount| mount.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/sys/fs/cgroup/cpu x", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/memory"]);
        assert_eq!(found.v1[0].controllers, ["cpu", "cpuacct"]);
        let optional: Vec<bool> = found.v1.iter().map(V1Mount::is_optional).collect();
        assert_eq!(optional, [false, true, false]);
        assert_eq!(found.v2, None);
        let every = Hierarchies::parse(SPLIT, true);
        let named = every.v1.last().unwrap();
        assert_eq!((every.v1.len(), named.controllers.as_slice()), (4, &["name=systemd".to_owned()][..]));
        assert!(!every.v1.iter().any(V1Mount::is_optional));
    }

    #[test]
    fn version_2_counts_by_what_it_offers() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let line = format!("41 31 0:38 / {root} rw - cgroup2 cgroup2 rw\n");
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let alone = Hierarchies::parse(&line, false);
        assert_eq!(alone.v2.unwrap().controllers, ["cpuset", "cpu", "io", "memory", "pids"]);

        fs::write(dir.path().join("cgroup.controllers"), "\n").unwrap();
        let hybrid = Hierarchies::parse(&format!("{SPLIT}{line}"), false);
        assert_eq!(hybrid.v2, None, "no controllers beside version 1");
        let bare = Hierarchies::parse(&line, false);
        assert!(bare.v2.unwrap().controllers.is_empty(), "alone it still holds processes together");
    }
}
