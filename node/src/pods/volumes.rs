//! A pod's volumes: emptyDir (disk or memory) and hostPath with its types. Other kinds are refused with the
//! sentence that the pod's events show.
//!
//! Making them may be repeated; removing them may be repeated and tolerates that they were never made.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// How often a mount is detached before giving up: more than one mount on one directory is not our doing.
const UNMOUNT_TRIES: usize = 8;

/// Why a volume cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {problem}")]
pub(crate) struct VolumeError {
    volume: String,
    problem: String,
}

/// Makes every volume below `dir`; returns nothing, see [`source_path`].
pub(crate) fn prepare(volumes: &[Volume], dir: &Path, fs_group: Option<u32>) -> Result<(), VolumeError> {
    for volume in volumes {
        let failed = |problem: String| VolumeError { volume: volume.name.clone(), problem };
        if let Some(host_path) = &volume.host_path {
            check_host_path(host_path).map_err(failed)?;
        } else if volume.empty_dir.is_some() || is_empty(volume) {
            let source = volume.empty_dir.clone().unwrap_or_default();
            empty_dir(&dir.join(&volume.name), &source, fs_group).map_err(failed)?;
        } else {
            return Err(failed(format!(
                "volumes of type {} are not supported by this version of the node agent",
                kind(volume)
            )));
        }
    }
    Ok(())
}

/// Where a prepared volume lies on the host.
pub(crate) fn source_path(volume: &Volume, dir: &Path) -> PathBuf {
    match &volume.host_path {
        Some(host_path) => PathBuf::from(&host_path.path),
        None => dir.join(&volume.name),
    }
}

/// Unmounts what lies in memory. The directories go with the pod's.
pub(crate) fn release(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let path = entry?.path();
        for _ in 0..UNMOUNT_TRIES {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// The kind's name in the API, for messages.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().map(|o| o.keys().filter(|k| *k != "name").cloned().collect::<Vec<_>>());
    keys.unwrap_or_default().join(", ")
}

fn is_empty(volume: &Volume) -> bool {
    kind(volume).is_empty()
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, fs_group: Option<u32>) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot make {}: {e}", path.display());
    fs::create_dir_all(path).map_err(failed)?;
    let mut mode = 0o777;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => memory(path, source)?,
        other => {
            return Err(format!(
                "emptyDir medium {other:?} is not supported by this version of the node agent"
            ));
        }
    }
    if let Some(group) = fs_group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed)?;
        mode |= 0o2000;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

fn memory(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), String> {
    if is_mount_point(path) {
        return Ok(());
    }
    let size = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.value());
    let options = size.filter(|s| *s > 0).map(|s| format!("size={s}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref())
        .map_err(|e| format!("cannot mount memory on {}: {e}", path.display()))
}

fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(parent) != device(path))
}

/// KIA-VOL: each type is checked or made, in the words of Kubernetes' own checker.
fn check_host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let shown = path.display();
    let metadata = fs::metadata(path).ok();
    let file_type = metadata.as_ref().map(fs::Metadata::file_type);
    let refuse = |what: &str| Err(format!("hostPath type check failed: {shown} is not a {what}"));
    let make = |result: io::Result<()>| result.map_err(|e| format!("cannot make {shown}: {e}"));
    match source.type_.as_deref().unwrap_or_default() {
        "" if metadata.is_none() => make(fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if metadata.is_none() => make(
            fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755))),
        ),
        "FileOrCreate" if metadata.is_none() => make(
            fs::File::create(path).and_then(|_| fs::set_permissions(path, fs::Permissions::from_mode(0o644))),
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(json: serde_json::Value) -> Volume {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn empty_dirs_are_made_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = [
            volume(serde_json::json!({"name": "a", "emptyDir": {}})),
            volume(serde_json::json!({"name": "b"})),
        ];
        prepare(&volumes, dir.path(), None).unwrap();
        prepare(&volumes, dir.path(), None).unwrap();
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
        assert!(source_path(&volumes[1], dir.path()).is_dir());
        release(dir.path()).unwrap();
        release(&dir.path().join("never-made")).unwrap();
    }

    #[test]
    fn host_paths_are_checked_by_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let check = |path: String, kind: &str| {
            check_host_path(&HostPathVolumeSource { path, type_: Some(kind.into()) })
        };
        check(at("d"), "DirectoryOrCreate").unwrap();
        check(at("f"), "FileOrCreate").unwrap();
        assert_eq!(fs::metadata(at("d")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(at("f")).unwrap().permissions().mode() & 0o777, 0o644);
        check(at("d"), "Directory").unwrap();
        let error = check(at("f"), "Directory").unwrap_err();
        assert_eq!(error, format!("hostPath type check failed: {} is not a directory", at("f")));
        assert!(check(at("none"), "Socket").is_err());
        assert!(check("/dev/null".into(), "CharDevice").is_ok());
    }

    #[test]
    fn other_kinds_are_named_in_the_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = [volume(serde_json::json!({"name": "v", "configMap": {"name": "m"}}))];
        let error = prepare(&volumes, dir.path(), None).unwrap_err().to_string();
        assert!(
            error.starts_with("MountVolume.SetUp failed for volume \"v\" : volumes of type configMap"),
            "{error}"
        );
    }
}
