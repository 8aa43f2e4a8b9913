//! FlowSchemas and PriorityLevelConfigurations. The mandatory ones are as the cluster makes them, and stay so.

use serde_json::{Value, json};

use super::one_of;
use crate::name;
use crate::object;
use crate::status::Cause;

const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
const VERBS: [&str; 9] =
    ["*", "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

pub(super) fn flow_schema(object: &Value, causes: &mut Vec<Cause>) {
    let (own, spec) = (object::name(object), &object["spec"]);
    let precedence = spec["matchingPrecedence"].as_i64().unwrap_or(0);
    let path = "spec.matchingPrecedence";
    if !(1..=PRECEDENCE_MAX).contains(&precedence) {
        let why = format!("must be between 1 and {PRECEDENCE_MAX}, inclusive");
        causes.push(Cause::invalid(path, precedence, &why));
    } else if precedence == 1 && own != "exempt" {
        causes.push(Cause::invalid(
            path,
            precedence,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        ));
    }
    let method = &spec["distinguisherMethod"];
    if !method.is_null() {
        one_of("spec.distinguisherMethod", text(method, "type"), &["ByNamespace", "ByUser"], causes);
    }
    let level = text(&spec["priorityLevelConfiguration"], "name");
    if level.is_empty() {
        causes
            .push(Cause::required("spec.priorityLevelConfiguration.name", "must reference a priority level"));
    } else {
        let path = "spec.priorityLevelConfiguration.name";
        let problems = name::dns1123_subdomain(level);
        causes.extend(problems.iter().map(|why| Cause::invalid(path, level, why)));
    }
    let wanted = match own {
        "exempt" => Some(("exempt", 1)),
        "catch-all" => Some(("catch-all", PRECEDENCE_MAX)),
        _ => None,
    };
    if let Some((wanted_level, wanted_precedence)) = wanted
        && (level, precedence) != (wanted_level, wanted_precedence)
    {
        let why = format!("spec of '{own}' must equal the fixed value");
        causes.push(Cause::invalid("spec", spec.clone(), &why));
    }
    for (index, rule) in list(spec, "rules").iter().enumerate() {
        check_rule(&format!("spec.rules[{index}]"), rule, causes);
    }
}

fn check_rule(path: &str, rule: &Value, causes: &mut Vec<Cause>) {
    if list(rule, "subjects").is_empty() {
        causes.push(Cause::required(format!("{path}.subjects"), "subjects must contain at least one value"));
    }
    for (index, subject) in list(rule, "subjects").iter().enumerate() {
        check_subject(&format!("{path}.subjects[{index}]"), subject, causes);
    }
    let (resources, paths) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        causes.push(Cause::required(path, why));
    }
    for (index, rule) in resources.iter().enumerate() {
        let path = format!("{path}.resourceRules[{index}]");
        check_verbs(&path, rule, causes);
        for field in ["apiGroups", "resources"] {
            check_words(&path, rule, field, causes);
        }
        let namespaces = list(rule, "namespaces");
        if namespaces.is_empty() && rule["clusterScope"] != true {
            let why = "resource rules that are not cluster scoped must supply at least one namespace";
            causes.push(Cause::required(format!("{path}.namespaces"), why));
        }
        only_star(&path, "namespaces", namespaces, causes);
    }
    for (index, rule) in paths.iter().enumerate() {
        let path = format!("{path}.nonResourceRules[{index}]");
        check_verbs(&path, rule, causes);
        check_words(&path, rule, "nonResourceURLs", causes);
        for (index, url) in list(rule, "nonResourceURLs").iter().enumerate() {
            let url = url.as_str().unwrap_or_default();
            let stars = url.matches('*').count();
            if url != "*" && (!url.starts_with('/') || stars > 1 || (stars == 1 && !url.ends_with("/*"))) {
                let why = "must begin with '/', and may end with '/*'";
                causes.push(Cause::invalid(format!("{path}.nonResourceURLs[{index}]"), url, why));
            }
        }
    }
}

