//! ResourceQuotas: what an object counts for, which quotas it counts against, and whether it fits.
//!
//! Pure. The registry charges the quotas in the transaction that makes the object, or that makes it count for
//! more; the leader counts anew when objects change or go.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::limits::{amounts, pod_amounts};
use crate::object;
use crate::qos::QosClass;
use crate::quantity::Quantity;

/// Amounts by the name that quotas give them.
pub type Usage = BTreeMap<String, Quantity>;

fn one() -> Quantity {
    Quantity::from_millis(1000)
}

/// Kinds of the core group that quotas count by a short name.
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// What an object of the kind counts for.
pub fn usage(kind: &Kind, object: &Value) -> Usage {
    let mut usage = Usage::new();
    if !kind.namespaced || kind.virtual_only {
        return usage;
    }
    usage.insert(format!("count/{}", kind.group_resource()), one());
    if !kind.group.is_empty() {
        return usage;
    }
    match kind.plural {
        "pods" => pod(object, &mut usage),
        "services" => service(object, &mut usage),
        "persistentvolumeclaims" => claim(object, &mut usage),
        plural if COUNTED.contains(&plural) => {
            usage.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    usage
}

/// Whether a change of an object can make it count for more: a Service can be given node ports, a claim can
/// grow. Of other kinds what they count for is fixed.
pub fn charges_updates(kind: &Kind) -> bool {
    kind.group.is_empty() && matches!(kind.plural, "services" | "persistentvolumeclaims")
}

/// What the object counts for beyond what it counted for before.
fn growth(kind: &Kind, old: Option<&Value>, new: &Value) -> Usage {
    let before = old.map(|old| usage(kind, old)).unwrap_or_default();
    let mut after = usage(kind, new);
    for (resource, amount) in &mut after {
        if let Some(before) = before.get(resource) {
            *amount -= *before;
        }
    }
    // What shrinks is counted afresh when it has shrunk.
    after.retain(|_, amount| old.is_none() || *amount > Quantity::from_millis(0));
    after
}

fn is_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn pod(pod: &Value, usage: &mut Usage) {
    if is_ended(pod) {
        return;
    }
    usage.insert("pods".to_owned(), one());
    for (name, amount) in pod_amounts(&pod["spec"], "requests") {
        // Of resources that nobody overcommits the request is all there is to count.
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(name.clone(), amount);
        }
        usage.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_amounts(&pod["spec"], "limits") {
        usage.insert(format!("limits.{name}"), amount);
    }
}

fn service(service: &Value, usage: &mut Usage) {
    usage.insert("services".to_owned(), one());
    let ty = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
    let ports = service["spec"]["ports"].as_array().map_or(0, Vec::len);
    let ports = i64::try_from(ports).unwrap_or(i64::MAX).saturating_mul(1000);
    if ty == "LoadBalancer" {
        usage.insert("services.loadbalancers".to_owned(), one());
    }
    if ty == "NodePort" || ty == "LoadBalancer" {
        usage.insert("services.nodeports".to_owned(), Quantity::from_millis(ports));
    }
}

fn claim(claim: &Value, usage: &mut Usage) {
    usage.insert("persistentvolumeclaims".to_owned(), one());
    let storage = amounts(&claim["spec"]["resources"]["requests"]).get("storage").copied();
    let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
    if let Some(storage) = storage {
        usage.insert("requests.storage".to_owned(), storage);
    }
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{prefix}/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{prefix}/requests.storage"), storage);
        }
    }
}

/// Whether the object counts against the quota, by the quota's scopes.
pub fn is_in_scope(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let spec = &quota["spec"];
    let scopes = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let plain: Vec<(&str, &str, Vec<&str>)> = scopes.map(|scope| (scope, "Exists", Vec::new())).collect();
    let selector = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let selected = selector.map(|term| {
        let values = term["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        (
            term["scopeName"].as_str().unwrap_or_default(),
            term["operator"].as_str().unwrap_or_default(),
            values,
        )
    });
    let mut terms = plain.into_iter().chain(selected).peekable();
    if terms.peek().is_none() {
        return true;
    }
    let is_pod = kind.group.is_empty() && kind.plural == "pods";
    is_pod && terms.all(|(scope, operator, values)| pod_matches(object, scope, operator, &values))
}

