//! Content is created only in namespaces that exist and are not being deleted.

use std::sync::Arc;

use api::{Kind, Status, object};
use serde_json::Value;

use crate::object_store::Consistency;
use crate::registry::{Object, Registry};

/// Checks the namespace and gives it: the write must fail if it changes meanwhile.
pub(in crate::registry) async fn check(
    registry: &Registry,
    kind: &'static Kind,
    namespace: &str,
    object: &Value,
    consistency: Consistency,
) -> Result<Option<Arc<Object>>, Status> {
    if !kind.namespaced {
        return Ok(None);
    }
    let namespaces = api::kinds::by_kind("", "v1", "Namespace").expect("the table of kinds has Namespace");
    let Some(found) = registry.read(namespaces, "", namespace, consistency).await? else {
        return Err(Status::not_found(namespaces, namespace));
    };
    if object::deletion_timestamp(found.value()).is_some() {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(Status::forbidden(kind, object::name(object), &why));
    }
    Ok(Some(found))
}
