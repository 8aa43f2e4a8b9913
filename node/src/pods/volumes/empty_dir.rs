//! `emptyDir`: a directory of the pod's own, on the node's disk or in memory.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume};

use super::{Around, VolumeDriver, kind, mounts};
use crate::local_volumes::MODE;

pub(super) struct EmptyDir;

impl VolumeDriver for EmptyDir {
    fn takes(&self, volume: &Volume) -> bool {
        // A source without a type is an empty directory (`emptyDir:` with nothing behind it).
        volume.empty_dir.is_some() || kind(volume).is_empty()
    }

    fn set_up(&self, volume: &Volume, at: &Path, around: Around<'_>) -> Result<(), String> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let failed = |e: io::Error| format!("cannot make {}: {e}", at.display());
        fs::create_dir_all(at).map_err(failed)?;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => memory(at, &source)?,
            other => {
                let known = "this node has \"\" (its disk) and \"Memory\"";
                return Err(format!("emptyDir medium {other:?} is not supported: {known}"));
            }
        }
        match around.fs_group {
            Some(group) => give_to_group(at, group).map_err(failed),
            None => fs::set_permissions(at, fs::Permissions::from_mode(MODE)).map_err(failed),
        }
    }
}

/// Everybody may write there, and what is made there belongs to the group.
pub(super) fn give_to_group(at: &Path, group: u32) -> io::Result<()> {
    std::os::unix::fs::chown(at, None, Some(group))?;
    fs::set_permissions(at, fs::Permissions::from_mode(MODE | 0o2000))
}

fn memory(at: &Path, source: &EmptyDirVolumeSource) -> Result<(), String> {
    let size = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.value());
    let options = size.filter(|size| *size > 0).map(|size| format!("size={size}")).unwrap_or_default();
    mounts::memory(at, &options).map_err(|e| format!("cannot mount memory on {}: {e}", at.display()))
}
