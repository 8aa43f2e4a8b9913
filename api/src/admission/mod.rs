//! Admission by what users configure: webhooks and policies. Which of them a request meets, what they are
//! told, and what their answers mean.
//!
//! Pure: calling a webhook is the business of `control`. Words are those of the Kubernetes API server.

pub mod policy;
pub mod review;

use serde_json::{Value, json};

use crate::cel::{self, Budget, Expression};
use crate::kinds::Kind;
use crate::selector::LabelSelector;

/// A request as admission sees it.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The kind as which the objects are given.
    pub kind: &'a Kind,
    /// The kind that the path names: the same, or another version of it.
    pub requested: &'a Kind,
    /// Empty: the object itself.
    pub subresource: &'a str,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: &'static str,
    /// Empty outside namespaces.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// As it would be stored; null for a deletion.
    pub object: &'a Value,
    /// As it is stored; null for a creation.
    pub old: &'a Value,
    /// Whether nothing is stored in the end.
    pub dry_run: bool,
    /// Who asks, as `authentication.k8s.io/v1` `UserInfo`.
    pub user: &'a Value,
    /// The namespace object; null outside namespaces.
    pub namespace_object: &'a Value,
}

impl Request<'_> {
    /// The request as an `AdmissionReview` carries it and as expressions see it.
    pub fn value(&self, uid: &str) -> Value {
        let kind = |of: &Kind| json!({"group": of.group, "version": of.version, "kind": of.kind});
        let resource = |of: &Kind| json!({"group": of.group, "version": of.version, "resource": of.plural});
        let mut value = json!({
            "uid": uid,
            "kind": kind(self.kind), "requestKind": kind(self.requested),
            "resource": resource(self.kind), "requestResource": resource(self.requested),
            "name": self.name,
            "operation": self.operation,
            "userInfo": self.user,
            "object": self.object,
            "oldObject": self.old,
            "dryRun": self.dry_run,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": match self.operation {
                "CREATE" => "CreateOptions",
                "UPDATE" => "UpdateOptions",
                _ => "DeleteOptions",
            }},
        });
        if !self.subresource.is_empty() {
            value["subResource"] = Value::from(self.subresource);
            value["requestSubResource"] = Value::from(self.subresource);
        }
        if !self.namespace.is_empty() {
            value["namespace"] = Value::from(self.namespace);
        }
        value
    }
}

fn has(list: &Value, word: &str) -> bool {
    list.as_array().into_iter().flatten().any(|own| own == "*" || own == word)
}

/// Whether a rule with operations (`rules` of webhooks, `resourceRules` of policies) speaks of the request.
fn rule_matches(rule: &Value, request: &Request<'_>) -> bool {
    let scope = match rule["scope"].as_str().unwrap_or("*") {
        "Cluster" => !request.kind.namespaced,
        "Namespaced" => request.kind.namespaced,
        _ => true,
    };
    let resource = |own: &Value| {
        let own = own.as_str().unwrap_or_default();
        let (plural, sub) = own.split_once('/').unwrap_or((own, ""));
        let is_plural = plural == "*" || plural == request.kind.plural;
        // "*" alone means every resource but no subresource.
        is_plural && (sub == request.subresource || (sub == "*" && own.contains('/')))
    };
    let names = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    scope
        && has(&rule["operations"], request.operation)
        && has(&rule["apiGroups"], request.kind.group)
        && has(&rule["apiVersions"], request.kind.version)
        && rule["resources"].as_array().into_iter().flatten().any(resource)
        && names.is_none_or(|names| names.iter().any(|name| name == request.name))
}

/// Whether a label selector, in its JSON form, selects; one that cannot be read selects nothing.
fn selects(selector: &Value, object: &Value) -> bool {
    if selector.is_null() {
        return true;
    }
    let typed = serde_json::from_value(selector.clone()).ok();
    LabelSelector::from_typed(typed.as_ref()).is_ok_and(|selector| selector.matches_object(object))
}

/// Whether the rules of a webhook (`rules`), or of a policy's `matchConstraints` (`resourceRules`), name the request
/// in the version it is given in.
pub fn names(constraints: &Value, rules: &str, request: &Request<'_>) -> bool {
    let any = |rules: &Value| rules.as_array().into_iter().flatten().any(|rule| rule_matches(rule, request));
    any(&constraints[rules]) && !any(&constraints["excludeResourceRules"])
}

/// Whether rules and selectors of a webhook, or of a policy's `matchConstraints`, choose the request.
pub(crate) fn chosen(constraints: &Value, rules: &str, request: &Request<'_>) -> bool {
    if !names(constraints, rules, request) {
        return false;
    }
    // A namespace is chosen by its own labels.
    let namespace = match request.kind.kind == "Namespace" && request.kind.group.is_empty() {
        true if request.object.is_null() => request.old,
        true => request.object,
        false => request.namespace_object,
    };
    let in_namespace = namespace.is_null() || selects(&constraints["namespaceSelector"], namespace);
    let selector = &constraints["objectSelector"];
    let either = [request.object, request.old].iter().any(|own| !own.is_null() && selects(selector, own));
    in_namespace && (selector.is_null() || either)
}

/// Whether a webhook is to be asked; the error names the condition that could not be decided.
pub fn meets(webhook: &Value, request: &Request<'_>) -> Result<bool, String> {
    // What configures webhooks is never sent to them, so that a bad one can be mended.
    if request.kind.group == "admissionregistration.k8s.io" || !chosen(webhook, "rules", request) {
        return Ok(false);
    }
    conditions_hold(&webhook["matchConditions"], request)
}

/// Whether every `matchConditions` entry is true. One that is false decides, whatever others say.
pub(crate) fn conditions_hold(conditions: &Value, request: &Request<'_>) -> Result<bool, String> {
    let Some(conditions) = conditions.as_array().filter(|list| !list.is_empty()) else { return Ok(true) };
    let seen = Seen::of(request);
    let mut budget = Budget::default();
    let mut failed = None;
    for condition in conditions {
        let source = condition["expression"].as_str().unwrap_or_default();
        let value = Expression::compile(source, &VARIABLES)
            .and_then(|expression| expression.is_true(&seen.variables(), &mut budget));
        match value {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                let name = condition["name"].as_str().unwrap_or_default();
                failed = Some(format!("matchCondition {name:?}: {error}"));
            }
        }
    }
    failed.map_or(Ok(true), Err)
}

/// The variables of expressions about requests.
pub(crate) const VARIABLES: [&str; 4] = ["object", "oldObject", "request", "namespaceObject"];

/// A request as expressions see it.
pub(crate) struct Seen {
    object: cel::Value,
    old: cel::Value,
    request: cel::Value,
    namespace: cel::Value,
}

impl Seen {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        let mut value = request.value("");
        if let Some(members) = value.as_object_mut() {
            members.remove("object");
            members.remove("oldObject");
        }
        Self {
            object: cel::from_json(request.object),
            old: cel::from_json(request.old),
            request: cel::from_json(&value),
            namespace: cel::from_json(request.namespace_object),
        }
    }

    pub(crate) fn variables(&self) -> Vec<cel::Variable<'_>> {
        vec![
            ("object", &self.object),
            ("oldObject", &self.old),
            ("request", &self.request),
            ("namespaceObject", &self.namespace),
        ]
    }
}
