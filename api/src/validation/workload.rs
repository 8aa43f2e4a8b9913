//! Validation of what makes pods of a template.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, DeploymentSpec, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplate, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as TypedSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::{metadata, not_negative, one_of, pod};
use crate::selector::LabelSelector;
use crate::status::Cause;

/// What every kind here has.
struct Common<'a> {
    /// In the words of messages.
    kind: &'static str,
    replicas: Option<i32>,
    min_ready_s: Option<i32>,
    selector: &'a TypedSelector,
    template: Option<&'a PodTemplateSpec>,
}

pub(super) fn replica_set(set: &ReplicaSet, causes: &mut Vec<Cause>) {
    let Some(spec) = &set.spec else { return no_spec(causes) };
    let common = Common {
        kind: "ReplicaSet",
        replicas: spec.replicas,
        min_ready_s: spec.min_ready_seconds,
        selector: &spec.selector,
        template: spec.template.as_ref(),
    };
    check(&common, causes);
}

pub(super) fn deployment(deployment: &Deployment, causes: &mut Vec<Cause>) {
    let Some(spec) = &deployment.spec else { return no_spec(causes) };
    let common = Common {
        kind: "Deployment",
        replicas: spec.replicas,
        min_ready_s: spec.min_ready_seconds,
        selector: &spec.selector,
        template: Some(&spec.template),
    };
    check(&common, causes);
    not_negative("spec.revisionHistoryLimit", spec.revision_history_limit.unwrap_or(0), causes);
    if let Some(deadline) = spec.progress_deadline_seconds {
        not_negative("spec.progressDeadlineSeconds", deadline, causes);
        if deadline <= spec.min_ready_seconds.unwrap_or(0) {
            let why = "must be greater than minReadySeconds";
            causes.push(Cause::invalid("spec.progressDeadlineSeconds", deadline, why));
        }
    }
    strategy(spec, causes);
}

pub(super) fn replication_controller(controller: &ReplicationController, causes: &mut Vec<Cause>) {
    let spec = controller.spec.clone().unwrap_or_default();
    let selector = TypedSelector { match_labels: spec.selector, ..TypedSelector::default() };
    let common = Common {
        kind: "ReplicationController",
        replicas: spec.replicas,
        min_ready_s: spec.min_ready_seconds,
        selector: &selector,
        template: spec.template.as_ref(),
    };
    check(&common, causes);
}

pub(super) fn stateful_set(set: &StatefulSet, causes: &mut Vec<Cause>) {
    let Some(spec) = &set.spec else { return no_spec(causes) };
    let common = Common {
        kind: "StatefulSet",
        replicas: spec.replicas,
        min_ready_s: spec.min_ready_seconds,
        selector: &spec.selector,
        template: Some(&spec.template),
    };
    check(&common, causes);
    not_negative("spec.revisionHistoryLimit", spec.revision_history_limit.unwrap_or(0), causes);
    if let Some(start) = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start) {
        not_negative("spec.ordinals.start", start, causes);
    }
    let policy = spec.pod_management_policy.as_deref().unwrap_or_default();
    one_of("spec.podManagementPolicy", policy, &["OrderedReady", "Parallel"], causes);
    if let Some(retention) = &spec.persistent_volume_claim_retention_policy {
        for (field, policy) in
            [("whenDeleted", &retention.when_deleted), ("whenScaled", &retention.when_scaled)]
        {
            let field = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
            one_of(&field, policy.as_deref().unwrap_or_default(), &["Delete", "Retain"], causes);
        }
    }
    let Some(strategy) = &spec.update_strategy else { return };
    let kind = strategy.type_.as_deref().unwrap_or_default();
    one_of("spec.updateStrategy.type", kind, &["OnDelete", "RollingUpdate"], causes);
    let Some(rolling) = &strategy.rolling_update else { return };
    if kind == "OnDelete" {
        let why = "only allowed for updateStrategy 'RollingUpdate'";
        return causes.push(Cause::invalid("spec.updateStrategy.rollingUpdate", json!(rolling), why));
    }
    not_negative("spec.updateStrategy.rollingUpdate.partition", rolling.partition.unwrap_or(0), causes);
    let field = "spec.updateStrategy.rollingUpdate.maxUnavailable";
    if amount(field, rolling.max_unavailable.as_ref(), causes) == Some(0) {
        causes.push(Cause::invalid(field, json!(rolling.max_unavailable), "cannot be 0"));
    }
}

