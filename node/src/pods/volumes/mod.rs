//! A pod's volumes: what lies below `<pod>/volumes/<name>`, and what is mounted from elsewhere.
//!
//! Owns every mount below a pod's volume directory. One trait, [`VolumeDriver`], is what a kind of volume is
//! made by; a storage driver that talks to another process (CSI) would be one more entry of [`DRIVERS`].
//! Promises that making volumes may be repeated (an agent that died half-way is followed by one that makes
//! the rest), that removing them may be repeated, and that nothing is deleted below a directory on which
//! something is still mounted. What cannot be had is refused with the sentence that the pod's events show.
//!
//! ```text
//! emptyDir ── directory, or memory          hostPath ── nothing here; checked, mounted from its own place
//! configMap ─ files on disk ┐               persistentVolumeClaim ─ the bound volume's path (hostPath, local, or
//! secret ──── files in memory ├ atomic                 a directory that the node keeps for it), bound here
//!                             │ updates     nfs ─────── mounted here
//!                             │             ephemeral ─ the same, with the claim made for it
//! downwardAPI, projected ─────┘             others ──── refused
//! ```

mod api_files;
mod atomic;
mod claim;
mod empty_dir;
mod host_path;
mod mounts;
mod remote;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::context::Context;
use super::record::PodRecord;
use crate::local_volumes::LocalVolumes;
use crate::objects::Objects;

/// Why a volume cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub(crate) struct VolumeError {
    pub(crate) volume: String,
    pub(crate) message: String,
}

/// Tokens of service accounts by volume name and index of the source within it.
pub(crate) type Tokens = BTreeMap<(String, usize), String>;

/// What volumes are made from.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) namespace: &'a str,
    pub(crate) objects: &'a Objects,
    pub(crate) local_volumes: &'a LocalVolumes,
    pub(crate) tokens: &'a Tokens,
    /// The group that files belong to.
    pub(crate) fs_group: Option<u32>,
    /// The user that all containers run as, if they agree.
    pub(crate) fs_user: Option<u32>,
    /// The node's allocatable CPU (milli) and memory (bytes): what "no limit" means.
    pub(crate) allocatable: (i64, i64),
}

impl<'a> Around<'a> {
    pub(crate) fn new(context: &'a Context, record: &'a PodRecord, tokens: &'a Tokens) -> Self {
        let spec = record.spec();
        let security = spec.security_context.as_ref();
        let fs_group = security.and_then(|s| s.fs_group).and_then(|gid| u32::try_from(gid).ok());
        let pod_user = security.and_then(|s| s.run_as_user);
        let mut users =
            spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| {
                container.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user)
            });
        let first = users.next().flatten();
        let fs_user = first.filter(|first| users.all(|user| user == Some(*first)));
        Self {
            pod: &record.pod,
            namespace: record.namespace(),
            objects: &context.objects,
            local_volumes: &context.local_volumes,
            tokens,
            fs_group,
            fs_user: fs_user.and_then(|uid| u32::try_from(uid).ok()),
            allocatable: (
                context.resources.allocatable_cpu_milli,
                context.resources.allocatable_memory_bytes,
            ),
        }
    }

    fn volumes(&self) -> &'a [Volume] {
        self.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
    }
}

/// Makes one kind of volume.
pub(crate) trait VolumeDriver: Sync {
    /// Whether the volume is of this driver's kind.
    fn takes(&self, volume: &Volume) -> bool;

    /// Makes the volume at its directory, or brings it up to date. May be repeated. On failure the sentence
    /// for the pod's events.
    fn set_up(&self, volume: &Volume, at: &Path, around: Around<'_>) -> Result<(), String>;

    /// Where the volume lies on the host, if not at its directory.
    fn elsewhere(&self, _volume: &Volume) -> Option<PathBuf> {
        None
    }

    /// Whether containers may only read it, whatever they ask for.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether it has to be set up again when the objects that the pod refers to, or the pod, change.
    fn follows_changes(&self) -> bool {
        false
    }
}

/// Every driver; the first that takes a volume makes it, and the last takes all.
static DRIVERS: [&dyn VolumeDriver; 7] = [
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &api_files::OnDisk,
    &api_files::InMemory,
    &claim::Claim,
    &remote::Nfs,
    &remote::Refused,
];

fn driver(volume: &Volume) -> &'static dyn VolumeDriver {
    DRIVERS.into_iter().find(|driver| driver.takes(volume)).unwrap_or(&remote::Refused)
}

/// Makes the pod's volumes below `dir`.
pub(crate) fn prepare(around: Around<'_>, dir: &Path) -> Result<(), VolumeError> {
    set_up(around, dir, |_| true)
}

/// Brings those up to date whose content comes from objects that changed.
pub(crate) fn refresh(around: Around<'_>, dir: &Path) -> Result<(), VolumeError> {
    set_up(around, dir, |driver| driver.follows_changes())
}

fn set_up(
    around: Around<'_>,
    dir: &Path,
    wanted: impl Fn(&dyn VolumeDriver) -> bool,
) -> Result<(), VolumeError> {
    for volume in around.volumes() {
        let driver = driver(volume);
        if wanted(driver) {
            driver
                .set_up(volume, &dir.join(&volume.name), around)
                .map_err(|message| VolumeError { volume: volume.name.clone(), message })?;
        }
    }
    Ok(())
}

/// Whether some volume of the pod follows changes of objects.
pub(crate) fn follow_changes(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| driver(volume).follows_changes())
}

/// Where a prepared volume lies on the host.
pub(crate) fn source_path(volume: &Volume, dir: &Path) -> PathBuf {
    driver(volume).elsewhere(volume).unwrap_or_else(|| dir.join(&volume.name))
}

/// Whether containers may only read the volume.
pub(crate) fn is_read_only(volume: &Volume) -> bool {
    driver(volume).is_read_only()
}

/// Unmounts everything below a pod's volume directory. The directories go with the pod's.
pub(crate) fn release(dir: &Path) -> io::Result<()> {
    mounts::unmount_below(dir)
}

/// The kind's name in the API, for messages.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().map(|o| o.keys().filter(|k| *k != "name").cloned().collect::<Vec<_>>());
    keys.unwrap_or_default().join(", ")
}

#[cfg(test)]
mod tests;
