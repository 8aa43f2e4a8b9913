//! Volumes on nodes' own disks, made for a claim when its first pod has a node.
//!
//! Pure. What such a volume looks like is told by [`api::local_volume`]; the node makes the directory when it first needs it, and
//! removes it when the volume is Released.

use api::local_volume::{DRIVER, NODE_ATTRIBUTE};
use serde_json::{Value, json};

use super::facts::{Claim, Class, Place};

/// Says which provisioner made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// A directory of one node is used by that node's pods only.
const ACCESS_MODES: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

/// Why no volume is made for the claim, whatever the node.
pub(super) fn refusal(claim: &Claim, class: &Class) -> Option<String> {
    let why = if !class.waits {
        "a volume is made where its first pod runs: set the class's volumeBindingMode to WaitForFirstConsumer"
            .to_owned()
    } else if claim.mode != "Filesystem" {
        format!("volumeMode {} is not supported: use Filesystem", claim.mode)
    } else if let Some(mode) = claim.modes.iter().find(|mode| !ACCESS_MODES.contains(&mode.as_str())) {
        format!("access mode {mode} is not supported: use {}", ACCESS_MODES.join(" or "))
    } else if claim.selector.is_some() {
        "a claim with a selector is for volumes that are there: leave `selector` out".to_owned()
    } else {
        return None;
    };
    Some(format!("failed to provision volume with StorageClass {:?}: {why}", claim.class))
}

/// The name of the volume that is made for a claim: the same however often it is made.
pub(super) fn name(claim: &Claim) -> String {
    format!("pvc-{}", claim.key.uid)
}

/// The volume for a claim whose first pod is on that node.
pub(super) fn volume(claim: &Claim, class: &Class, place: &Place) -> Value {
    let name = name(claim);
    let hostname = place.labels.get(HOSTNAME).unwrap_or(&place.node);
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: DRIVER}},
        "spec": {
            "capacity": {"storage": claim.asked},
            "accessModes": claim.modes,
            "volumeMode": claim.mode,
            "storageClassName": claim.class,
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.key.namespace, "name": claim.key.name, "uid": claim.key.uid,
            },
            "csi": {"driver": DRIVER, "volumeHandle": name, "volumeAttributes": {NODE_ATTRIBUTE: place.node}},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [hostname]}]}]}},
        },
    })
}
