//! What a namespace's LimitRanges say about pods and claims: defaults are filled in, bounds are kept.

use api::{Kind, Status, object};
use serde_json::Value;

use super::{is_pod, refuse_all, stored_in};
use crate::object_store::Consistency;
use crate::registry::Registry;

pub(in crate::registry) async fn admit(
    registry: &Registry,
    kind: &Kind,
    namespace: &str,
    object: &mut Value,
    consistency: Consistency,
) -> Result<(), Status> {
    let is_claim = kind.kind == "PersistentVolumeClaim" && kind.group.is_empty();
    if !is_pod(kind) && !is_claim {
        return Ok(());
    }
    let ranges = stored_in(registry, "", "LimitRange", namespace, consistency).await?;
    let ranges: Vec<Value> = ranges.iter().map(|range| range.value().clone()).collect();
    if ranges.is_empty() {
        return Ok(());
    }
    let problems = match is_claim {
        true => api::limits::check_claim(&ranges, object),
        false => {
            api::limits::default_pod(&ranges, object);
            api::limits::check_pod(&ranges, object)
        }
    };
    refuse_all(kind, object::name(object), &problems)
}
