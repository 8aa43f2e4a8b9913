//! Pod Security Standards: the level that a namespace's labels demand is enforced on pods; who makes something
//! that makes pods is warned.

use api::pod_security::{Policy, template};
use api::{Kind, Status, object};
use serde_json::Value;

use super::is_pod;

/// Refuses what the namespace forbids; gives what its maker should be told.
pub(in crate::registry) fn check(
    kind: &Kind,
    namespace: &Value,
    object: &Value,
) -> Result<Vec<String>, Status> {
    let Some((metadata, spec)) = template(kind.group, kind.kind, object) else { return Ok(Vec::new()) };
    let policy = Policy::of(namespace);
    if is_pod(kind)
        && let Some(violation) = policy.enforce.violation(metadata, spec)
    {
        return Err(Status::forbidden(kind, object::name(object), &format!("violates {violation}")));
    }
    if let Some(violation) = policy.audit.violation(metadata, spec) {
        let (kind, name) = (kind.kind, object::name(object));
        tracing::info!(target: "audit", kind, name, violation, "would violate the audited level");
    }
    let warning = policy.warn.violation(metadata, spec);
    Ok(warning.map(|violation| format!("would violate {violation}")).into_iter().collect())
}
