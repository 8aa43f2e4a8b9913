//! A claim that names no storage class gets the default one, if the cluster has one.

use api::{Kind, Status, object};
use serde_json::Value;

use super::stored_in;
use crate::object_store::Consistency;
use crate::registry::Registry;

const ANNOTATION: &str = "storageclass.kubernetes.io/is-default-class";
/// What older definitions of classes carry.
const OLD_ANNOTATION: &str = "storageclass.beta.kubernetes.io/is-default-class";

pub(in crate::registry) async fn admit(
    registry: &Registry,
    kind: &Kind,
    claim: &mut Value,
    consistency: Consistency,
) -> Result<(), Status> {
    if kind.kind != "PersistentVolumeClaim" || !kind.group.is_empty() {
        return Ok(());
    }
    // An empty name says that no class is wanted.
    if claim["spec"].get("storageClassName").is_some_and(|name| !name.is_null()) {
        return Ok(());
    }
    let classes = stored_in(registry, "storage.k8s.io", "StorageClass", "", consistency).await?;
    let is_default = |class: &Value| {
        [ANNOTATION, OLD_ANNOTATION].iter().any(|name| object::annotation(class, name) == Some("true"))
    };
    let defaults = classes.iter().map(|class| class.value()).filter(|class| is_default(class));
    // Of several the newest counts.
    let newest = defaults.max_by_key(|class| (object::creation_timestamp(class), object::name(class)));
    if let Some(class) = newest
        && let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert("storageClassName".to_owned(), Value::from(object::name(class)));
    }
    Ok(())
}
