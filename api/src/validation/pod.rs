//! Validation of pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, PodSpec};
use serde_json::{Map, Value};

use super::container::{self, Context};
use super::{affinity, invalid_each, metadata, one_of, volume};
use crate::name;
use crate::status::Cause;

const ID_MAX: i64 = i32::MAX as i64;
/// Default grace period, as the defaults set it.
const GRACE_S: i64 = 30;

/// What may be on a stored pod but not on a new one.
pub(super) fn create_only(pod: &Value, causes: &mut Vec<Cause>) {
    let length = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
    if length("/spec/ephemeralContainers") > 0 {
        causes.push(Cause::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
    if bound && length("/spec/schedulingGates") > 0 {
        causes.push(Cause::forbidden(
            "spec.nodeName",
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

pub(super) fn check(pod: &Pod, causes: &mut Vec<Cause>) {
    match &pod.spec {
        None => causes.push(Cause::required("spec.containers", "")),
        Some(spec) => pod_spec(spec, causes),
    }
}

fn pod_spec(spec: &PodSpec, causes: &mut Vec<Cause>) {
    let volumes = volume::volumes("spec.volumes", spec.volumes.as_deref().unwrap_or_default(), causes);
    let context = Context {
        volumes: &volumes,
        init: false,
        host_network: spec.host_network.unwrap_or(false),
        grace_s: spec.termination_grace_period_seconds.unwrap_or(GRACE_S),
    };
    let mut names = BTreeSet::new();
    if spec.containers.is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    container::containers("spec.containers", &spec.containers, &context, &mut names, causes);
    let init = Context { init: true, ..context };
    let init_containers = spec.init_containers.as_deref().unwrap_or_default();
    container::containers("spec.initContainers", init_containers, &init, &mut names, causes);
    one_of(
        "spec.restartPolicy",
        spec.restart_policy.as_deref().unwrap_or(""),
        &["Always", "Never", "OnFailure"],
        causes,
    );
    one_of(
        "spec.dnsPolicy",
        spec.dns_policy.as_deref().unwrap_or(""),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        causes,
    );
    names_in_spec(spec, causes);
    network(spec, causes);
    placement(spec, causes);
    if let Some(security) = &spec.security_context {
        pod_security(security, causes);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        causes.push(Cause::invalid(
            "spec.shareProcessNamespace",
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    if spec.host_users == Some(false) {
        host_users(spec, causes);
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=ID_MAX).contains(&seconds)
    {
        let detail = format!("must be between 1 and {ID_MAX}, inclusive");
        causes.push(Cause::invalid("spec.activeDeadlineSeconds", seconds, &detail));
    }
}

/// A pod with a user namespace of its own has no rights over the host's namespaces. The paths are written as
/// Kubernetes writes them.
fn host_users(spec: &PodSpec, causes: &mut Vec<Cause>) {
    let of_host = [
        ("spec.hostNetwork", spec.host_network),
        ("spec.HostPID", spec.host_pid),
        ("spec.HostIPC", spec.host_ipc),
    ];
    for (field, _) in of_host.into_iter().filter(|(_, asked)| *asked == Some(true)) {
        causes.push(Cause::forbidden(field, "when `hostUsers` is false"));
    }
}

fn names_in_spec(spec: &PodSpec, causes: &mut Vec<Cause>) {
    for (field, text) in [
        ("spec.serviceAccountName", &spec.service_account_name),
        ("spec.nodeName", &spec.node_name),
        ("spec.priorityClassName", &spec.priority_class_name),
        ("spec.runtimeClassName", &spec.runtime_class_name),
    ] {
        if let Some(text) = text.as_deref().filter(|t| !t.is_empty()) {
            invalid_each(field, text, name::dns1123_subdomain(text), causes);
        }
    }
    if let Some(text) = spec.scheduler_name.as_deref().filter(|t| !t.is_empty()) {
        invalid_each("spec.schedulerName", text, name::dns1123_subdomain(text), causes);
    }
    for (field, text) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(text) = text.as_deref().filter(|t| !t.is_empty()) {
            invalid_each(field, text, name::dns1123_label(text), causes);
        }
    }
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        if secret.name.is_empty() {
            causes.push(Cause::required(format!("spec.imagePullSecrets[{index}].name"), ""));
        }
    }
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let field = format!("spec.readinessGates[{index}].conditionType");
        invalid_each(&field, &gate.condition_type, name::qualified_name(&gate.condition_type), causes);
    }
    let mut gates = BTreeSet::new();
    for (index, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        invalid_each("spec.schedulingGates", &gate.name, name::qualified_name(&gate.name), causes);
        if !gates.insert(gate.name.as_str()) {
            causes.push(Cause::duplicate(format!("spec.schedulingGates[{index}]"), gate.name.as_str()));
        }
    }
}

fn network(spec: &PodSpec, causes: &mut Vec<Cause>) {
    for alias in spec.host_aliases.iter().flatten() {
        if alias.ip.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(
                "spec.hostAliases.ip",
                alias.ip.as_str(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
        for host in alias.hostnames.iter().flatten() {
            invalid_each("spec.hostAliases.hostnames", host, name::dns1123_subdomain(host), causes);
        }
    }
    let servers = spec.dns_config.as_ref().and_then(|c| c.nameservers.as_deref()).unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        causes.push(Cause::required(
            "spec.dnsConfig.nameservers",
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        causes.push(Cause::invalid("spec.dnsConfig.nameservers", Value::from(servers.to_vec()), detail));
    }
    for (index, server) in servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(
                format!("spec.dnsConfig.nameservers[{index}]"),
                server.as_str(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    }
}

fn placement(spec: &PodSpec, causes: &mut Vec<Cause>) {
    if let Some(selector) = &spec.node_selector {
        let selector: Map<String, Value> =
            selector.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        metadata::labels("spec.nodeSelector", &selector, causes);
    }
    if let Some(constraints) = &spec.affinity {
        affinity::affinity("spec.affinity", constraints, causes);
    }
    affinity::tolerations("spec.tolerations", spec.tolerations.as_deref().unwrap_or_default(), causes);
    affinity::spread(
        "spec.topologySpreadConstraints",
        spec.topology_spread_constraints.as_deref().unwrap_or_default(),
        causes,
    );
}

fn pod_security(security: &PodSecurityContext, causes: &mut Vec<Cause>) {
    let path = "spec.securityContext";
    for (field, id) in [
        ("runAsUser", security.run_as_user),
        ("runAsGroup", security.run_as_group),
        ("fsGroup", security.fs_group),
    ] {
        user_id(&format!("{path}.{field}"), id, causes);
    }
    for (index, group) in security.supplemental_groups.iter().flatten().enumerate() {
        user_id(&format!("{path}.supplementalGroups[{index}]"), Some(*group), causes);
    }
}

/// A user's or group's number.
pub(super) fn user_id(field: &str, id: Option<i64>, causes: &mut Vec<Cause>) {
    if let Some(id) = id
        && !(0..=ID_MAX).contains(&id)
    {
        causes.push(Cause::invalid(field, id, &format!("must be between 0 and {ID_MAX}, inclusive")));
    }
}
