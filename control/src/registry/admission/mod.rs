//! What is filled in or refused before an object is validated: one small rule per file.
//!
//! Those in the table of rules are pure and run in the order listed. Those that depend on other objects (the
//! namespace, its LimitRanges and ResourceQuotas, the pod's account and class) read the store, first as this
//! replica has it, and once more as of now before anything is refused; see `create`.

mod certificate_request;
pub(super) mod claim_resize;
pub(super) mod default_class;
mod default_tolerations;
pub(super) mod limit_ranger;
pub(super) mod namespace_lifecycle;
pub(super) mod pod_security;
pub(super) mod priority;
pub(super) mod quota;
pub(super) mod service_account;
pub(super) mod taint_nodes;

use std::sync::Arc;

use api::{Kind, Status};
use serde_json::Value;

use super::{ListOptions, Object, Registry};
use crate::object_store::Consistency;

/// What is being done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// It is new.
    Create,
    /// It replaces an older one.
    Update,
}

type Rule = fn(&Kind, Operation, &mut Value) -> Result<(), Status>;

const RULES: [Rule; 3] = [service_account::admit, default_tolerations::admit, certificate_request::admit];

/// Runs every rule.
pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    RULES.iter().try_for_each(|rule| rule(kind, operation, object))
}

/// The objects of a kind in a namespace (empty: outside namespaces), as fresh as that. None, if the kind is
/// not served.
async fn stored_in(
    registry: &Registry,
    group: &str,
    kind: &str,
    namespace: &str,
    consistency: Consistency,
) -> Result<Vec<Arc<Object>>, Status> {
    let Some(kind) = api::kinds::by_kind(group, "v1", kind) else { return Ok(Vec::new()) };
    let resource_version = (consistency == Consistency::Serializable).then(|| "0".to_owned());
    let options = ListOptions { resource_version, ..ListOptions::default() };
    let namespace = kind.namespaced.then_some(namespace);
    Ok(registry.list(kind, namespace, &options).await?.items)
}

/// One object outside namespaces. None, if there is no such one or the kind is not served.
async fn stored(
    registry: &Registry,
    group: &str,
    kind: &str,
    name: &str,
    consistency: Consistency,
) -> Result<Option<Arc<Object>>, Status> {
    match api::kinds::by_kind(group, "v1", kind) {
        Some(kind) => registry.read(kind, "", name, consistency).await,
        None => Ok(None),
    }
}

/// Refuses an object for all of these reasons, if there are any.
fn refuse_all(kind: &Kind, name: &str, problems: &[String]) -> Result<(), Status> {
    match problems {
        [] => Ok(()),
        [only] => Err(Status::forbidden(kind, name, only)),
        many => Err(Status::forbidden(kind, name, &format!("[{}]", many.join(", ")))),
    }
}

fn is_pod(kind: &Kind) -> bool {
    kind.kind == "Pod" && kind.group.is_empty()
}
