//! `hostPath`: a file or directory of the node, checked (or made) by its type in Kubernetes' own words.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, Volume};

use super::{Around, VolumeDriver, mounts};

const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

pub(super) struct HostPath;

impl VolumeDriver for HostPath {
    fn takes(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    fn set_up(&self, volume: &Volume, _at: &Path, _around: Around<'_>) -> Result<(), String> {
        volume.host_path.as_ref().map_or(Ok(()), check)
    }

    fn elsewhere(&self, volume: &Volume) -> Option<PathBuf> {
        volume.host_path.as_ref().map(|source| PathBuf::from(&source.path))
    }
}

/// KIA-VOL-018: each type is checked or made.
pub(super) fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || !mounts::is_plain(path) {
        return Err(format!("hostPath {:?} is not an absolute path", source.path));
    }
    let shown = path.display();
    let metadata = fs::metadata(path).ok();
    let file_type = metadata.as_ref().map(fs::Metadata::file_type);
    let refuse = |what: &str| Err(format!("hostPath type check failed: {shown} is not a {what}"));
    let make = |result: io::Result<()>| result.map_err(|e| format!("cannot make {shown}: {e}"));
    let mode = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    match source.type_.as_deref().unwrap_or_default() {
        "" if metadata.is_none() => make(fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if metadata.is_none() => {
            make(fs::create_dir_all(path).and_then(|()| mode(DIRECTORY_MODE)))
        }
        "FileOrCreate" if metadata.is_none() => make(fs::File::create(path).and_then(|_| mode(FILE_MODE))),
        "Directory" | "DirectoryOrCreate" if !file_type.is_some_and(|t| t.is_dir()) => refuse("directory"),
        "File" | "FileOrCreate" if !file_type.is_some_and(|t| t.is_file()) => refuse("file"),
        "Socket" if !file_type.is_some_and(|t| t.is_socket()) => refuse("socket"),
        "CharDevice" if !file_type.is_some_and(|t| t.is_char_device()) => refuse("character device"),
        "BlockDevice" if !file_type.is_some_and(|t| t.is_block_device()) => refuse("block device"),
        "Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" | "Socket" | "CharDevice"
        | "BlockDevice" => Ok(()),
        other => Err(format!("hostPath type {other:?} is not known")),
    }
}
