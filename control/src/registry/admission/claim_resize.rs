//! A claim asks for more room only where its class lets it (`PersistentVolumeClaimResize` of Kubernetes).

use api::{Kind, Quantity, Status, object};
use serde_json::Value;

use super::stored;
use crate::object_store::Consistency;
use crate::registry::Registry;

const WHY: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";

pub(in crate::registry) async fn admit(
    registry: &Registry,
    kind: &Kind,
    old: &Value,
    new: &Value,
    consistency: Consistency,
) -> Result<(), Status> {
    if !kind.group.is_empty() || kind.kind != "PersistentVolumeClaim" || asked(new) <= asked(old) {
        return Ok(());
    }
    let class = new["spec"]["storageClassName"].as_str().unwrap_or_default();
    let class = match class.is_empty() {
        true => None,
        false => stored(registry, "storage.k8s.io", "StorageClass", class, consistency).await?,
    };
    match class.is_some_and(|class| class.value()["allowVolumeExpansion"] == true) {
        true => Ok(()),
        false => Err(Status::forbidden(kind, object::name(new), WHY)),
    }
}

fn asked(claim: &Value) -> Option<Quantity> {
    let text = claim.pointer("/spec/resources/requests/storage").and_then(Value::as_str);
    text.and_then(|text| Quantity::parse(text).ok())
}
