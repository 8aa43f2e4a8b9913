//! `persistentVolumeClaim`, and `ephemeral` with the claim that is made for it: the path that the claim's volume names, bound to the pod's own directory, so that
//! what the pod has stays the same whatever becomes of the claim's object while it runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::{local_volume, references};
use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume};
use nix::mount::{MsFlags, mount};

use super::{Around, VolumeDriver, empty_dir, host_path, mounts, remote};

pub(super) struct Claim;

impl VolumeDriver for Claim {
    fn takes(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    fn set_up(&self, volume: &Volume, at: &Path, around: Around<'_>) -> Result<(), String> {
        let pod = around.pod.metadata.name.as_deref().unwrap_or_default();
        let Some(name) = references::claim_of(pod, volume) else { return Ok(()) };
        if mounts::is_mount_point(at).unwrap_or(false) {
            return Ok(());
        }
        let bound = bound_volume(&name, around)?;
        let spec = bound.spec.clone().unwrap_or_default();
        if volume.ephemeral.is_some() {
            let claim = around.objects.claim(around.namespace, &name);
            let claim = claim.or_optional("persistentvolumeclaim", &name, false)?.ok_or("no claim")?;
            references::check_owner(around.pod, &claim)?;
        }
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err("volumes of volumeMode Block are not supported: use Filesystem".to_owned());
        }
        let path = match (&spec.host_path, &spec.local) {
            (Some(host_path), _) => {
                host_path::check(host_path)?;
                PathBuf::from(&host_path.path)
            }
            (_, Some(local)) => {
                // A local volume is made by people, with the disk behind it: it must be there.
                let source =
                    HostPathVolumeSource { path: local.path.clone(), type_: Some("Directory".into()) };
                if !Path::new(&local.path).exists() {
                    return Err(format!("path {:?} does not exist", local.path));
                }
                host_path::check(&source)?;
                PathBuf::from(&local.path)
            }
            _ if local_volume::source(&bound).is_some() => {
                let path = around.local_volumes.directory(&bound)?;
                if let Some(group) = around.fs_group {
                    empty_dir::give_to_group(&path, group)
                        .map_err(|e| format!("cannot give {} to group {group}: {e}", path.display()))?;
                }
                path
            }
            _ if spec.nfs.is_some() => {
                let nfs = Volume { name: volume.name.clone(), nfs: spec.nfs, ..Volume::default() };
                return remote::Nfs.set_up(&nfs, at, around);
            }
            _ => return Err(unknown(&spec)),
        };
        bind(&path, at).map_err(|e| format!("cannot bind {} to {}: {e}", path.display(), at.display()))
    }
}

/// The volume that the claim is bound to; both sides have to say so.
fn bound_volume(name: &str, around: Around<'_>) -> Result<Arc<PersistentVolume>, String> {
    let found = around.objects.claim(around.namespace, name);
    let claim = found.or_optional("persistentvolumeclaim", name, false)?.ok_or("no claim")?;
    let volume_name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if volume_name.is_empty() || phase != "Bound" {
        return Err(format!("PVC {}/{name} is not bound to a volume yet (it is {phase})", around.namespace));
    }
    let found = around.objects.volume(volume_name);
    let volume: Arc<PersistentVolume> =
        found.or_optional("persistentvolume", volume_name, false)?.ok_or("no volume")?;
    let owner =
        volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|claim| claim.uid.as_deref());
    if owner != claim.metadata.uid.as_deref() {
        return Err(format!("volume {volume_name:?} is not bound to PVC {}/{name}", around.namespace));
    }
    Ok(volume)
}

fn unknown(spec: &PersistentVolumeSpec) -> String {
    match &spec.csi {
        Some(csi) => format!("driver name {} not found in the list of registered CSI drivers", csi.driver),
        None => {
            "the volume is of a type that this node has no driver for: use local, hostPath, nfs or the driver local.barque.io".to_owned()
        }
    }
}

fn bind(path: &Path, at: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        fs::create_dir_all(at)?;
    } else {
        if let Some(dir) = at.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::File::create(at)?;
    }
    Ok(mount(Some(path), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}
