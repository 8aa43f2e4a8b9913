//! Validation of roles and of what binds them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;

use super::{invalid_each, one_of};
use crate::kinds::{Kind, RBAC_GROUP};
use crate::name;
use crate::selector::LabelSelector;
use crate::status::Cause;

fn texts<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn role(object: &Value, causes: &mut Vec<Cause>) {
    rules(object, true, causes);
}

pub(super) fn cluster_role(object: &Value, causes: &mut Vec<Cause>) {
    rules(object, false, causes);
    let Some(aggregation) = object.get("aggregationRule").filter(|rule| !rule.is_null()) else { return };
    let selectors = texts(aggregation, "clusterRoleSelectors");
    if selectors.is_empty() {
        causes.push(Cause::required(
            "aggregationRule.clusterRoleSelectors",
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
    for (index, selector) in selectors.iter().enumerate() {
        let typed = serde_json::from_value::<meta::LabelSelector>(selector.clone()).ok();
        if let Err(why) = LabelSelector::from_typed(typed.as_ref()) {
            let field = format!("aggregationRule.clusterRoleSelectors[{index}]");
            causes.push(Cause::invalid(field, selector.clone(), &why));
        }
    }
}

fn rules(object: &Value, namespaced: bool, causes: &mut Vec<Cause>) {
    for (index, rule) in texts(object, "rules").iter().enumerate() {
        let field = |name: &str| format!("rules[{index}].{name}");
        if texts(rule, "verbs").is_empty() {
            causes.push(Cause::required(field("verbs"), "verbs must contain at least one value"));
        }
        let paths = texts(rule, "nonResourceURLs");
        let has = |name: &str| !texts(rule, name).is_empty();
        if !paths.is_empty() {
            let mut refuse =
                |why: &str| causes.push(Cause::invalid(field("nonResourceURLs"), paths.to_vec(), why));
            if namespaced {
                refuse("namespaced rules cannot apply to non-resource URLs");
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                refuse("rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if !has("apiGroups") {
            let why = "resource rules must supply at least one api group";
            causes.push(Cause::required(field("apiGroups"), why));
        }
        if !has("resources") {
            let why = "resource rules must supply at least one resource";
            causes.push(Cause::required(field("resources"), why));
        }
    }
}

/// A RoleBinding or a ClusterRoleBinding.
pub(super) fn binding(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    let role = &object["roleRef"];
    if text(role, "apiGroup") != RBAC_GROUP {
        causes.push(Cause::not_supported("roleRef.apiGroup", text(role, "apiGroup"), &[RBAC_GROUP]));
    }
    let kinds: &[&str] = if kind.namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(role, "kind")) {
        causes.push(Cause::not_supported("roleRef.kind", text(role, "kind"), kinds));
    }
    match text(role, "name") {
        "" => causes.push(Cause::required("roleRef.name", "")),
        name => invalid_each("roleRef.name", name, name::path_segment(name), causes),
    }
    for (index, subject) in texts(object, "subjects").iter().enumerate() {
        check_subject(kind, subject, &format!("subjects[{index}]"), causes);
    }
}

fn check_subject(kind: &Kind, subject: &Value, path: &str, causes: &mut Vec<Cause>) {
    let name = text(subject, "name");
    if name.is_empty() {
        causes.push(Cause::required(format!("{path}.name"), ""));
    }
    let group = text(subject, "apiGroup");
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                invalid_each(&format!("{path}.name"), name, name::dns1123_subdomain(name), causes);
            }
            if !group.is_empty() {
                causes.push(Cause::not_supported(format!("{path}.apiGroup"), group, &[""]));
            }
            if !kind.namespaced && text(subject, "namespace").is_empty() {
                causes.push(Cause::required(format!("{path}.namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != RBAC_GROUP {
                causes.push(Cause::not_supported(format!("{path}.apiGroup"), group, &[RBAC_GROUP]));
            }
        }
        other => one_of(&format!("{path}.kind"), other, &["Group", "ServiceAccount", "User"], causes),
    }
}

/// What a binding gives may not change under those who were told of it.
pub(super) fn binding_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["roleRef"] != new["roleRef"] {
        causes.push(Cause::invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef"));
    }
}