fn check_subject(path: &str, subject: &Value, causes: &mut Vec<Cause>) {
    let kinds = [("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];
    let kind = text(subject, "kind");
    one_of(&format!("{path}.kind"), kind, &["Group", "ServiceAccount", "User"], causes);
    for (own, field) in kinds {
        let part = &subject[field];
        if own == kind && part.is_null() {
            let why = format!("{field} is required when subject kind is '{own}'");
            causes.push(Cause::required(format!("{path}.{field}"), &why));
        } else if own == kind && text(part, "name").is_empty() {
            causes.push(Cause::required(format!("{path}.{field}.name"), ""));
        } else if own != kind && !part.is_null() {
            let why = format!("{field} is forbidden when subject kind is not '{own}'");
            causes.push(Cause::forbidden(format!("{path}.{field}"), &why));
        }
    }
    if kind == "ServiceAccount" && text(&subject["serviceAccount"], "namespace").is_empty() {
        let why = "must specify namespace for service account";
        causes.push(Cause::required(format!("{path}.serviceAccount.namespace"), why));
    }
}

fn check_verbs(path: &str, rule: &Value, causes: &mut Vec<Cause>) {
    check_words(path, rule, "verbs", causes);
    for (index, verb) in list(rule, "verbs").iter().enumerate() {
        let verb = verb.as_str().unwrap_or_default();
        if !VERBS.contains(&verb) && !["connect", "proxy", "head", "post", "put", "options"].contains(&verb) {
            causes.push(Cause::not_supported(format!("{path}.verbs[{index}]"), verb, &VERBS));
        }
    }
}

fn check_words(path: &str, rule: &Value, field: &str, causes: &mut Vec<Cause>) {
    let words = list(rule, field);
    if words.is_empty() {
        let why = format!("{field} must contain at least one value");
        causes.push(Cause::required(format!("{path}.{field}"), &why));
    }
    only_star(path, field, words, causes);
}

fn only_star(path: &str, field: &str, words: &[Value], causes: &mut Vec<Cause>) {
    if words.len() > 1 && words.contains(&json!("*")) {
        let why = "if '*' is present, must not specify anything else";
        causes.push(Cause::invalid(format!("{path}.{field}"), words.to_vec(), why));
    }
}

pub(super) fn priority_level(object: &Value, causes: &mut Vec<Cause>) {
    let (own, spec) = (object::name(object), &object["spec"]);
    let kind = text(spec, "type");
    one_of("spec.type", kind, &["Exempt", "Limited"], causes);
    if (own == "exempt") != (kind == "Exempt") {
        let why = "type must be 'Exempt' if and only if name is 'exempt'";
        causes.push(Cause::invalid("spec.type", kind, why));
    }
    let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
    match kind {
        "Exempt" if !limited.is_null() => {
            causes.push(Cause::forbidden("spec.limited", "must be nil if the type is not Limited"));
        }
        "Limited" if !exempt.is_null() => {
            causes.push(Cause::forbidden("spec.exempt", "must be nil if the type is Limited"));
        }
        "Limited" if limited.is_null() => {
            causes.push(Cause::required("spec.limited", "must not be empty when type is Limited"));
        }
        "Limited" => check_limited(own, limited, causes),
        _ => {}
    }
    for (path, part) in [("spec.limited", limited), ("spec.exempt", exempt)] {
        check_numbers(path, part, causes);
    }
}

fn check_numbers(path: &str, part: &Value, causes: &mut Vec<Cause>) {
    if part["nominalConcurrencyShares"].as_i64().is_some_and(|shares| shares < 0) {
        let shares = part["nominalConcurrencyShares"].clone();
        let why = "must be a non-negative integer";
        causes.push(Cause::invalid(format!("{path}.nominalConcurrencyShares"), shares, why));
    }
    for (field, most) in [("lendablePercent", 100), ("borrowingLimitPercent", i64::from(i32::MAX))] {
        if part[field].as_i64().is_some_and(|percent| !(0..=most).contains(&percent)) {
            let why = match field {
                "lendablePercent" => "must be between 0 and 100, inclusive",
                _ => "if specified, must be a non-negative integer",
            };
            causes.push(Cause::invalid(format!("{path}.{field}"), part[field].clone(), why));
        }
    }
}

fn check_limited(own: &str, limited: &Value, causes: &mut Vec<Cause>) {
    let (path, response) = ("spec.limited.limitResponse", &limited["limitResponse"]);
    let kind = text(response, "type");
    one_of(&format!("{path}.type"), kind, &["Queue", "Reject"], causes);
    let is_fixed = kind == "Reject" && limited["nominalConcurrencyShares"] == 5;
    if own == "catch-all" && !is_fixed {
        let why = "spec of 'catch-all' must equal the fixed value";
        causes.push(Cause::invalid("spec", limited.clone(), why));
    }
    let queuing = &response["queuing"];
    if kind == "Reject" && !queuing.is_null() {
        causes.push(Cause::forbidden(
            format!("{path}.queuing"),
            "must be nil if limited.limitResponse.type is not Limited",
        ));
    } else if kind == "Queue" {
        let path = format!("{path}.queuing");
        let number = |field: &str| queuing[field].as_i64().unwrap_or(0);
        for field in ["queues", "handSize", "queueLengthLimit"] {
            if number(field) <= 0 {
                causes.push(Cause::invalid(format!("{path}.{field}"), number(field), "must be positive"));
            }
        }
        if number("queues") > QUEUES_MAX {
            let why = format!("must not be greater than {QUEUES_MAX}");
            causes.push(Cause::invalid(format!("{path}.queues"), number("queues"), &why));
        }
        if number("handSize") > number("queues") {
            let why = format!("should not be greater than queues ({})", number("queues"));
            causes.push(Cause::invalid(format!("{path}.handSize"), number("handSize"), &why));
        }
    }
}
