//! Validation of a pod's containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource};

use super::handler::{self, Purpose};
use super::volume::{Names, relative_path};
use super::{invalid_each, one_of, resources};
use crate::name;
use crate::status::Cause;

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PROPAGATIONS: &[&str] = &["Bidirectional", "HostToContainer", "None"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// What the containers of a list share.
pub(super) struct Context<'a> {
    /// Volumes that may be mounted.
    pub(super) volumes: &'a Names<'a>,
    /// Whether the containers run before the others.
    pub(super) init: bool,
    /// Whether the pod shares its node's network.
    pub(super) host_network: bool,
    /// The pod's grace period.
    pub(super) grace_s: i64,
}

/// Checks a list of containers. `names` holds the names seen in earlier lists of the pod.
pub(super) fn containers<'a>(
    path: &str,
    containers: &'a [Container],
    context: &Context<'_>,
    names: &mut BTreeSet<&'a str>,
    causes: &mut Vec<Cause>,
) {
    for (index, container) in containers.iter().enumerate() {
        let path = format!("{path}[{index}]");
        one(&path, container, context, causes);
        if !container.name.is_empty() && !names.insert(&container.name) {
            causes.push(Cause::duplicate(format!("{path}.name"), container.name.as_str()));
        }
        lifecycle(&path, container, context, causes);
    }
    if !context.init {
        host_ports(path, containers, causes);
    }
}

