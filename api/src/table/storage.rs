//! Tables of PersistentVolumes, PersistentVolumeClaims and StorageClasses.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, list_at, name, text, text_at, wide};
use crate::object;

/// Shown where nothing is set.
const UNSET: &str = "<unset>";
const DEFAULT_CLASS: &str = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";

pub(super) const VOLUME: &[Column] = &[
    NAME,
    text("Capacity", "How much the volume holds."),
    text("Access Modes", "The ways in which it can be mounted."),
    text("Reclaim Policy", "What happens when its claim is gone."),
    text("Status", "Whether it is bound to a claim, available or released."),
    text("Claim", "The claim that it is bound to."),
    text("StorageClass", "The class that it belongs to."),
    text("VolumeAttributesClass", "The attributes that it has."),
    text("Reason", "Why it is in its status."),
    AGE,
    wide(text("VolumeMode", "Whether it is a file system or a raw device.")),
];
pub(super) const CLAIM: &[Column] = &[
    NAME,
    text("Status", "Whether it is bound to a volume, waits for one or has lost it."),
    text("Volume", "The volume that it is bound to."),
    text("Capacity", "How much that holds."),
    text("Access Modes", "The ways in which it can be mounted."),
    text("StorageClass", "The class that is asked for."),
    text("VolumeAttributesClass", "The attributes that are asked for."),
    AGE,
    wide(text("VolumeMode", "Whether a file system or a raw device is asked for.")),
];
pub(super) const CLASS: &[Column] = &[
    NAME,
    text("Provisioner", "Who makes volumes of the class."),
    text("ReclaimPolicy", "What happens to a volume when its claim is gone."),
    text("VolumeBindingMode", "When a claim is bound."),
    text("AllowVolumeExpansion", "Whether claims may grow."),
    AGE,
];

fn access_modes(object: &Value, pointer: &str) -> String {
    let modes = list_at(object, pointer).iter().filter_map(Value::as_str);
    let short = modes.map(|mode| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    short.collect::<Vec<_>>().join(",")
}

fn status(object: &Value) -> &str {
    match object::deletion_timestamp(object) {
        Some(_) => "Terminating",
        None => text_at(object, "/status/phase"),
    }
}

fn or_unset<'a>(object: &'a Value, pointer: &str) -> &'a str {
    match text_at(object, pointer) {
        "" => UNSET,
        text => text,
    }
}

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match text_at(object, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", text_at(object, "/spec/claimRef/namespace")),
    };
    vec![
        name(object),
        text_at(object, "/spec/capacity/storage").into(),
        access_modes(object, "/spec/accessModes").into(),
        text_at(object, "/spec/persistentVolumeReclaimPolicy").into(),
        status(object).into(),
        claim.into(),
        text_at(object, "/spec/storageClassName").into(),
        or_unset(object, "/spec/volumeAttributesClassName").into(),
        text_at(object, "/status/reason").into(),
        age(object, now),
        or_unset(object, "/spec/volumeMode").into(),
    ]
}

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let volume = text_at(object, "/spec/volumeName");
    let (capacity, modes) = match volume {
        "" => ("", String::new()),
        _ => (text_at(object, "/status/capacity/storage"), access_modes(object, "/status/accessModes")),
    };
    vec![
        name(object),
        status(object).into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        text_at(object, "/spec/storageClassName").into(),
        or_unset(object, "/spec/volumeAttributesClassName").into(),
        age(object, now),
        or_unset(object, "/spec/volumeMode").into(),
    ]
}

pub(super) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_default = text_at(object, DEFAULT_CLASS) == "true";
    let shown = format!("{}{}", object::name(object), if is_default { " (default)" } else { "" });
    vec![
        shown.into(),
        text_at(object, "/provisioner").into(),
        text_at(object, "/reclaimPolicy").into(),
        text_at(object, "/volumeBindingMode").into(),
        object["allowVolumeExpansion"].as_bool().unwrap_or(false).to_string().into(),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_as_kubectl_prints_them() {
        let now = "2024-01-01T00:01:00Z".parse().unwrap();
        let bound = json!({
            "metadata": {"name": "pv1", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "manual", "volumeMode": "Filesystem",
                "claimRef": {"namespace": "default", "name": "data"}},
            "status": {"phase": "Bound"},
        });
        let cells = [
            "pv1",
            "1Gi",
            "RWO,ROX",
            "Retain",
            "Bound",
            "default/data",
            "manual",
            UNSET,
            "",
            "60s",
            "Filesystem",
        ];
        assert_eq!(volume(&bound, now), cells.map(Value::from));
        let waiting = json!({"metadata": {"name": "data", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}});
        let cells = ["data", "Pending", "", "", "", "", UNSET, "60s", "Filesystem"];
        assert_eq!(claim(&waiting, now), cells.map(Value::from));
    }
}
