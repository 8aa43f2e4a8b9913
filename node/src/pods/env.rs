//! A container's environment, command line and working directory: values, fields, resource fields, `$(NAME)`.
//!
//! What comes out of ConfigMaps and Secrets is in `env_from`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::quantity::Quantity;
use api::status::quoted;
use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector,
};

use super::env_from::{self, Sources};
use super::qos;
use crate::images::ImageConfig;

/// What environment and command line are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) image: &'a ImageConfig,
    pub(crate) hostname: &'a str,
    pub(crate) pod_ip: Option<IpAddr>,
    pub(crate) host_ip: IpAddr,
    /// The node's allocatable CPU (milli) and memory (bytes): what "no limit" means.
    pub(crate) allocatable: (i64, i64),
    /// What names the Services.
    pub(crate) services: &'a BTreeMap<String, String>,
    /// Where ConfigMaps and Secrets are found.
    pub(crate) sources: Sources<'a>,
}

/// `NAME=value` entries: the image's, HOSTNAME, the Services', then the container's in order.
pub(crate) fn environment(around: Surroundings<'_>) -> Result<Vec<String>, String> {
    let mut own: Vec<(String, String)> = env_from::all(around.sources, around.container)?;
    let mut known: BTreeMap<String, String> = around.services.clone();
    known.extend(own.iter().cloned());
    for variable in around.container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &known)),
            (None, Some(source)) => from_source(around, source)?,
            (None, None) => Some(String::new()),
        };
        // Optional, and what it names is not there: the variable is not set.
        let Some(value) = value else { continue };
        known.insert(variable.name.clone(), value.clone());
        own.push((variable.name.clone(), value));
    }
    let mut entries: Vec<String> = Vec::new();
    let is_own = |name: &str| own.iter().any(|(n, _)| n == name);
    let from_image = |entry: &&String| !is_own(entry.split_once('=').map_or(entry.as_str(), |(n, _)| n));
    entries.extend(around.image.env.iter().filter(from_image).cloned());
    if !is_own("PATH") && !around.image.env.iter().any(|e| e.starts_with("PATH=")) {
        entries.push(format!("PATH={}", runtime::PATH_DEFAULT));
    }
    if !is_own("HOSTNAME") {
        entries.push(format!("HOSTNAME={}", around.hostname));
    }
    let of_services = around.services.iter().filter(|(name, _)| !is_own(name));
    entries.extend(of_services.map(|(name, value)| format!("{name}={value}")));
    entries.extend(known_in_order(own));
    Ok(entries)
}

/// A variable that is named twice keeps its last value and its first place.
fn known_in_order(own: Vec<(String, String)>) -> Vec<String> {
    let mut ordered: Vec<(String, String)> = Vec::with_capacity(own.len());
    for (name, value) in own {
        match ordered.iter_mut().find(|(n, _)| *n == name) {
            Some(entry) => entry.1 = value,
            None => ordered.push((name, value)),
        }
    }
    ordered.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Program and arguments: `command` replaces entrypoint and cmd, `args` replaces cmd.
pub(crate) fn command_line(around: Surroundings<'_>, environment: &[String]) -> Vec<String> {
    let (command, args) = own_command(around.container, environment);
    match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, false) => [around.image.entrypoint.clone(), args].concat(),
        (true, true) => [around.image.entrypoint.clone(), around.image.cmd.clone()].concat(),
    }
}

/// What the container itself says of program and arguments.
pub(crate) fn own_command(container: &Container, environment: &[String]) -> (Vec<String>, Vec<String>) {
    let variables: BTreeMap<String, String> = environment
        .iter()
        .filter_map(|e| e.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())))
        .collect();
    let given = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, &variables)).collect()
    };
    (given(&container.command), given(&container.args))
}

/// Replaces `$(NAME)` by known variables; `$$` stands for `$`; what is not known stays as it is written.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Replaces `$(NAME)` by the variables that are written out in a container's specification, as probes' commands
/// have it: nothing else is known then.
pub(crate) fn expand_plain(command: &[String], variables: &[EnvVar]) -> Vec<String> {
    let plain = variables.iter().filter(|v| v.value_from.is_none());
    let known = plain.map(|v| (v.name.clone(), v.value.clone().unwrap_or_default())).collect();
    command.iter().map(|text| expand(text, &known)).collect()
}

/// The same for a path, in which nothing may be left unknown.
pub(crate) fn expand_all(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let mut missing = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("$(") {
        let Some((name, tail)) = after.split_once(')') else { break };
        // `$$(NAME)` stands for itself.
        if !before.ends_with('$') && !variables.contains_key(name) && !missing.contains(&name) {
            missing.push(name);
        }
        rest = tail;
    }
    match missing.is_empty() {
        true => Ok(expand(text, variables)),
        false => Err(format!("missing value for {}", missing.join(", "))),
    }
}

fn from_source(around: Surroundings<'_>, source: &EnvVarSource) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(around, field).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_value(around, field).map(Some);
    }
    env_from::one(around.sources, source)
        .unwrap_or_else(|| Err("the variable names a source that the node agent does not know".to_owned()))
}

fn field_value(around: Surroundings<'_>, field: &ObjectFieldSelector) -> Result<String, String> {
    let metadata = &around.pod.metadata;
    let spec = around.pod.spec.as_ref();
    let path = field.field_path.as_str();
    let in_map = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let value = match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => around.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => around.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        _ => in_map(&metadata.labels, "metadata.labels")
            .or_else(|| in_map(&metadata.annotations, "metadata.annotations"))
            .ok_or_else(|| format!("unsupported fieldPath: {path}"))?,
    };
    Ok(value)
}