fn one(path: &str, container: &Container, context: &Context<'_>, causes: &mut Vec<Cause>) {
    if container.name.is_empty() {
        causes.push(Cause::required(format!("{path}.name"), ""));
    } else {
        invalid_each(&format!("{path}.name"), &container.name, name::dns1123_label(&container.name), causes);
    }
    let image = container.image.as_deref().unwrap_or("");
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        causes.push(Cause::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(
        &format!("{path}.terminationMessagePolicy"),
        container.termination_message_policy.as_deref().unwrap_or(""),
        &["FallbackToLogsOnError", "File"],
        causes,
    );
    ports(&format!("{path}.ports"), container.ports.as_deref().unwrap_or_default(), context, causes);
    env(&format!("{path}.env"), container.env.as_deref().unwrap_or_default(), causes);
    env_from(&format!("{path}.envFrom"), container.env_from.as_deref().unwrap_or_default(), causes);
    mounts(path, container, context, causes);
    one_of(
        &format!("{path}.imagePullPolicy"),
        container.image_pull_policy.as_deref().unwrap_or(""),
        PULL_POLICIES,
        causes,
    );
    if let Some(requirements) = &container.resources {
        resources::requirements(&format!("{path}.resources"), requirements, causes);
    }
    security(path, container, causes);
}

fn security(path: &str, container: &Container, causes: &mut Vec<Cause>) {
    let Some(security) = &container.security_context else { return };
    let path = format!("{path}.securityContext");
    for (field, id) in [("runAsUser", security.run_as_user), ("runAsGroup", security.run_as_group)] {
        super::pod::user_id(&format!("{path}.{field}"), id, causes);
    }
    if security.allow_privilege_escalation == Some(false) {
        if security.privileged == Some(true) {
            causes.push(Cause::invalid(
                path.as_str(),
                serde_json::Value::Null,
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        let adds = security.capabilities.as_ref().and_then(|c| c.add.as_ref());
        if adds.is_some_and(|a| a.iter().any(|c| c == "CAP_SYS_ADMIN")) {
            causes.push(Cause::invalid(
                path,
                serde_json::Value::Null,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
}

fn lifecycle(path: &str, container: &Container, context: &Context<'_>, causes: &mut Vec<Cause>) {
    let sidecar = container.restart_policy.as_deref() == Some("Always");
    if let Some(policy) = &container.restart_policy {
        let field = format!("{path}.restartPolicy");
        if !context.init {
            causes.push(Cause::forbidden(field, "may not be set for non-init containers"));
        } else if !sidecar {
            causes.push(Cause::not_supported(field, policy.as_str(), &["Always"]));
        }
    }
    if context.init && !sidecar {
        for (field, set) in [
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
        ] {
            if set {
                causes.push(Cause::forbidden(
                    format!("{path}.{field}"),
                    "may not be set for init containers without restartPolicy=Always",
                ));
            }
        }
        return;
    }
    if let Some(lifecycle) = &container.lifecycle {
        handler::lifecycle(&format!("{path}.lifecycle"), lifecycle, context.grace_s, causes);
    }
    for (field, probe, purpose) in [
        ("livenessProbe", &container.liveness_probe, Purpose::Liveness),
        ("readinessProbe", &container.readiness_probe, Purpose::Readiness),
        ("startupProbe", &container.startup_probe, Purpose::Startup),
    ] {
        if let Some(probe) = probe {
            handler::probe(&format!("{path}.{field}"), probe, purpose, causes);
        }
    }
}

fn ports(path: &str, ports: &[ContainerPort], context: &Context<'_>, causes: &mut Vec<Cause>) {
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(text) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let messages = name::port_name(text);
            if !messages.is_empty() {
                invalid_each(&format!("{path}.name"), text, messages, causes);
            } else if !names.insert(text) {
                causes.push(Cause::duplicate(format!("{path}.name"), text));
            }
        }
        let range = |field: &str, number: i32, causes: &mut Vec<Cause>| {
            for message in name::port_number(i64::from(number)) {
                causes.push(Cause::invalid(format!("{path}.{field}"), number, &message));
            }
        };
        if port.container_port == 0 {
            causes.push(Cause::required(format!("{path}.containerPort"), ""));
        } else {
            range("containerPort", port.container_port, causes);
        }
        let host_port = port.host_port.unwrap_or(0);
        if host_port != 0 {
            range("hostPort", host_port, causes);
            if context.host_network && host_port != port.container_port {
                causes.push(Cause::invalid(
                    format!("{path}.hostPort"),
                    host_port,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
        one_of(&format!("{path}.protocol"), port.protocol.as_deref().unwrap_or(""), PROTOCOLS, causes);
    }
}

/// Two containers of a pod cannot have the same port of the node.
fn host_ports(path: &str, containers: &[Container], causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (port_index, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|n| *n != 0) else { continue };
            let key = format!(
                "{}/{}/{number}",
                port.protocol.as_deref().unwrap_or(""),
                port.host_ip.as_deref().unwrap_or("")
            );
            if !seen.insert(key.clone()) {
                causes.push(Cause::duplicate(format!("{path}[{index}].ports[{port_index}].hostPort"), key));
            }
        }
    }
}

fn env(path: &str, variables: &[EnvVar], causes: &mut Vec<Cause>) {
    for (index, variable) in variables.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if variable.name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else {
            invalid_each(&format!("{path}.name"), &variable.name, name::env_var_name(&variable.name), causes);
        }
        if let Some(source) = &variable.value_from {
            let has_value = variable.value.as_deref().is_some_and(|v| !v.is_empty());
            env_source(&format!("{path}.valueFrom"), source, has_value, causes);
        }
    }
}

fn env_source(path: &str, source: &EnvVarSource, has_value: bool, causes: &mut Vec<Cause>) {
    let mut set = 0;
    if let Some(field) = &source.field_ref {
        set += 1;
        let place = format!("{path}.fieldRef.fieldPath");
        let map_key = |prefix: &str| field.field_path.starts_with(prefix) && field.field_path.ends_with("']");
        if field.field_path.is_empty() {
            causes.push(Cause::required(place, ""));
        } else if !ENV_FIELDS.contains(&field.field_path.as_str())
            && !map_key("metadata.labels['")
            && !map_key("metadata.annotations['")
        {
            causes.push(Cause::not_supported(place, field.field_path.as_str(), ENV_FIELDS));
        }
    }
    if let Some(resource) = &source.resource_field_ref {
        set += 1;
        if resource.resource.is_empty() {
            causes.push(Cause::required(format!("{path}.resourceFieldRef.resource"), ""));
        }
    }
    for (field, reference) in [
        ("configMapKeyRef", source.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", source.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ] {
        let Some((object, key)) = reference else { continue };
        set += 1;
        if object.is_empty() {
            causes.push(Cause::required(format!("{path}.{field}.name"), ""));
        }
        if key.is_empty() {
            causes.push(Cause::required(format!("{path}.{field}.key"), ""));
        } else {
            invalid_each(&format!("{path}.{field}.key"), key, name::config_map_key(key), causes);
        }
    }
    if set == 0 {
        causes.push(Cause::invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ));
    } else if has_value {
        causes.push(Cause::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if set > 1 {
        causes.push(Cause::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

fn env_from(path: &str, sources: &[EnvFromSource], causes: &mut Vec<Cause>) {
    for (index, source) in sources.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            invalid_each(&format!("{path}.prefix"), prefix, name::env_var_name(prefix), causes);
        }
        let references = [
            ("configMapRef", source.config_map_ref.as_ref().map(|r| &r.name)),
            ("secretRef", source.secret_ref.as_ref().map(|r| &r.name)),
        ];
        for (field, reference) in &references {
            if reference.is_some_and(String::is_empty) {
                causes.push(Cause::required(format!("{path}.{field}.name"), ""));
            }
        }
        match references.iter().filter(|(_, r)| r.is_some()).count() {
            0 => causes.push(Cause::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => {
                causes.push(Cause::invalid(path, "", "may not have more than one field specified at a time"));
            }
        }
    }
}

fn mounts(path: &str, container: &Container, context: &Context<'_>, causes: &mut Vec<Cause>) {
    let mut places = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        }
        if mount.mount_path.is_empty() {
            causes.push(Cause::required(format!("{path}.mountPath"), ""));
        }
        if !context.volumes.contains_key(mount.name.as_str()) {
            causes.push(Cause::not_found(format!("{path}.name"), mount.name.as_str()));
        }
        if !places.insert(mount.mount_path.as_str()) {
            causes.push(Cause::invalid(
                format!("{path}.mountPath"),
                mount.mount_path.as_str(),
                "must be unique",
            ));
        }
        if let Some(sub_path) = mount.sub_path.as_deref().filter(|p| !p.is_empty()) {
            relative_path(&format!("{path}.subPath"), sub_path, causes);
        }
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|p| !p.is_empty()) {
            if mount.sub_path.as_deref().is_some_and(|p| !p.is_empty()) {
                let detail = "subPathExpr and subPath are mutually exclusive";
                causes.push(Cause::invalid(format!("{path}.subPathExpr"), expression, detail));
            }
            relative_path(&format!("{path}.subPathExpr"), expression, causes);
        }
        if let Some(propagation) = mount.mount_propagation.as_deref()
            && !PROPAGATIONS.contains(&propagation)
        {
            causes.push(Cause::not_supported(format!("{path}.mountPropagation"), propagation, PROPAGATIONS));
        }
        let is_privileged = container.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        if mount.mount_propagation.as_deref() == Some("Bidirectional") && !is_privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            causes.push(Cause::forbidden(format!("{path}.mountPropagation"), why));
        }
    }
    for (index, device) in container.volume_devices.iter().flatten().enumerate() {
        let path = format!("{path}.volumeDevices[{index}]");
        if device.device_path.is_empty() {
            causes.push(Cause::required(format!("{path}.devicePath"), ""));
        } else if !places.insert(device.device_path.as_str()) {
            let detail = "must be unique";
            causes.push(Cause::invalid(format!("{path}.devicePath"), device.device_path.as_str(), detail));
        }
        match context.volumes.get(device.name.as_str()) {
            None => causes.push(Cause::not_found(format!("{path}.name"), device.name.as_str())),
            Some(false) => causes.push(Cause::invalid(
                format!("{path}.name"),
                device.name.as_str(),
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            )),
            Some(true) => {}
        }
    }
}
