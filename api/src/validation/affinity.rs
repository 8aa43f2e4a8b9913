//! Validation of where a pod may run: node selectors, affinity, tolerations, spreading.

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Toleration,
    TopologySpreadConstraint,
};

use super::{invalid_each, one_of};
use crate::name;
use crate::selector::LabelSelector;
use crate::status::Cause;

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// A taint's or toleration's effect.
pub(super) fn effect(field: &str, effect: &str, allow_empty: bool, causes: &mut Vec<Cause>) {
    if !(allow_empty && effect.is_empty()) {
        one_of(field, effect, EFFECTS, causes);
    }
}

pub(super) fn tolerations(path: &str, tolerations: &[Toleration], causes: &mut Vec<Cause>) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let key = toleration.key.as_deref().unwrap_or("");
        let operator = toleration.operator.as_deref().unwrap_or("");
        let value = toleration.value.as_deref().unwrap_or("");
        let effect_text = toleration.effect.as_deref().unwrap_or("");
        if !key.is_empty() {
            invalid_each(&format!("{path}.key"), key, name::qualified_name(key), causes);
        } else if operator != "Exists" {
            causes.push(Cause::invalid(
                format!("{path}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration.toleration_seconds.is_some() && effect_text != "NoExecute" {
            causes.push(Cause::invalid(
                format!("{path}.effect"),
                effect_text,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "" | "Equal" => {
                invalid_each(&format!("{path}.operator"), value, name::label_value(value), causes)
            }
            "Exists" if !value.is_empty() => causes.push(Cause::invalid(
                format!("{path}.operator"),
                value,
                "value must be empty when `operator` is 'Exists'",
            )),
            "Exists" => {}
            other => {
                causes.push(Cause::not_supported(format!("{path}.operator"), other, &["Equal", "Exists"]));
            }
        }
        effect(&format!("{path}.effect"), effect_text, true, causes);
    }
}

pub(super) fn affinity(path: &str, affinity: &Affinity, causes: &mut Vec<Cause>) {
    if let Some(node) = &affinity.node_affinity {
        let path = format!("{path}.nodeAffinity");
        if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
            let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
            if required.node_selector_terms.is_empty() {
                causes.push(Cause::required(path.as_str(), "must have at least one node selector term"));
            }
            for (index, term) in required.node_selector_terms.iter().enumerate() {
                node_term(&format!("{path}[{index}]"), term, causes);
            }
        }
        for (index, term) in
            node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate()
        {
            let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{index}]");
            weight(&path, term.weight, causes);
            node_term(&format!("{path}.preference"), &term.preference, causes);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let path = format!("{path}.podAffinity");
        required_pods(&path, pods.required_during_scheduling_ignored_during_execution.as_deref(), causes);
        for (index, term) in
            pods.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate()
        {
            let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{index}]");
            weight(&path, term.weight, causes);
            pod_term(&format!("{path}.podAffinityTerm"), &term.pod_affinity_term, causes);
        }
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let path = format!("{path}.podAntiAffinity");
        required_pods(&path, pods.required_during_scheduling_ignored_during_execution.as_deref(), causes);
        for (index, term) in
            pods.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate()
        {
            let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{index}]");
            weight(&path, term.weight, causes);
            pod_term(&format!("{path}.podAffinityTerm"), &term.pod_affinity_term, causes);
        }
    }
}

fn required_pods(path: &str, terms: Option<&[PodAffinityTerm]>, causes: &mut Vec<Cause>) {
    for (index, term) in terms.unwrap_or_default().iter().enumerate() {
        pod_term(&format!("{path}.requiredDuringSchedulingIgnoredDuringExecution[{index}]"), term, causes);
    }
}

fn weight(path: &str, weight: i32, causes: &mut Vec<Cause>) {
    if !(1..=100).contains(&weight) {
        causes.push(Cause::invalid(format!("{path}.weight"), weight, "must be in the range 1-100"));
    }
}

