//! Mounts over a root filesystem, and the paths of the kernel's own filesystems that containers are kept from.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What a mount is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host, with what is mounted below it.
    #[default]
    Bind,
    /// Memory; `source` is ignored, `options` are tmpfs's (`size=..`, `mode=..`).
    Tmpfs,
}

/// How later mounts of the host below a bind mount are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// Those of the host appear inside.
    HostToContainer,
    /// Those of the host appear inside, and those made inside appear on the host. Only for privileged
    /// containers; the source must lie on a shared mount.
    Bidirectional,
}

/// One mount over the root filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Host path of a bind mount, resolved on the host.
    pub source: PathBuf,
    /// What to mount of a source directory: a relative path, made (as a directory) if missing. Links in it
    /// are followed inside the source only, even while somebody changes them.
    #[serde(default)]
    pub sub_path: Option<PathBuf>,
    /// Absolute path inside the container, made if missing. Symbolic links in it are followed inside
    /// the container's root only.
    pub target: PathBuf,
    /// Whether it can only be read.
    pub read_only: bool,
    /// What it is made of.
    pub kind: MountKind,
    /// For bind mounts.
    pub propagation: Propagation,
    /// Filesystem options of a tmpfs.
    pub options: Vec<String>,
}

/// Paths under `/proc` and `/sys` that container runtimes hide.
pub fn default_masked_paths() -> Vec<PathBuf> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(PathBuf::from)
    .to_vec()
}

/// Paths under `/proc` that container runtimes make read-only.
pub fn default_readonly_paths() -> Vec<PathBuf> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(PathBuf::from).to_vec()
}

impl Mount {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.target.is_absolute() || has_parent_component(&self.target) {
            return Err(Error::invalid(
                "mounts.target",
                format!("{} is not an absolute path without \"..\"", self.target.display()),
            ));
        }
        if let Some(sub_path) = &self.sub_path
            && (sub_path.is_absolute() || has_parent_component(sub_path))
        {
            return Err(Error::invalid(
                "mounts.sub_path",
                format!("{} is not a relative path without \"..\"", sub_path.display()),
            ));
        }
        if self.kind == MountKind::Bind && !self.source.is_absolute() {
            return Err(Error::invalid(
                "mounts.source",
                format!("{} is not absolute", self.source.display()),
            ));
        }
        Ok(())
    }
}

fn has_parent_component(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_targets_are_absolute_and_plain() {
        let with =
            |target: &str| Mount { source: "/x".into(), target: target.into(), ..Mount::default() }.check();
        assert!(with("/data").is_ok());
        assert!(with("data").is_err());
        assert!(with("/data/../../etc").is_err());
    }
}