fn pod_matches(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let spec = &pod["spec"];
    let has_deadline = spec["activeDeadlineSeconds"].is_number();
    let best_effort = QosClass::of(pod) == QosClass::BestEffort;
    match scope {
        "Terminating" => has_deadline,
        "NotTerminating" => !has_deadline,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().unwrap_or_default();
            match operator {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|field| {
            let affinity = &spec["affinity"][*field];
            let terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
            let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
            let preferred = preferred.into_iter().flatten().map(|weighted| &weighted["podAffinityTerm"]);
            terms.into_iter().flatten().chain(preferred).any(|term| {
                term["namespaces"].as_array().is_some_and(|list| !list.is_empty())
                    || term["namespaceSelector"].is_object()
            })
        }),
        _ => false,
    }
}

/// The quota's status once the object is charged to it, with what it counts for beyond its predecessor `old`;
/// `None`: it does not count for anything that the quota bounds. The error is the text after `is forbidden: `.
pub fn charge(
    quota: &Value,
    kind: &Kind,
    old: Option<&Value>,
    object: &Value,
) -> Result<Option<Value>, String> {
    if !is_in_scope(quota, kind, object) {
        return Ok(None);
    }
    let name = object::name(quota);
    let hard = amounts(&quota["spec"]["hard"]);
    let own = growth(kind, old, object);
    let is_pod = kind.group.is_empty() && kind.plural == "pods" && !is_ended(object);
    if is_pod {
        let missing = missing(&hard, object);
        if !missing.is_empty() {
            return Err(format!("failed quota: {name}: must specify {}", missing.join("; ")));
        }
    }
    let counted: Usage = own.into_iter().filter(|(resource, _)| hard.contains_key(resource)).collect();
    if counted.is_empty() {
        return Ok(None);
    }
    let (known, used) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
    let unknown: Vec<&str> = counted
        .keys()
        .filter(|resource| !known.contains_key(*resource) || !used.contains_key(*resource))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    let after = |resource: &String| used[resource] + counted[resource];
    let exceeded: Vec<&String> =
        counted.keys().filter(|resource| after(resource) > hard[*resource].min(known[*resource])).collect();
    if !exceeded.is_empty() {
        let list = |amounts: &Usage| {
            let texts = exceeded.iter().map(|resource| format!("{resource}={}", amounts[*resource]));
            texts.collect::<Vec<String>>().join(",")
        };
        let (requested, used, limited) = (list(&counted), list(&used), list(&known));
        return Err(format!(
            "exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"
        ));
    }
    let mut charged = quota.clone();
    for resource in counted.keys() {
        charged["status"]["used"][resource] = Value::from(after(resource).to_string());
    }
    Ok(Some(charged))
}

/// What a pod must say because a quota bounds it: by resource, which containers leave it out.
fn missing(hard: &Usage, pod: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for resource in hard.keys() {
        let (field, plain) = match resource.split_once('.') {
            Some(("limits", plain)) => ("limits", plain),
            Some(("requests", plain)) => ("requests", plain),
            _ => ("requests", resource.as_str()),
        };
        if !matches!(plain, "cpu" | "memory") {
            continue;
        }
        let lists = ["containers", "initContainers"];
        let containers = lists.iter().flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten());
        let without: Vec<&str> = containers
            .filter(|container| container["resources"][field].get(plain).is_none())
            .filter_map(|container| container["name"].as_str())
            .collect();
        if !without.is_empty() {
            missing.push(format!("{resource} for: {}", without.join(",")));
        }
    }
    missing
}

/// A quota's status after everything was counted: `hard` as the spec has it, `used` of what is bounded.
pub fn status<'a>(quota: &Value, objects: impl Iterator<Item = (&'a Kind, &'a Value)>) -> Value {
    let hard = amounts(&quota["spec"]["hard"]);
    let mut used: Usage = hard.keys().map(|name| (name.clone(), Quantity::from_millis(0))).collect();
    for (kind, object) in objects {
        if !is_in_scope(quota, kind, object) {
            continue;
        }
        for (resource, amount) in usage(kind, object) {
            if let Some(total) = used.get_mut(&resource) {
                *total += amount;
            }
        }
    }
    let texts = |usage: &Usage| -> Map<String, Value> {
        usage.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect()
    };
    serde_json::json!({"hard": texts(&hard), "used": texts(&used)})
}

