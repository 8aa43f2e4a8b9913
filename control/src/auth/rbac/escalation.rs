//! Nobody grants more than he has.
//!
//! Owns the check before a role or a binding is written: its writer must hold every rule that it gives, or be
//! allowed to `escalate` (roles) or `bind` (bindings) it. As "Privilege escalation prevention and
//! bootstrapping" of the Kubernetes documentation says.

use std::sync::Arc;

use api::kinds::RBAC_GROUP;
use api::status::quoted;
use api::{Kind, Status, object};
use serde_json::Value;

use super::policy::{Policy, RoleRef};
use super::rule::{PolicyRule, uncovered};
use crate::auth::{Access, Attributes, Identity, ResourceName, SYSTEM_MASTERS};
use crate::registry::{Guard, status_from_store};

/// The check of what an identity writes, under a policy as new as the write. `None`: what it writes grants
/// nothing, or it may do everything.
///
/// # Errors
/// When the store cannot say now who has what.
pub(crate) async fn guard(
    access: &Access,
    identity: &Identity,
    kind: &Kind,
) -> Result<Option<Guard>, Status> {
    if kind.group != RBAC_GROUP || identity.in_group(SYSTEM_MASTERS) {
        return Ok(None);
    }
    let policy = access.newest().await.map_err(status_from_store)?;
    let identity = identity.clone();
    Ok(Some(Guard::new(move |kind, old, new| check(&policy, &identity, kind, old, new))))
}

fn check(
    policy: &Policy,
    identity: &Identity,
    kind: &'static Kind,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    let (namespace, name) = (object::namespace(new), object::name(new));
    let request = |verb, plural, namespace, name| Attributes {
        verb,
        resource: Some(ResourceName { group: RBAC_GROUP, plural }),
        namespace,
        name,
        ..Attributes::default()
    };
    let granted: Arc<[PolicyRule]> = match kind.kind {
        "ClusterRole" | "Role" => {
            // An aggregation gives whatever it will find: only who has everything may set one up.
            let gives = |object: &Value| (object["rules"].clone(), object["aggregationRule"].clone());
            if old.is_some_and(|old| gives(old) == gives(new))
                || policy.allows(identity, &request("escalate", kind.plural, namespace, name)).is_some()
            {
                return Ok(());
            }
            if old.is_none_or(|old| old["aggregationRule"] != new["aggregationRule"])
                && !new["aggregationRule"].is_null()
            {
                Arc::new([
                    PolicyRule::on_resources(&["*"], &["*"], &["*"]),
                    PolicyRule::on_paths(&["*"], &["*"]),
                ])
            } else {
                serde_json::from_value::<Vec<PolicyRule>>(new["rules"].clone()).unwrap_or_default().into()
            }
        }
        _ => {
            let same = |field: &str| old.is_some_and(|old| old[field] == new[field]);
            let role: RoleRef = serde_json::from_value(new["roleRef"].clone()).unwrap_or_default();
            let plural = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if same("roleRef") && same("subjects")
                || policy.allows(identity, &request("bind", plural, namespace, &role.name)).is_some()
            {
                return Ok(());
            }
            policy.role(&role, namespace).ok_or_else(|| no_such_role(&role))?
        }
    };
    let missing = uncovered(&policy.rules(identity, namespace), &granted);
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = identity.groups.iter().map(|group| quoted(group)).collect();
    let lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let why = format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        quoted(&identity.user),
        groups.join(" "),
        lines.join("\n")
    );
    Err(Status::forbidden(kind, name, &why))
}

fn no_such_role(role: &RoleRef) -> Status {
    let kind = if role.kind == "ClusterRole" { "ClusterRole" } else { "Role" };
    let kind = api::kinds::by_kind(RBAC_GROUP, "v1", kind).expect("the table of kinds has both");
    Status::not_found(kind, &role.name)
}
