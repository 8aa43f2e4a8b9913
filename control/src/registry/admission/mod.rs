//! What is filled in or refused before an object is validated: one small rule per file.
//!
//! Rules here are pure and run in the order listed. Two must read the store: whether the namespace takes new
//! content ([`namespace_lifecycle`]), and what a pod's service account has ([`service_account::mount`]).

mod default_tolerations;
pub(super) mod namespace_lifecycle;
mod priority;
pub(super) mod service_account;

use api::{Kind, Status};
use serde_json::Value;

/// What is being done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// It is new.
    Create,
    /// It replaces an older one.
    Update,
}

type Rule = fn(&Kind, Operation, &mut Value) -> Result<(), Status>;

const RULES: [Rule; 3] = [service_account::admit, default_tolerations::admit, priority::admit];

/// Runs every rule.
pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    RULES.iter().try_for_each(|rule| rule(kind, operation, object))
}

fn is_pod(kind: &Kind) -> bool {
    kind.kind == "Pod" && kind.group.is_empty()
}