fn node_term(path: &str, term: &NodeSelectorTerm, causes: &mut Vec<Cause>) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        node_requirement(&path, requirement, causes);
        invalid_each(
            &format!("{path}.key"),
            &requirement.key,
            name::qualified_name(&requirement.key),
            causes,
        );
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        if requirement.key != "metadata.name" {
            causes.push(Cause::invalid(
                format!("{path}.key"),
                requirement.key.as_str(),
                "not a valid field selector key",
            ));
        }
        let values = requirement.values.as_ref().map_or(0, Vec::len);
        if !matches!(requirement.operator.as_str(), "In" | "NotIn") {
            causes.push(Cause::invalid(
                format!("{path}.operator"),
                requirement.operator.as_str(),
                "not a valid selector operator",
            ));
        } else if values != 1 {
            causes.push(Cause::required(
                format!("{path}.values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
    }
}

fn node_requirement(path: &str, requirement: &NodeSelectorRequirement, causes: &mut Vec<Cause>) {
    let values = requirement.values.as_ref().map_or(0, Vec::len);
    let field = format!("{path}.values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values == 0 => {
            causes.push(Cause::required(field, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            causes.push(Cause::forbidden(
                field,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        "Gt" | "Lt" if values != 1 => {
            causes.push(Cause::required(
                field,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => {
            causes.push(Cause::invalid(format!("{path}.operator"), other, "not a valid selector operator"))
        }
    }
}

fn pod_term(path: &str, term: &PodAffinityTerm, causes: &mut Vec<Cause>) {
    if let Err(message) = LabelSelector::from_typed(term.label_selector.as_ref()) {
        causes.push(Cause::invalid(format!("{path}.labelSelector"), serde_json::Value::Null, &message));
    }
    for namespace in term.namespaces.iter().flatten() {
        invalid_each(&format!("{path}.namespaces"), namespace, name::dns1123_label(namespace), causes);
    }
    if term.topology_key.is_empty() {
        causes.push(Cause::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        let field = format!("{path}.topologyKey");
        invalid_each(&field, &term.topology_key, name::qualified_name(&term.topology_key), causes);
    }
}

pub(super) fn spread(path: &str, constraints: &[TopologySpreadConstraint], causes: &mut Vec<Cause>) {
    for (index, constraint) in constraints.iter().enumerate() {
        let place = format!("{path}[{index}]");
        if constraint.max_skew <= 0 {
            causes.push(Cause::invalid(
                format!("{place}.maxSkew"),
                constraint.max_skew,
                "must be greater than zero",
            ));
        }
        if constraint.topology_key.is_empty() {
            causes.push(Cause::required(format!("{place}.topologyKey"), "can not be empty"));
        }
        let unsatisfiable = constraint.when_unsatisfiable.as_str();
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        if !supported.contains(&unsatisfiable) {
            causes.push(Cause::not_supported(
                format!("{place}.whenUnsatisfiable"),
                unsatisfiable,
                &supported,
            ));
        }
        if constraint.min_domains.is_some_and(|n| n <= 0) {
            let domains = constraint.min_domains.unwrap_or(0);
            causes.push(Cause::invalid(format!("{place}.minDomains"), domains, "must be greater than zero"));
        }
        if constraint.min_domains.is_some() && unsatisfiable != "DoNotSchedule" {
            causes.push(Cause::invalid(
                format!("{place}.minDomains"),
                constraint.min_domains.unwrap_or(0),
                &format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {unsatisfiable}"),
            ));
        }
        let twin = constraints[..index]
            .iter()
            .any(|c| c.topology_key == constraint.topology_key && c.when_unsatisfiable == unsatisfiable);
        if twin {
            causes.push(Cause::duplicate(
                format!("{place}.{{topologyKey, whenUnsatisfiable}}"),
                format!("{{{}, {unsatisfiable}}}", constraint.topology_key),
            ));
        }
        if let Err(message) = LabelSelector::from_typed(constraint.label_selector.as_ref()) {
            causes.push(Cause::invalid(format!("{place}.labelSelector"), serde_json::Value::Null, &message));
        }
    }
}
