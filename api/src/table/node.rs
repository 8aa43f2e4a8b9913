//! The table of nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, list_at, name, or, text, text_at, wide};
use crate::object;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "The status of the node"),
    text("Roles", "The roles of the node"),
    AGE,
    text("Version", "Version of the node agent, as the node reports it."),
    wide(text("Internal-IP", "First address of type InternalIP that the node reports.")),
    wide(text("External-IP", "First address of type ExternalIP that the node reports.")),
    wide(text("OS-Image", "Operating system that the node reports.")),
    wide(text("Kernel-Version", "Kernel version that the node reports.")),
    wide(text("Container-Runtime", "Name and version of the container runtime that the node reports.")),
];

pub(super) fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |field: &str| or(text_at(node, &format!("/status/nodeInfo/{field}")), "<unknown>");
    vec![
        name(node),
        status(node).into(),
        or(&roles(node), "<none>"),
        age(node, now),
        text_at(node, "/status/nodeInfo/kubeletVersion").into(),
        or(address(node, "InternalIP"), "<none>"),
        or(address(node, "ExternalIP"), "<none>"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list_at(node, "/status/conditions").iter().rfind(|c| text_at(c, "/type") == "Ready");
    let mut status = match ready {
        Some(condition) if text_at(condition, "/status") == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool).unwrap_or(false) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in object::labels_value(node).into_iter().flatten() {
        match (key.strip_prefix(ROLE_PREFIX), value.as_str()) {
            (Some(role), _) if !role.is_empty() => {
                roles.insert(role);
            }
            (_, Some(role)) if key == ROLE_LABEL && !role.is_empty() => {
                roles.insert(role);
            }
            _ => {}
        }
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn address<'a>(node: &'a Value, ty: &str) -> &'a str {
    list_at(node, "/status/addresses")
        .iter()
        .find(|a| text_at(a, "/type") == ty)
        .map_or("", |a| text_at(a, "/address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_shows_its_state_roles_and_addresses() {
        let now = "2024-01-03T03:00:00Z".parse().unwrap();
        let mut node = json!({
            "metadata": {"name": "n1", "creationTimestamp": "2024-01-01T00:00:00Z", "labels": {
                "node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": "",
                "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.33.0", "osImage": "Debian", "kernelVersion": "6.1",
                    "containerRuntimeVersion": "barque://0.1.0"},
            }
        });
        assert_eq!(
            row(&node, now),
            json!([
                "n1",
                "Ready,SchedulingDisabled",
                "control-plane,edge,worker",
                "2d3h",
                "v1.33.0",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6.1",
                "barque://0.1.0"
            ])
            .as_array()
            .unwrap()
            .clone()
        );
        node["status"]["conditions"][1]["status"] = "Unknown".into();
        node["spec"] = json!({});
        assert_eq!(row(&node, now)[1], "NotReady");
        assert_eq!(
            row(&json!({"metadata": {"name": "n"}}), now)[1..5],
            ["Unknown", "<none>", "<unknown>", ""]
        );
    }
}
