//! The roles and bindings that every cluster has.
//!
//! Owns their text (`defaults.yaml`) and how they come into a cluster: what is missing is made; of what is
//! there, missing rules and subjects are added, unless the object says
//! `rbac.authorization.kubernetes.io/autoupdate: "false"`. What somebody added stays.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use api::kinds::RBAC_GROUP;
use api::{Kind, Status};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rule::{PolicyRule, uncovered};
use crate::registry::{Registry, Target, WriteOptions};

const TEXT: &str = include_str!("defaults.yaml");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
/// What a label that makes a role part of another begins with.
const AGGREGATE_TO: &str = "rbac.authorization.k8s.io/aggregate-to-";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    cluster_roles: BTreeMap<String, Role>,
    /// Bindings that are called what their role is called.
    cluster_role_bindings: BTreeMap<String, Vec<Value>>,
    other_bindings: BTreeMap<String, OtherBinding>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherBinding {
    role: String,
    subjects: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Role {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// The role is made of those labelled to belong to it.
    aggregate: Option<String>,
    #[serde(default)]
    rules: Vec<Vec<Vec<String>>>,
}

static FILE: LazyLock<File> =
    LazyLock::new(|| serde_saphyr::from_str(TEXT).expect("a test reads the default roles"));

/// The list as roles say it.
fn verbs(short: &[String]) -> Vec<String> {
    let each = short.iter().flat_map(|verb| match verb.as_str() {
        "read" => READ.to_vec(),
        "write" => WRITE.to_vec(),
        verb => vec![verb],
    });
    each.map(str::to_owned).collect()
}

fn rule(short: &[Vec<String>]) -> PolicyRule {
    match short {
        [short, groups, resources] => PolicyRule {
            verbs: verbs(short),
            api_groups: groups.iter().map(|group| group.trim_start_matches('_').to_owned()).collect(),
            resources: resources.clone(),
            ..PolicyRule::default()
        },
        [short, groups, resources, names] => PolicyRule {
            resource_names: names.clone(),
            ..rule(&[short.clone(), groups.clone(), resources.clone()])
        },
        [short, paths] => {
            PolicyRule { verbs: verbs(short), non_resource_urls: paths.clone(), ..PolicyRule::default() }
        }
        _ => unreachable!("a test reads every rule"),
    }
}

fn metadata(name: &str, labels: &BTreeMap<String, String>) -> Value {
    let mut labels = json!(labels);
    labels[BOOTSTRAPPING] = json!("rbac-defaults");
    json!({"name": name, "labels": labels, "annotations": {AUTOUPDATE: "true"}})
}

fn cluster_roles() -> impl Iterator<Item = Value> {
    FILE.cluster_roles.iter().map(|(name, role)| {
        let rules: Vec<PolicyRule> = role.rules.iter().map(|short| rule(short)).collect();
        let mut object = json!({"metadata": metadata(name, &role.labels), "rules": rules});
        if let Some(part) = &role.aggregate {
            let label = format!("{AGGREGATE_TO}{part}");
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        object
    })
}

fn cluster_role_bindings() -> impl Iterator<Item = Value> {
    let same = FILE.cluster_role_bindings.iter().map(|(name, subjects)| (name, name, subjects));
    let other = FILE.other_bindings.iter().map(|(name, binding)| (name, &binding.role, &binding.subjects));
    same.chain(other).map(|(name, role, subjects)| {
        json!({
            "metadata": metadata(name, &BTreeMap::new()),
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        })
    })
}

/// Makes the roles and bindings that every cluster has, where they are missing or lack something. May run
/// at every replica at once.
pub async fn bootstrap(registry: &Registry, options: &WriteOptions) -> Result<(), Status> {
    let kind = |kind| api::kinds::by_kind(RBAC_GROUP, "v1", kind).expect("the table of kinds has these");
    for role in cluster_roles() {
        ensure(registry, kind("ClusterRole"), role, options, complete_rules).await?;
    }
    for binding in cluster_role_bindings() {
        ensure(registry, kind("ClusterRoleBinding"), binding, options, complete_subjects).await?;
    }
    Ok(())
}

async fn ensure(
    registry: &Registry,
    kind: &'static Kind,
    wanted: Value,
    options: &WriteOptions,
    complete: fn(&mut Value, &Value),
) -> Result<(), Status> {
    let name = api::object::name(&wanted).to_owned();
    let Some(found) = registry.get_local(kind, "", &name).await? else {
        return match registry.create(kind, "", wanted, options).await {
            Err(status) if status.reason() != "AlreadyExists" => Err(status),
            _ => Ok(()),
        };
    };
    let mut completed = found.value().clone();
    complete(&mut completed, &wanted);
    if completed == *found.value() || api::object::annotation(found.value(), AUTOUPDATE) == Some("false") {
        return Ok(());
    }
    let change = |object: &mut Value| {
        complete(object, &wanted);
        Ok(())
    };
    registry.modify(Target::new(kind, "", &name), options, change).await.map(drop)
}

/// Adds the rules that a role lacks. One that is made of others is left to who makes it.
fn complete_rules(object: &mut Value, wanted: &Value) {
    let rules = |object: &Value| -> Vec<PolicyRule> {
        serde_json::from_value(object["rules"].clone()).unwrap_or_default()
    };
    let mut has = rules(object);
    let missing = uncovered(&has, &rules(wanted));
    if !missing.is_empty() {
        has.extend(missing);
        object["rules"] = json!(has);
    }
}

fn complete_subjects(object: &mut Value, wanted: &Value) {
    let same =
        |a: &Value, b: &Value| ["kind", "name", "namespace"].iter().all(|field| a[*field] == b[*field]);
    let mut has = object["subjects"].as_array().cloned().unwrap_or_default();
    let wanted = wanted["subjects"].as_array().into_iter().flatten();
    let missing: Vec<Value> =
        wanted.filter(|subject| !has.iter().any(|own| same(own, subject))).cloned().collect();
    if !missing.is_empty() {
        has.extend(missing);
        object["subjects"] = Value::from(has);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_valid_and_bound_to_what_exists() {
        let kind = |kind| api::kinds::by_kind(RBAC_GROUP, "v1", kind).expect("a kind");
        let mut names = Vec::new();
        for role in cluster_roles() {
            let is_aggregate = !role["aggregationRule"].is_null();
            let rules = role["rules"].as_array().expect("rules").len();
            assert_eq!(rules == 0, is_aggregate, "{role}");
            let causes = api::validation::create(kind("ClusterRole"), &role);
            assert!(causes.is_empty(), "{causes:?} in {role}");
            names.push(role["metadata"]["name"].clone());
        }
        for mut binding in cluster_role_bindings() {
            api::defaults::apply(kind("ClusterRoleBinding"), &mut binding);
            let causes = api::validation::create(kind("ClusterRoleBinding"), &binding);
            assert!(causes.is_empty(), "{causes:?} in {binding}");
            assert!(names.contains(&binding["roleRef"]["name"]));
        }
    }

    #[test]
    fn what_is_there_is_completed_and_keeps_what_was_added() {
        let wanted = json!({"rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]});
        let own = json!({"verbs": ["get"], "apiGroups": ["", "apps"], "resources": ["pods"]});
        let mut role = json!({"rules": [own]});
        complete_rules(&mut role, &wanted);
        let list = json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]});
        assert_eq!(role["rules"], json!([own, list]));
        let before = role.clone();
        complete_rules(&mut role, &wanted);
        assert_eq!(role, before);
        let mut binding = json!({"subjects": [{"kind": "User", "name": "a", "apiGroup": "x"}]});
        let wanted = json!({"subjects": [{"kind": "User", "name": "a"}, {"kind": "Group", "name": "a"}]});
        complete_subjects(&mut binding, &wanted);
        assert_eq!(binding["subjects"].as_array().map(Vec::len), Some(2));
    }
}
