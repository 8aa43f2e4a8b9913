//! Validation of what limits, measures and ranks others.

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscaler, MetricSpec, MetricTarget};
use k8s_openapi::api::core::v1::{LimitRange, ResourceQuota};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as TypedQuantity;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::{invalid_each, not_negative, one_of, resources, workload};
use crate::Quantity;
use crate::name;
use crate::object;
use crate::selector::LabelSelector;
use crate::status::Cause;

/// The highest priority that users may give; what is above belongs to the system.
pub(super) const USER_PRIORITY_MAX: i64 = 1_000_000_000;
/// Prefix of the names of the system's own classes.
const SYSTEM_PREFIX: &str = "system-";
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub(super) fn disruption_budget(budget: &PodDisruptionBudget, causes: &mut Vec<Cause>) {
    let Some(spec) = &budget.spec else { return };
    if spec.min_available.is_some() && spec.max_unavailable.is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        causes.push(Cause::invalid("spec", json!(spec), why));
    }
    for (field, value) in
        [("spec.minAvailable", &spec.min_available), ("spec.maxUnavailable", &spec.max_unavailable)]
    {
        let number = workload::amount(field, value.as_ref(), causes);
        let is_percent =
            matches!(value, Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(_)));
        if is_percent && number.is_some_and(|percent| percent > 100) {
            causes.push(Cause::invalid(field, json!(value), "must not be greater than 100%"));
        }
    }
    if let Some(policy) = spec.unhealthy_pod_eviction_policy.as_deref() {
        let field = "spec.unhealthyPodEvictionPolicy";
        one_of(field, policy, &["AlwaysAllow", "IfHealthyBudget"], causes);
    }
    if let Err(why) = LabelSelector::from_typed(spec.selector.as_ref()) {
        causes.push(Cause::invalid("spec.selector", json!(spec.selector), &why));
    }
}

pub(super) fn priority_class(object: &Value, causes: &mut Vec<Cause>) {
    let (name, value) = (object::name(object), object["value"].as_i64().unwrap_or(0));
    if name.starts_with(SYSTEM_PREFIX) {
        if !SYSTEM_CLASSES.contains(&(name, value)) {
            let why = format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {name} is not a known system priority class"
            );
            causes.push(Cause::forbidden("metadata.name", &why));
        }
    } else if value > USER_PRIORITY_MAX {
        let why = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        causes.push(Cause::forbidden("value", &why));
    }
    let policy = object["preemptionPolicy"].as_str().unwrap_or_default();
    one_of("preemptionPolicy", policy, &["Never", "PreemptLowerPriority"], causes);
}

pub(super) fn priority_class_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["value"] != new["value"] {
        causes.push(Cause::forbidden("value", "may not be changed in an update."));
    }
    if old["preemptionPolicy"] != new["preemptionPolicy"] {
        let policy = new["preemptionPolicy"].clone();
        causes.push(Cause::invalid("preemptionPolicy", policy, "field is immutable"));
    }
}

pub(super) fn limit_range(range: &LimitRange, causes: &mut Vec<Cause>) {
    let limits = range.spec.as_ref().map(|spec| spec.limits.as_slice()).unwrap_or_default();
    let mut seen = Vec::new();
    for (index, item) in limits.iter().enumerate() {
        let path = format!("spec.limits[{index}]");
        if seen.contains(&item.type_.as_str()) {
            causes.push(Cause::duplicate(format!("{path}.type"), item.type_.as_str()));
        }
        seen.push(&item.type_);
        match item.type_.as_str() {
            "Container" | "PersistentVolumeClaim" => {}
            "Pod" => {
                for (field, map) in [("default", &item.default), ("defaultRequest", &item.default_request)] {
                    if map.as_ref().is_some_and(|map| !map.is_empty()) {
                        let why = "may not be specified when `type` is 'Pod'";
                        causes.push(Cause::forbidden(format!("{path}.{field}"), why));
                    }
                }
            }
            other if !other.contains('/') => {
                let known = ["Container", "PersistentVolumeClaim", "Pod"];
                one_of(&format!("{path}.type"), other, &known, causes);
            }
            other => invalid_each(&format!("{path}.type"), other, name::qualified_name(other), causes),
        }
        let quantities = [
            ("min", &item.min),
            ("defaultRequest", &item.default_request),
            ("default", &item.default),
            ("max", &item.max),
        ];
        for (field, map) in quantities {
            for (resource, quantity) in map.iter().flatten() {
                resources::quantity_at(&format!("{path}.{field}[{resource}]"), resource, quantity, causes);
            }
        }
        ascending(&path, &quantities, causes);
    }
}

