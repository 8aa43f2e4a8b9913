//! Validation of a pod's volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{HostPathVolumeSource, KeyToPath, Volume};

use super::invalid_each;
use crate::name;
use crate::quantity::Quantity;
use crate::status::Cause;

const MODE_MAX: i32 = 0o777;
const MODE_MESSAGE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The volumes that containers may mount, by name: whether it is a claim, which may be a raw device.
pub(super) type Names<'a> = BTreeMap<&'a str, bool>;

pub(super) fn volumes<'a>(path: &str, volumes: &'a [Volume], causes: &mut Vec<Cause>) -> Names<'a> {
    let mut names = Names::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        source(&path, volume, causes);
        let field = format!("{path}.name");
        if volume.name.is_empty() {
            causes.push(Cause::required(field, ""));
            continue;
        }
        let messages = name::dns1123_label(&volume.name);
        if !messages.is_empty() {
            invalid_each(&field, &volume.name, messages, causes);
        } else if names.contains_key(volume.name.as_str()) {
            causes.push(Cause::duplicate(field, volume.name.as_str()));
        } else {
            names
                .insert(&volume.name, volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
        }
    }
    names
}

/// The sources that are set, in the order of Kubernetes' checks.
fn sources(v: &Volume) -> Vec<&'static str> {
    [
        ("emptyDir", v.empty_dir.is_some()),
        ("hostPath", v.host_path.is_some()),
        ("gitRepo", v.git_repo.is_some()),
        ("gcePersistentDisk", v.gce_persistent_disk.is_some()),
        ("awsElasticBlockStore", v.aws_elastic_block_store.is_some()),
        ("secret", v.secret.is_some()),
        ("nfs", v.nfs.is_some()),
        ("iscsi", v.iscsi.is_some()),
        ("glusterfs", v.glusterfs.is_some()),
        ("flocker", v.flocker.is_some()),
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some()),
        ("rbd", v.rbd.is_some()),
        ("cinder", v.cinder.is_some()),
        ("cephfs", v.cephfs.is_some()),
        ("quobyte", v.quobyte.is_some()),
        ("downwardAPI", v.downward_api.is_some()),
        ("fc", v.fc.is_some()),
        ("flexVolume", v.flex_volume.is_some()),
        ("configMap", v.config_map.is_some()),
        ("azureFile", v.azure_file.is_some()),
        ("vsphereVolume", v.vsphere_volume.is_some()),
        ("photonPersistentDisk", v.photon_persistent_disk.is_some()),
        ("portworxVolume", v.portworx_volume.is_some()),
        ("azureDisk", v.azure_disk.is_some()),
        ("storageos", v.storageos.is_some()),
        ("projected", v.projected.is_some()),
        ("scaleIO", v.scale_io.is_some()),
        ("csi", v.csi.is_some()),
        ("ephemeral", v.ephemeral.is_some()),
        ("image", v.image.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect()
}