/// What a file of the downward API says of the pod's metadata; labels and annotations also as a whole.
pub(crate) fn metadata_text(pod: &Pod, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> =
            map.iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
        lines.join("\n")
    };
    let in_map = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    Ok(match path {
        "metadata.labels" => lines(&metadata.labels),
        "metadata.annotations" => lines(&metadata.annotations),
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        _ => in_map(&metadata.labels, "metadata.labels")
            .or_else(|| in_map(&metadata.annotations, "metadata.annotations"))
            .ok_or_else(|| format!("unsupported fieldPath: {path}"))?,
    })
}

fn resource_value(around: Surroundings<'_>, field: &ResourceFieldSelector) -> Result<String, String> {
    resource_text(around.pod, Some(around.container), field, around.allocatable)
}

/// What a container asks for or may use; `own` is the container that the field means if it names none.
pub(crate) fn resource_text(
    pod: &Pod,
    own: Option<&Container>,
    field: &ResourceFieldSelector,
    allocatable: (i64, i64),
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let of = match &field.container_name {
        None => own,
        Some(name) => spec.and_then(|s| s.containers.iter().find(|c| c.name == *name)),
    };
    let container = of.ok_or_else(|| {
        format!("container {} not found", field.container_name.as_deref().unwrap_or_default())
    })?;
    let amounts = qos::amounts(container);
    let or_all = |value: i64, all: i64| if value == 0 { all } else { value };
    let (milli_cpu, memory) = allocatable;
    let (value, is_cpu) = match field.resource.as_str() {
        "limits.cpu" => (or_all(amounts.cpu_limit_milli, milli_cpu), true),
        "requests.cpu" => (amounts.cpu_request_milli, true),
        "limits.memory" => (or_all(amounts.memory_limit, memory), false),
        "requests.memory" => (amounts.memory_request, false),
        other => return Err(format!("unsupported container resource : {other}")),
    };
    let divisor = match &field.divisor {
        Some(text) if text.0 != "0" => {
            Quantity::parse(&text.0).map_err(|e| format!("divisor of {}: {e}", field.resource))?
        }
        _ => Quantity::from_millis(1000),
    };
    let divisor = if is_cpu { divisor.milli_value() } else { divisor.value() }.max(1);
    Ok(((value + divisor - 1) / divisor).to_string())
}

/// Each name once, with its last value.
pub(crate) fn last_wins(entries: Vec<String>) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let mut kept: Vec<String> = Vec::with_capacity(entries.len());
    for entry in entries {
        match kept.iter_mut().find(|other| name(other) == name(&entry)) {
            Some(other) => *other = entry,
            None => kept.push(entry),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around<'a>(pod: &'a Pod, image: &'a ImageConfig) -> Surroundings<'a> {
        static SERVICES: BTreeMap<String, String> = BTreeMap::new();
        static OBJECTS: std::sync::LazyLock<crate::objects::Objects> =
            std::sync::LazyLock::new(crate::objects::Objects::default);
        Surroundings {
            pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            image,
            hostname: "web",
            pod_ip: Some("10.244.1.2".parse().unwrap()),
            host_ip: "10.0.0.1".parse().unwrap(),
            allocatable: (4000, 8 << 30),
            services: &SERVICES,
            sources: Sources { objects: &OBJECTS, namespace: "default" },
        }
    }

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "node1", "containers": [container]},
        }))
        .unwrap()
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let entries = ["A=1", "B=2", "A=3"].map(str::to_owned).to_vec();
        assert_eq!(last_wins(entries), ["A=3", "B=2"]);
    }

    #[test]
    fn values_fields_and_resources() {
        let pod = pod(serde_json::json!({"name": "c",
        "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}},
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(NONE)-$$(A)"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MI", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "FROM", "value": "container"},
        ]}));
        let image = ImageConfig { env: vec!["FROM=image".into(), "X=y".into()], ..ImageConfig::default() };
        let env = environment(around(&pod, &image)).unwrap();
        for entry in [
            "X=y",
            "A=1",
            "B=1-$(NONE)-$(A)",
            "IP=10.244.1.2",
            "APP=x",
            "CPU=1",
            "MI=64",
            "FROM=container",
            "HOSTNAME=web",
        ] {
            assert!(env.contains(&entry.to_owned()), "{entry} in {env:?}");
        }
        assert!(!env.contains(&"FROM=image".to_owned()));
        assert!(env.iter().any(|e| e.starts_with("PATH=/usr/local/sbin")));
    }

    #[test]
    fn what_no_leader_has_told_yet_is_waited_for() {
        let pod = pod(serde_json::json!({"name": "c", "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}));
        let image = ImageConfig::default();
        assert!(environment(around(&pod, &image)).unwrap_err().contains("configmap cache"));
    }

    #[test]
    fn command_and_args_replace_the_images() {
        let image =
            ImageConfig { entrypoint: vec!["/e".into()], cmd: vec!["c".into()], ..ImageConfig::default() };
        for (container, expected) in [
            (serde_json::json!({"name": "c"}), vec!["/e", "c"]),
            (serde_json::json!({"name": "c", "args": ["a"]}), vec!["/e", "a"]),
            (serde_json::json!({"name": "c", "command": ["x"]}), vec!["x"]),
            (serde_json::json!({"name": "c", "command": ["x"], "args": ["$(A)"]}), vec!["x", "v"]),
        ] {
            let pod = pod(container);
            assert_eq!(command_line(around(&pod, &image), &["A=v".into()]), expected);
        }
    }
}