pub(super) fn daemon_set(set: &DaemonSet, causes: &mut Vec<Cause>) {
    let Some(spec) = &set.spec else { return no_spec(causes) };
    let common = Common {
        kind: "DaemonSet",
        replicas: None,
        min_ready_s: spec.min_ready_seconds,
        selector: &spec.selector,
        template: Some(&spec.template),
    };
    check(&common, causes);
    not_negative("spec.revisionHistoryLimit", spec.revision_history_limit.unwrap_or(0), causes);
    let Some(strategy) = &spec.update_strategy else { return };
    let kind = strategy.type_.as_deref().unwrap_or_default();
    one_of("spec.updateStrategy.type", kind, &["OnDelete", "RollingUpdate"], causes);
    if kind != "RollingUpdate" {
        return;
    }
    let Some(rolling) = &strategy.rolling_update else {
        return causes.push(Cause::required("spec.updateStrategy.rollingUpdate", ""));
    };
    let path = "spec.updateStrategy.rollingUpdate";
    let unavailable = amount(&format!("{path}.maxUnavailable"), rolling.max_unavailable.as_ref(), causes);
    let surge = amount(&format!("{path}.maxSurge"), rolling.max_surge.as_ref(), causes);
    match (unavailable.unwrap_or(0), surge.unwrap_or(0)) {
        (0, 0) => {
            let field = format!("{path}.maxUnavailable");
            causes.push(Cause::invalid(
                field,
                json!(rolling.max_unavailable),
                "cannot be 0 when maxSurge is 0",
            ));
        }
        (unavailable, surge) if unavailable != 0 && surge != 0 => {
            let why = "may not be set when maxUnavailable is non-zero";
            causes.push(Cause::invalid(format!("{path}.maxSurge"), json!(rolling.max_surge), why));
        }
        _ => {}
    }
}

pub(super) fn controller_revision(revision: &ControllerRevision, causes: &mut Vec<Cause>) {
    if revision.data.is_none() {
        causes.push(Cause::required("data", "data is mandatory"));
    }
    not_negative("revision", revision.revision, causes);
}

/// A revision is written once.
pub(super) fn controller_revision_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["data"] != new["data"] {
        causes.push(Cause::invalid("data", new["data"].clone(), "field is immutable"));
    }
}

pub(super) fn pod_template(template: &PodTemplate, causes: &mut Vec<Cause>) {
    let mut inner = Vec::new();
    let spec = template.template.as_ref().and_then(|template| template.spec.clone());
    pod::check(&Pod { spec, ..Pod::default() }, &mut inner);
    causes
        .extend(inner.into_iter().map(|cause| Cause { field: format!("template.{}", cause.field), ..cause }));
}

fn no_spec(causes: &mut Vec<Cause>) {
    causes.push(Cause::required("spec.selector", ""));
    causes.push(Cause::required("spec.template", ""));
}