type Quantities<'a> = (&'a str, &'a Option<BTreeMap<String, TypedQuantity>>);

/// Each of the named amounts may not be above those that come after it.
fn ascending(path: &str, in_order: &[Quantities<'_>], causes: &mut Vec<Cause>) {
    let read = |map: &Option<BTreeMap<String, TypedQuantity>>, resource: &str| {
        let text = map.as_ref()?.get(resource)?.0.clone();
        Quantity::parse(&text).ok().map(|quantity| (text, quantity.milli_value()))
    };
    for (number, (field, low)) in in_order.iter().enumerate() {
        for resource in low.iter().flatten().map(|(resource, _)| resource) {
            let Some((text, least)) = read(low, resource) else { continue };
            for (other, high) in &in_order[number + 1..] {
                if let Some((above, most)) = read(high, resource)
                    && least > most
                {
                    let why = format!("{field} value {text} is greater than {other} value {above}");
                    causes.push(Cause::invalid(format!("{path}.{field}[{resource}]"), text.as_str(), &why));
                }
            }
        }
    }
}

pub(super) fn quota(quota: &ResourceQuota, causes: &mut Vec<Cause>) {
    let Some(spec) = &quota.spec else { return };
    for (resource, quantity) in spec.hard.iter().flatten() {
        let field = format!("spec.hard[{resource}]");
        invalid_each(&field, resource, name::qualified_name(resource), causes);
        match Quantity::parse(&quantity.0) {
            Err(why) => causes.push(Cause::invalid(field, quantity.0.as_str(), &why.to_string())),
            Ok(amount) => {
                if amount.milli_value() < 0 {
                    let why = "must be greater than or equal to 0";
                    causes.push(Cause::invalid(field, quantity.0.as_str(), why));
                } else if resource.starts_with("count/") && amount.milli_value() % 1000 != 0 {
                    causes.push(Cause::invalid(field, quantity.0.as_str(), "must be an integer"));
                }
            }
        }
    }
    for (index, scope) in spec.scopes.iter().flatten().enumerate() {
        let known = [
            "BestEffort",
            "CrossNamespacePodAffinity",
            "NotBestEffort",
            "NotTerminating",
            "PriorityClass",
            "Terminating",
        ];
        one_of(&format!("spec.scopes[{index}]"), scope, &known, causes);
    }
}

/// What a quota is about may not change.
pub(super) fn quota_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["spec"]["scopes"] != new["spec"]["scopes"] {
        causes.push(Cause::invalid("spec.scopes", new["spec"]["scopes"].clone(), "field is immutable"));
    }
}

pub(super) fn autoscaler(autoscaler: &HorizontalPodAutoscaler, causes: &mut Vec<Cause>) {
    let Some(spec) = &autoscaler.spec else { return };
    let least = spec.min_replicas.unwrap_or(1);
    if least < 1 {
        causes.push(Cause::invalid("spec.minReplicas", least, "must be greater than or equal to 1"));
    }
    if spec.max_replicas < 1 {
        causes.push(Cause::invalid("spec.maxReplicas", spec.max_replicas, "must be greater than 0"));
    } else if spec.max_replicas < least {
        let why = "must be greater than or equal to `minReplicas`";
        causes.push(Cause::invalid("spec.maxReplicas", spec.max_replicas, why));
    }
    for (field, text) in [("kind", &spec.scale_target_ref.kind), ("name", &spec.scale_target_ref.name)] {
        let field = format!("spec.scaleTargetRef.{field}");
        if text.is_empty() {
            causes.push(Cause::required(field, ""));
        } else {
            invalid_each(&field, text, name::path_segment(text), causes);
        }
    }
    for (index, metric) in spec.metrics.iter().flatten().enumerate() {
        check_metric(&format!("spec.metrics[{index}]"), metric, causes);
    }
    if let Some(behavior) = &spec.behavior {
        for (field, rules) in [("scaleUp", &behavior.scale_up), ("scaleDown", &behavior.scale_down)] {
            if let Some(rules) = rules {
                scaling_rules(&format!("spec.behavior.{field}"), rules, causes);
            }
        }
    }
}

