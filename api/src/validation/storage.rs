//! Validation of PersistentVolumes, PersistentVolumeClaims and StorageClasses.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::Value;

use super::{invalid_each, one_of};
use crate::name;
use crate::quantity::Quantity;
use crate::status::Cause;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const BINDING_MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];
/// The members of a volume's spec that say where it lies.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

fn access_modes(field: &str, modes: Option<&[String]>, causes: &mut Vec<Cause>) {
    let modes = modes.unwrap_or_default();
    if modes.is_empty() {
        causes.push(Cause::required(field, "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter(|mode| !ACCESS_MODES.contains(&mode.as_str())) {
        causes.push(Cause::not_supported(field, mode.as_str(), ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        causes.push(Cause::forbidden(field, why));
    }
}

fn storage(field: &str, amount: Option<&Text>, causes: &mut Vec<Cause>) {
    match amount {
        None => causes.push(Cause::required(field, "")),
        Some(text) => {
            let positive = Quantity::try_from(text).is_ok_and(|q| !q.is_negative() && q.value() > 0);
            if !positive {
                causes.push(Cause::invalid(field, text.0.as_str(), "must be greater than zero"));
            }
        }
    }
}

fn class_name(field: &str, class: Option<&str>, causes: &mut Vec<Cause>) {
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        invalid_each(field, class, name::dns1123_subdomain(class), causes);
    }
}

fn volume_mode(field: &str, mode: Option<&str>, causes: &mut Vec<Cause>) {
    if let Some(mode) = mode.filter(|mode| !VOLUME_MODES.contains(mode)) {
        causes.push(Cause::not_supported(field, mode, VOLUME_MODES));
    }
}

pub(super) fn volume(volume: &PersistentVolume, causes: &mut Vec<Cause>) {
    let Some(spec) = &volume.spec else {
        causes.push(Cause::required("spec", ""));
        return;
    };
    access_modes("spec.accessModes", spec.access_modes.as_deref(), causes);
    match spec.capacity.as_ref().filter(|capacity| !capacity.is_empty()) {
        None => causes.push(Cause::required("spec.capacity", "")),
        Some(capacity) => storage("spec.capacity[storage]", capacity.get("storage"), causes),
    }
    let policy = spec.persistent_volume_reclaim_policy.as_deref().unwrap_or("Retain");
    one_of("spec.persistentVolumeReclaimPolicy", policy, RECLAIM_POLICIES, causes);
    class_name("spec.storageClassName", spec.storage_class_name.as_deref(), causes);
    volume_mode("spec.volumeMode", spec.volume_mode.as_deref(), causes);
    source(spec, causes);
}

fn source(spec: &PersistentVolumeSpec, causes: &mut Vec<Cause>) {
    let value = serde_json::to_value(spec).unwrap_or_default();
    let set: Vec<&str> = SOURCES.iter().copied().filter(|source| value.get(source).is_some()).collect();
    match set.as_slice() {
        [] => causes.push(Cause::required("spec", "must specify a volume type")),
        [_] => {}
        [_, further @ ..] => {
            for source in further {
                let field = format!("spec.{source}");
                causes.push(Cause::forbidden(field, "may not specify more than 1 volume type"));
            }
        }
    }
    let mut path = |field: &str, path: &str| {
        if path.is_empty() {
            causes.push(Cause::required(field, ""));
        } else if path.split('/').any(|part| part == "..") {
            causes.push(Cause::invalid(field, path, "must not contain '..'"));
        }
    };
    if let Some(host_path) = &spec.host_path {
        path("spec.hostPath.path", &host_path.path);
    }
    if let Some(local) = &spec.local {
        path("spec.local.path", &local.path);
        let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
        if required.is_none_or(|selector| selector.node_selector_terms.is_empty()) {
            causes.push(Cause::required("spec.nodeAffinity", "Local volume requires node affinity"));
        }
    }
}

pub(super) fn volume_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let moved = SOURCES.iter().any(|source| old["spec"].get(source) != new["spec"].get(source));
    if moved {
        causes.push(Cause::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    if old["spec"]["volumeMode"] != new["spec"]["volumeMode"] {
        let mode = new["spec"]["volumeMode"].clone();
        causes.push(Cause::invalid("spec.volumeMode", mode, "field is immutable"));
    }
}

pub(super) fn claim(claim: &PersistentVolumeClaim, causes: &mut Vec<Cause>) {
    let Some(spec) = &claim.spec else {
        causes.push(Cause::required("spec", ""));
        return;
    };
    access_modes("spec.accessModes", spec.access_modes.as_deref(), causes);
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    storage("spec.resources[storage]", requests.and_then(|requests| requests.get("storage")), causes);
    class_name("spec.storageClassName", spec.storage_class_name.as_deref(), causes);
    volume_mode("spec.volumeMode", spec.volume_mode.as_deref(), causes);
}

/// What a claim asks for stays; a volume may be named once, and a bound claim may ask for more room. A claim whose
/// growth failed may ask for less again, though always for more than it has.
pub(super) fn claim_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    const STORAGE: &str = "/resources/requests/storage";
    let amount =
        |value: Option<&Value>| value.and_then(Value::as_str).and_then(|text| Quantity::parse(text).ok());
    let before = amount(old["spec"].pointer(STORAGE));
    let after = amount(new["spec"].pointer(STORAGE));
    let named = old["spec"]["volumeName"].as_str().is_some_and(|name| !name.is_empty());
    let size_is_free = old["status"]["phase"] == "Bound" || before == after;
    let rest = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if let Some(size) = spec.pointer_mut(STORAGE).filter(|_| size_is_free) {
            *size = Value::Null;
        }
        if let Some(members) = spec.as_object_mut().filter(|_| !named) {
            members.remove("volumeName");
        }
        spec
    };
    if rest(old) != rest(new) {
        causes.push(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let has = amount(old.pointer("/status/capacity/storage"));
    if after < before && after <= has {
        let field = "spec.resources.requests.storage";
        causes.push(Cause::forbidden(field, "field can not be less than status.capacity"));
    }
}

pub(super) fn class(object: &Value, causes: &mut Vec<Cause>) {
    let text = |member: &str| object.get(member).and_then(Value::as_str).unwrap_or_default();
    if text("provisioner").is_empty() {
        causes.push(Cause::required("provisioner", ""));
    }
    one_of("reclaimPolicy", text("reclaimPolicy"), &["Delete", "Retain"], causes);
    one_of("volumeBindingMode", text("volumeBindingMode"), BINDING_MODES, causes);
}

pub(super) fn class_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for member in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        if old.get(member) != new.get(member) {
            causes.push(Cause::forbidden(member, "updates to StorageClass fields are forbidden"));
        }
    }
}