fn check(of: &Common<'_>, causes: &mut Vec<Cause>) {
    not_negative("spec.replicas", of.replicas.unwrap_or(0), causes);
    not_negative("spec.minReadySeconds", of.min_ready_s.unwrap_or(0), causes);
    let value = || serde_json::to_value(of.selector).unwrap_or(Value::Null);
    let is_empty = of.selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && of.selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    let selector = LabelSelector::from_typed(Some(of.selector));
    match &selector {
        _ if is_empty => {
            let why = format!("empty selector is invalid for {}", of.kind.to_lowercase());
            causes.push(Cause::invalid("spec.selector", value(), &why));
        }
        Err(why) => causes.push(Cause::invalid("spec.selector", value(), why)),
        Ok(_) => {}
    }
    let Some(template) = of.template else {
        return causes.push(Cause::required("spec.template", ""));
    };
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    if let Ok(selector) = selector
        && !is_empty
        && !selector.matches_object(&json!({"metadata": {"labels": labels}}))
    {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", json!(labels), why));
    }
    check_template("spec.template", template, causes);
    let spec = template.spec.as_ref();
    let policy = spec.and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    // An unknown one is told already.
    if matches!(policy, "Never" | "OnFailure") {
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if spec.is_some_and(|spec| spec.active_deadline_seconds.is_some()) {
        let why = format!("activeDeadlineSeconds in {} is not Supported", of.kind);
        causes.push(Cause::forbidden("spec.template.spec.activeDeadlineSeconds", &why));
    }
}

/// Labels and pod of a template.
pub(super) fn check_template(path: &str, template: &PodTemplateSpec, causes: &mut Vec<Cause>) {
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    let labels: Map<String, Value> =
        labels.into_iter().flatten().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    metadata::labels(&format!("{path}.metadata.labels"), &labels, causes);
    let mut inner = Vec::new();
    pod::check(&Pod { spec: template.spec.clone(), ..Pod::default() }, &mut inner);
    causes.extend(inner.into_iter().map(|cause| Cause { field: format!("{path}.{}", cause.field), ..cause }));
}

fn strategy(spec: &DeploymentSpec, causes: &mut Vec<Cause>) {
    let Some(strategy) = &spec.strategy else { return };
    let kind = strategy.type_.as_deref().unwrap_or_default();
    one_of("spec.strategy.type", kind, &["Recreate", "RollingUpdate"], causes);
    let Some(rolling) = &strategy.rolling_update else { return };
    if kind == "Recreate" {
        let why = "may not be specified when strategy `type` is \'Recreate\'";
        return causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
    }
    let unavailable =
        amount("spec.strategy.rollingUpdate.maxUnavailable", rolling.max_unavailable.as_ref(), causes);
    let surge = amount("spec.strategy.rollingUpdate.maxSurge", rolling.max_surge.as_ref(), causes);
    let shown = json!(rolling.max_unavailable);
    if unavailable == Some(0) && surge == Some(0) {
        let (field, why) =
            ("spec.strategy.rollingUpdate.maxUnavailable", "may not be 0 when `maxSurge` is 0");
        causes.push(Cause::invalid(field, shown, why));
    } else if matches!(rolling.max_unavailable, Some(IntOrString::String(_)))
        && unavailable.is_some_and(|percent| percent > 100)
    {
        let field = "spec.strategy.rollingUpdate.maxUnavailable";
        causes.push(Cause::invalid(field, shown, "must not be greater than 100%"));
    }
}

/// A number or a percentage, as a number.
pub(super) fn amount(field: &str, amount: Option<&IntOrString>, causes: &mut Vec<Cause>) -> Option<i64> {
    match amount? {
        IntOrString::Int(number) => {
            not_negative(field, *number, causes);
            Some(i64::from(*number))
        }
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            let percent = percent.and_then(|digits| digits.parse().ok());
            if percent.is_none() {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                           '93%', regex used for validation is '[0-9]+%')";
                causes.push(Cause::invalid(field, text.as_str(), why));
            }
            percent
        }
    }
}

/// What a StatefulSet's pods have been made by may not change: names and volumes hang on it.
pub(super) fn stateful_set_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let rest = |set: &Value| {
        let mut spec = set["spec"].clone();
        if let Some(members) = spec.as_object_mut() {
            for free in [
                "minReadySeconds",
                "ordinals",
                "persistentVolumeClaimRetentionPolicy",
                "replicas",
                "revisionHistoryLimit",
                "template",
                "updateStrategy",
            ] {
                members.remove(free);
            }
        }
        spec
    };
    if rest(old) != rest(new) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                   'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                   'minReadySeconds' are forbidden";
        causes.push(Cause::forbidden("spec", why));
    }
}

/// Which pods are whose may not change.
pub(super) fn update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let (before, after) = (&old["spec"]["selector"], &new["spec"]["selector"]);
    if before != after {
        causes.push(Cause::invalid("spec.selector", after.clone(), "field is immutable"));
    }
}