/// Whether the quota bounds anything that objects of the kind count for.
pub fn bounds(quota: &Value, kind: &Kind) -> bool {
    let count = format!("count/{}", kind.group_resource());
    let hard = quota["spec"]["hard"].as_object().into_iter().flatten();
    hard.into_iter().any(|(resource, _)| {
        let own = match kind.plural {
            _ if !kind.group.is_empty() => false,
            "pods" => {
                let compute = ["cpu", "memory", "ephemeral-storage", "pods"];
                compute.contains(&resource.as_str())
                    || resource.starts_with("limits.")
                    || (resource.starts_with("requests.") && resource != "requests.storage")
            }
            "services" => resource == "services" || resource.starts_with("services."),
            "persistentvolumeclaims" => {
                resource == "persistentvolumeclaims"
                    || resource == "requests.storage"
                    || resource.contains(".storageclass.storage.k8s.io/")
            }
            plural => COUNTED.contains(&plural) && resource == plural,
        };
        own || *resource == count
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_kind;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn pod(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    #[test]
    fn what_fits_is_charged_and_what_does_not_is_refused() {
        let kind = by_kind("", "v1", "Pod").expect("a kind");
        let quota =
            quota(json!({"pods": "2", "requests.cpu": "1"}), json!({"pods": "1", "requests.cpu": "500m"}));
        let charged = charge(&quota, kind, None, &pod("250m")).expect("fits").expect("counts");
        assert_eq!(charged["status"]["used"], json!({"pods": "2", "requests.cpu": "750m"}));
        assert_eq!(
            charge(&charged, kind, None, &pod("250m")),
            Err("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2".to_owned())
        );
        assert_eq!(
            charge(&quota, kind, None, &json!({"spec": {"containers": [{"name": "c"}]}})),
            Err("failed quota: q: must specify requests.cpu for: c".to_owned())
        );
        let mut fresh = quota.clone();
        fresh["status"] = json!({});
        assert_eq!(
            charge(&fresh, kind, None, &pod("1")),
            Err("status unknown for quota: q, resources: pods,requests.cpu".to_owned())
        );
        let map = by_kind("", "v1", "ConfigMap").expect("a kind");
        assert_eq!(charge(&quota, map, None, &json!({})), Ok(None));
        assert!(bounds(&quota, kind) && !bounds(&quota, map));
    }

    #[test]
    fn a_change_is_charged_for_what_it_adds() {
        let kind = by_kind("", "v1", "Service").expect("a kind");
        let service = |ty: &str, ports: usize| json!({"spec": {"type": ty, "ports": vec![json!({}); ports]}});
        let hard = json!({"services": "1", "services.nodeports": "3", "services.loadbalancers": "0"});
        let used = json!({"services": "1", "services.nodeports": "1", "services.loadbalancers": "0"});
        let quota = quota(hard, used);
        let (one, plain) = (service("NodePort", 1), service("ClusterIP", 9));
        let grown = charge(&quota, kind, Some(&one), &service("NodePort", 3)).expect("fits").expect("counts");
        assert_eq!(grown["status"]["used"]["services.nodeports"], "3");
        assert_eq!(grown["status"]["used"]["services"], "1", "it was there before");
        assert_eq!(
            charge(&quota, kind, Some(&plain), &service("NodePort", 3)),
            Err("exceeded quota: q, requested: services.nodeports=3, used: services.nodeports=1, limited: \
                 services.nodeports=3"
                .to_owned())
        );
        for (old, new) in [(&one, &plain), (&one, &one), (&plain, &plain)] {
            assert_eq!(charge(&quota, kind, Some(old), new), Ok(None), "what shrinks is counted later");
        }
    }

    #[test]
    fn scopes_choose_pods() {
        let kind = by_kind("", "v1", "Pod").expect("a kind");
        let mut quota = quota(json!({"pods": "1"}), json!({"pods": "0"}));
        quota["spec"]["scopes"] = json!(["BestEffort"]);
        assert!(!is_in_scope(&quota, kind, &pod("1")));
        assert!(is_in_scope(&quota, kind, &json!({"spec": {"containers": [{"name": "c"}]}})));
        quota["spec"] = json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        assert!(!is_in_scope(&quota, kind, &pod("1")));
        assert!(is_in_scope(&quota, kind, &json!({"spec": {"priorityClassName": "high"}})));
    }

    #[test]
    fn a_count_from_scratch_leaves_out_what_ended() {
        let kind = by_kind("", "v1", "Pod").expect("a kind");
        let mut ended = pod("1");
        ended["status"] = json!({"phase": "Succeeded"});
        let quota = quota(json!({"pods": "5", "cpu": "9", "count/pods": "9"}), json!({}));
        let objects = [pod("500m"), pod("2"), ended];
        let status = status(&quota, objects.iter().map(|pod| (kind, pod)));
        assert_eq!(status["used"], json!({"pods": "2", "cpu": "2500m", "count/pods": "3"}));
    }
}
