//! Validation of a pod's ephemeral containers, which are only ever added, through their own subresource.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

use super::container::{self, Context};
use super::volume;
use crate::status::Cause;

const PATH: &str = "spec.ephemeralContainers";
/// What a container may have that is only ever looked through.
const ALLOWED: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "env",
    "envFrom",
    "volumeMounts",
    "volumeDevices",
    "tty",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "targetContainerName",
];

/// Why these may not be a pod's ephemeral containers from now on; empty when they may.
pub fn ephemeral_containers(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (before, after) = (list(old), list(new));
    for container in before {
        let name = text(container, "name");
        match after.iter().find(|c| text(c, "name") == name) {
            None => {
                let detail = format!("existing ephemeral containers \"{name}\" may not be removed");
                causes.push(Cause::forbidden(PATH, &detail));
            }
            Some(found) if found != container => {
                let detail = format!("existing ephemeral containers \"{name}\" may not be changed");
                causes.push(Cause::forbidden(PATH, &detail));
            }
            Some(_) => {}
        }
    }
    let Ok(pod) = serde_json::from_value::<Pod>(new.clone()) else {
        causes.push(Cause::invalid(PATH, Value::Null, "it is not a list of ephemeral containers"));
        return causes;
    };
    let spec = pod.spec.unwrap_or_default();
    let mut names: BTreeSet<&str> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| c.name.as_str())
        .collect();
    let volumes =
        volume::volumes("spec.volumes", spec.volumes.as_deref().unwrap_or_default(), &mut Vec::new());
    let context = Context { volumes: &volumes, init: false, host_network: false, grace_s: 0 };
    let typed: Vec<Container> = after.iter().filter_map(|c| serde_json::from_value(c.clone()).ok()).collect();
    let targets: BTreeSet<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (index, container) in after.iter().enumerate() {
        allowed(index, container, &targets, &mut causes);
    }
    container::containers(PATH, &typed, &context, &mut names, &mut causes);
    causes
}

fn allowed(index: usize, container: &Value, targets: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let path = format!("{PATH}[{index}]");
    for (field, value) in container.as_object().into_iter().flatten() {
        let empty = value.as_object().is_some_and(serde_json::Map::is_empty);
        if !ALLOWED.contains(&field.as_str()) && !value.is_null() && !empty {
            causes.push(Cause::forbidden(
                format!("{path}.{field}"),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
    let target = text(container, "targetContainerName");
    if !target.is_empty() && !targets.contains(target) {
        causes.push(Cause::not_found(format!("{path}.targetContainerName"), target));
    }
}

fn list(pod: &Value) -> &[Value] {
    pod.pointer("/spec/ephemeralContainers").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(container: &'a Value, field: &str) -> &'a str {
    container.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}],
            "ephemeralContainers": ephemeral}})
    }

    fn said(old: Value, new: Value) -> Vec<String> {
        ephemeral_containers(&pod(old), &pod(new))
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn they_are_added_and_stay() {
        let d = json!({"name": "d", "image": "i", "targetContainerName": "c", "resources": {},
            "terminationMessagePolicy": "File", "imagePullPolicy": "Always"});
        assert_eq!(said(json!([]), json!([d])), Vec::<String>::new());
        let changed = json!({"name": "d", "image": "j"});
        assert!(said(json!([d]), json!([changed]))[0].contains("\"d\" may not be changed"));
        assert!(said(json!([d]), json!([]))[0].contains("\"d\" may not be removed"));
    }

    #[test]
    fn they_are_no_ordinary_containers() {
        let bad = json!({"name": "c", "image": "i", "targetContainerName": "x",
            "ports": [{"containerPort": 1}], "lifecycle": {"preStop": {"sleep": {"seconds": 0}}}});
        let said = said(json!([]), json!([bad]));
        for part in [
            "[0].ports: Forbidden",
            "[0].lifecycle: Forbidden",
            "targetContainerName: Not found",
            "[0].name: Duplicate",
        ] {
            assert!(said.iter().any(|s| s.contains(part)), "{part} in {said:?}");
        }
    }
}