fn check_metric(path: &str, metric: &MetricSpec, causes: &mut Vec<Cause>) {
    let known = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    one_of(&format!("{path}.type"), &metric.type_, &known, causes);
    let (member, value) = match metric.type_.as_str() {
        "ContainerResource" => ("containerResource", metric.container_resource.as_ref().map(|m| &m.target)),
        "External" => ("external", metric.external.as_ref().map(|m| &m.target)),
        "Object" => ("object", metric.object.as_ref().map(|m| &m.target)),
        "Pods" => ("pods", metric.pods.as_ref().map(|m| &m.target)),
        "Resource" => ("resource", metric.resource.as_ref().map(|m| &m.target)),
        _ => return,
    };
    match value {
        None => {
            let why = format!("must populate information for the given metric source: {member}");
            causes.push(Cause::required(format!("{path}.{member}"), &why));
        }
        Some(goal) => target(&format!("{path}.{member}.target"), goal, causes),
    }
}

fn target(path: &str, target: &MetricTarget, causes: &mut Vec<Cause>) {
    one_of(&format!("{path}.type"), &target.type_, &["AverageValue", "Utilization", "Value"], causes);
    let values = [&target.average_value, &target.value];
    let is_set = values.iter().any(|value| value.is_some()) || target.average_utilization.is_some();
    if !is_set {
        let why = "must set either a target raw value or a target utilization";
        causes.push(Cause::required(format!("{path}.averageUtilization"), why));
    }
    if let Some(percent) = target.average_utilization.filter(|percent| *percent < 1) {
        causes.push(Cause::invalid(format!("{path}.averageUtilization"), percent, "must be greater than 0"));
    }
    for (field, value) in [("averageValue", &target.average_value), ("value", &target.value)] {
        let Some(value) = value else { continue };
        if Quantity::parse(&value.0).is_ok_and(|quantity| quantity.milli_value() <= 0) {
            causes.push(Cause::invalid(format!("{path}.{field}"), value.0.as_str(), "must be positive"));
        }
    }
}

fn scaling_rules(path: &str, rules: &HPAScalingRules, causes: &mut Vec<Cause>) {
    /// Seconds that recommendations are looked back upon.
    const WINDOW_S_MAX: i32 = 3600;
    /// Seconds within which a policy counts.
    const PERIOD_S_MAX: i32 = 1800;
    let window = rules.stabilization_window_seconds.unwrap_or(0);
    not_negative(&format!("{path}.stabilizationWindowSeconds"), window, causes);
    if window > WINDOW_S_MAX {
        let why = format!("must be less than or equal to {WINDOW_S_MAX}");
        causes.push(Cause::invalid(format!("{path}.stabilizationWindowSeconds"), window, &why));
    }
    if let Some(select) = rules.select_policy.as_deref() {
        one_of(&format!("{path}.selectPolicy"), select, &["Disabled", "Max", "Min"], causes);
    }
    let policies = rules.policies.as_deref().unwrap_or_default();
    if policies.is_empty() {
        causes.push(Cause::required(format!("{path}.policies"), "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        let at = |field: &str| format!("{path}.policies[{index}].{field}");
        one_of(&at("type"), &policy.type_, &["Percent", "Pods"], causes);
        if policy.value <= 0 {
            causes.push(Cause::invalid(at("value"), policy.value, "must be greater than zero"));
        }
        if policy.period_seconds <= 0 {
            causes.push(Cause::invalid(
                at("periodSeconds"),
                policy.period_seconds,
                "must be greater than zero",
            ));
        } else if policy.period_seconds > PERIOD_S_MAX {
            let why = format!("must be less than or equal to {PERIOD_S_MAX}");
            causes.push(Cause::invalid(at("periodSeconds"), policy.period_seconds, &why));
        }
    }
}
