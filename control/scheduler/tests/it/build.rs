//! Nodes and pods from the words of a script line.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, NodeSpec, NodeStatus, Pod, PodSpec, PreferredSchedulingTerm, ResourceRequirements,
    Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// `a=b` → (a, b)
fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or_else(|| panic!("{text}: expected KEY=VALUE"));
    (key.to_owned(), value.to_owned())
}

/// `key=value:Effect`
fn taint(text: &str) -> (String, String, String) {
    let (rest, effect) = text.rsplit_once(':').unwrap_or_else(|| panic!("{text}: expected K=V:EFFECT"));
    let (key, value) = pair(rest);
    (key, value, effect.to_owned())
}

fn expression(text: &str) -> NodeSelectorRequirement {
    let mut parts = text.splitn(3, ':');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (key, operator, values) = (next(), next(), next());
    let values = (!values.is_empty()).then(|| values.split('|').map(str::to_owned).collect());
    NodeSelectorRequirement { key, operator, values }
}

fn term(expressions: Vec<NodeSelectorRequirement>) -> NodeSelectorTerm {
    NodeSelectorTerm { match_expressions: Some(expressions), match_fields: None }
}

/// A node from its words.
pub(crate) fn node(name: &str, words: &[&str]) -> Node {
    let mut labels = BTreeMap::new();
    let mut taints = Vec::new();
    let mut allocatable = BTreeMap::new();
    let mut unschedulable = None;
    for word in words {
        if *word == "cordoned" {
            unschedulable = Some(true);
        } else if let Some(label) = word.strip_prefix("label:") {
            labels.extend([pair(label)]);
        } else if let Some(text) = word.strip_prefix("taint:") {
            let (key, value, effect) = taint(text);
            taints.push(Taint { key, value: Some(value), effect, time_added: None });
        } else {
            let (key, value) = pair(word);
            allocatable.insert(key, Quantity(value));
        }
    }
    Node {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..Default::default() },
        spec: Some(NodeSpec { taints: Some(taints), unschedulable, ..Default::default() }),
        status: Some(NodeStatus { allocatable: Some(allocatable), ..Default::default() }),
    }
}

/// A pod from its words; its uid is its name.
pub(crate) fn pod(name: &str, words: &[&str]) -> Pod {
    let mut spec = PodSpec { scheduler_name: Some("default-scheduler".to_owned()), ..Default::default() };
    let mut container = Container::default();
    let mut requests = BTreeMap::new();
    let mut required = Vec::new();
    let mut preferred = Vec::new();
    for word in words {
        if let Some(text) = word.strip_prefix("selector:") {
            spec.node_selector.get_or_insert_default().extend([pair(text)]);
        } else if let Some(text) = word.strip_prefix("toleration:") {
            let (key, value, effect) = taint(text);
            spec.tolerations.get_or_insert_default().push(Toleration {
                key: Some(key),
                value: Some(value),
                effect: Some(effect),
                ..Default::default()
            });
        } else if let Some(text) = word.strip_prefix("require:") {
            required.push(expression(text));
        } else if let Some(text) = word.strip_prefix("prefer:") {
            let (weight, rest) = text.split_once(':').expect("prefer:WEIGHT:...");
            let preference = term(vec![expression(rest)]);
            preferred.push(PreferredSchedulingTerm { weight: weight.parse().expect("weight"), preference });
        } else {
            let (key, value) = pair(word);
            match key.as_str() {
                "on" | "node-name" => spec.node_name = Some(value),
                "priority" => spec.priority = Some(value.parse().expect("priority")),
                "port" => {
                    let (port, protocol) = value.split_once('/').unwrap_or((&value, "TCP"));
                    container.ports.get_or_insert_default().push(ContainerPort {
                        container_port: 80,
                        host_port: Some(port.parse().expect("port")),
                        protocol: Some(protocol.to_owned()),
                        ..Default::default()
                    });
                }
                _ => {
                    requests.insert(key, Quantity(value));
                }
            }
        }
    }
    container.resources = Some(ResourceRequirements { requests: Some(requests), ..Default::default() });
    spec.containers = vec![container];
    if !required.is_empty() || !preferred.is_empty() {
        let selector = NodeSelector { node_selector_terms: vec![term(required.clone())] };
        spec.affinity = Some(Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: (!required.is_empty())
                    .then_some(selector),
                preferred_during_scheduling_ignored_during_execution: Some(preferred),
            }),
            ..Default::default()
        });
    }
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some(name.to_owned()),
            ..Default::default()
        },
        spec: Some(spec),
        status: None,
    }
}