fn source(path: &str, volume: &Volume, causes: &mut Vec<Cause>) {
    let set = sources(volume);
    let Some(first) = set.first() else {
        causes.push(Cause::required(path, "must specify a volume type"));
        return;
    };
    for further in &set[1..] {
        causes.push(Cause::forbidden(format!("{path}.{further}"), "may not specify more than 1 volume type"));
    }
    let path = format!("{path}.{first}");
    let required = |field: &str, value: &str, causes: &mut Vec<Cause>| {
        if value.is_empty() {
            causes.push(Cause::required(format!("{path}.{field}"), ""));
        }
    };
    if let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref())
        && Quantity::try_from(limit).is_ok_and(|q| q.is_negative())
    {
        causes.push(Cause::forbidden(
            format!("{path}.sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        ));
    }
    match *first {
        "hostPath" => volume.host_path.iter().for_each(|s| host_path(&path, s, causes)),
        "secret" => {
            if let Some(secret) = &volume.secret {
                required("secretName", secret.secret_name.as_deref().unwrap_or(""), causes);
                files(&path, secret.default_mode, secret.items.as_deref(), causes);
            }
        }
        "configMap" => {
            if let Some(map) = &volume.config_map {
                required("name", &map.name, causes);
                files(&path, map.default_mode, map.items.as_deref(), causes);
            }
        }
        "persistentVolumeClaim" => {
            if let Some(claim) = &volume.persistent_volume_claim {
                required("claimName", &claim.claim_name, causes);
            }
        }
        "nfs" => {
            if let Some(nfs) = &volume.nfs {
                required("server", &nfs.server, causes);
                required("path", &nfs.path, causes);
                if !nfs.path.is_empty() && !nfs.path.starts_with('/') {
                    causes.push(Cause::invalid(
                        format!("{path}.path"),
                        nfs.path.as_str(),
                        "must be an absolute path",
                    ));
                }
            }
        }
        "downwardAPI" => {
            if let Some(downward) = &volume.downward_api {
                mode(&format!("{path}.defaultMode"), downward.default_mode, causes);
                for (index, item) in downward.items.iter().flatten().enumerate() {
                    file_path(&format!("{path}[{index}].path"), &item.path, causes);
                }
            }
        }
        "projected" => projected(&path, volume, causes),
        _ => {}
    }
}

fn host_path(path: &str, source: &HostPathVolumeSource, causes: &mut Vec<Cause>) {
    if source.path.is_empty() {
        causes.push(Cause::required(format!("{path}.path"), ""));
    } else if source.path.split('/').any(|part| part == "..") {
        causes.push(Cause::invalid(format!("{path}.path"), source.path.as_str(), "must not contain '..'"));
    }
    let ty = source.type_.as_deref().unwrap_or("");
    if !HOST_PATH_TYPES.contains(&ty) {
        causes.push(Cause::not_supported(format!("{path}.type"), ty, HOST_PATH_TYPES));
    }
}

fn projected(path: &str, volume: &Volume, causes: &mut Vec<Cause>) {
    let Some(projected) = &volume.projected else { return };
    mode(&format!("{path}.defaultMode"), projected.default_mode, causes);
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let mut set = 0;
        if let Some(secret) = &source.secret {
            set += 1;
            if secret.name.is_empty() {
                causes.push(Cause::required(format!("{path}.secret.name"), ""));
            }
            items(&format!("{path}.secret"), secret.items.as_deref(), causes);
        }
        if let Some(map) = &source.config_map {
            set += 1;
            if map.name.is_empty() {
                causes.push(Cause::required(format!("{path}.configMap.name"), ""));
            }
            items(&format!("{path}.configMap"), map.items.as_deref(), causes);
        }
        if let Some(token) = &source.service_account_token {
            set += 1;
            if token.path.is_empty() {
                causes.push(Cause::required(format!("{path}.serviceAccountToken.path"), ""));
            }
            if token.expiration_seconds.is_some_and(|s| s < 600) {
                causes.push(Cause::invalid(
                    format!("{path}.serviceAccountToken.expirationSeconds"),
                    token.expiration_seconds.unwrap_or(0),
                    "may not specify a duration less than 10 minutes",
                ));
            }
        }
        set +=
            usize::from(source.downward_api.is_some()) + usize::from(source.cluster_trust_bundle.is_some());
        if set > 1 {
            causes.push(Cause::forbidden(path, "may not specify more than 1 volume type per source"));
        } else if set == 0 {
            causes.push(Cause::required(path, "must specify a volume type"));
        }
    }
}

fn files(path: &str, default_mode: Option<i32>, keys: Option<&[KeyToPath]>, causes: &mut Vec<Cause>) {
    mode(&format!("{path}.defaultMode"), default_mode, causes);
    items(path, keys, causes);
}

fn items(path: &str, keys: Option<&[KeyToPath]>, causes: &mut Vec<Cause>) {
    for (index, item) in keys.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if item.key.is_empty() {
            causes.push(Cause::required(format!("{path}.key"), ""));
        }
        file_path(&format!("{path}.path"), &item.path, causes);
        mode(&format!("{path}.mode"), item.mode, causes);
    }
}

fn mode(field: &str, mode: Option<i32>, causes: &mut Vec<Cause>) {
    if let Some(mode) = mode
        && !(0..=MODE_MAX).contains(&mode)
    {
        causes.push(Cause::invalid(field, mode, MODE_MESSAGE));
    }
}

/// A path below the volume's root.
fn file_path(field: &str, path: &str, causes: &mut Vec<Cause>) {
    if path.is_empty() {
        causes.push(Cause::required(field, ""));
        return;
    }
    relative_path(field, path, causes);
    if path.starts_with("..") && path.split('/').next() != Some("..") {
        causes.push(Cause::invalid(field, path, "must not start with '..'"));
    }
}

/// A path that may not leave its root.
pub(super) fn relative_path(field: &str, path: &str, causes: &mut Vec<Cause>) {
    if path.starts_with('/') {
        causes.push(Cause::invalid(field, path, "must be a relative path"));
    }
    if path.split('/').any(|part| part == "..") {
        causes.push(Cause::invalid(field, path, "must not contain '..'"));
    }
}
