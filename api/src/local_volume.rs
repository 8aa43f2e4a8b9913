//! Volumes that are made on a node's own disk when a pod first needs them: how they are written down.
//!
//! Owns the words that the controller which makes such volumes and the node that keeps their data agree upon. A volume is one
//! of the CSI driver [`DRIVER`]: its handle names a directory among the node's volumes, its attributes the node. What a
//! node keeps stands in its `status.volumesInUse`, as that of any CSI driver does.

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolume};
use serde_json::Value;

/// The `provisioner` of classes whose volumes are made so, and the `driver` of those volumes.
pub const DRIVER: &str = "local.barque.io";
/// The attribute of a volume that names its node.
pub const NODE_ATTRIBUTE: &str = "node";

/// The volume's source, if it is one of these.
pub fn source(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    let source = volume.spec.as_ref()?.csi.as_ref()?;
    (source.driver == DRIVER).then_some(source)
}

/// The node that keeps the volume's data, out of the object as it is stored.
pub fn node_of(volume: &Value) -> Option<&str> {
    let source = &volume["spec"]["csi"];
    (source["driver"] == DRIVER).then(|| source["volumeAttributes"][NODE_ATTRIBUTE].as_str())?
}

/// How a volume stands in `status.volumesInUse` of its node.
pub fn in_use_name(handle: &str) -> String {
    format!("{IN_USE_PREFIX}{handle}")
}

/// The handle of a volume in `status.volumesInUse`, if it is one of these.
pub fn handle_in_use(name: &str) -> Option<&str> {
    name.strip_prefix(IN_USE_PREFIX)
}

const IN_USE_PREFIX: &str = "kubernetes.io/csi/local.barque.io^";

/// Whether a handle is fit to name a directory: what the controller gives is, what people write may not be.
pub fn is_handle(handle: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=253).contains(&handle.len()) && !handle.starts_with('-') && handle.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_one_plain_word() {
        for (handle, fits) in [
            ("pvc-7f0c1f04-8a3e-4b7f-9f1b-0a2f6a1c3d4e", true),
            ("data", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("-rf", false),
            (".deleted", false),
        ] {
            assert_eq!(is_handle(handle), fits, "{handle:?}");
        }
    }

    #[test]
    fn what_is_in_use_is_found_again() {
        assert_eq!(handle_in_use(&in_use_name("pvc-1")), Some("pvc-1"));
        assert_eq!(handle_in_use("kubernetes.io/csi/ebs.csi.aws.com^vol-1"), None);
    }
}
