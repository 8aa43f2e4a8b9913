//! Nodes and pods from the words of a script line.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerImage, ContainerPort, Node, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, NodeSpec, NodeStatus, Pod, PodAffinity, PodAffinityTerm,
    PodAntiAffinity, PodSchedulingGate, PodSpec, PodStatus, PreferredSchedulingTerm, ResourceRequirements,
    Taint, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};

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

fn labels(text: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(BTreeMap::from([pair(text)])), ..Default::default() }
}

/// `KEY:LABEL=VALUE[:NAMESPACE-LABEL=VALUE]`
fn pod_term(text: &str) -> PodAffinityTerm {
    let mut parts = text.split(':');
    let topology_key = parts.next().unwrap_or_default().to_owned();
    PodAffinityTerm {
        topology_key,
        label_selector: parts.next().map(labels),
        namespace_selector: parts.next().map(labels),
        ..Default::default()
    }
}

/// `WEIGHT:TERM`
fn weighted(text: &str) -> WeightedPodAffinityTerm {
    let (weight, term) = text.split_once(':').unwrap_or_else(|| panic!("{text}: expected WEIGHT:..."));
    WeightedPodAffinityTerm { weight: weight.parse().expect("weight"), pod_affinity_term: pod_term(term) }
}

/// `SKEW:KEY:hard|soft:LABEL=VALUE[:min=N][:taints][:everywhere][:with=LABEL]`
fn spread(text: &str) -> TopologySpreadConstraint {
    let parts: Vec<&str> = text.split(':').collect();
    let mut constraint = TopologySpreadConstraint {
        max_skew: parts[0].parse().expect("skew"),
        topology_key: parts[1].to_owned(),
        when_unsatisfiable: if parts[2] == "hard" { "DoNotSchedule" } else { "ScheduleAnyway" }.to_owned(),
        label_selector: Some(labels(parts[3])),
        ..Default::default()
    };
    for part in &parts[4..] {
        match part.split_once('=') {
            Some(("min", domains)) => constraint.min_domains = Some(domains.parse().expect("domains")),
            Some(("with", label)) => constraint.match_label_keys = Some(vec![label.to_owned()]),
            _ if *part == "taints" => constraint.node_taints_policy = Some("Honor".to_owned()),
            _ => constraint.node_affinity_policy = Some("Ignore".to_owned()),
        }
    }
    constraint
}

/// A node from its words.
pub(crate) fn node(name: &str, words: &[&str]) -> Node {
    let mut labels = BTreeMap::new();
    let mut taints = Vec::new();
    let mut allocatable = BTreeMap::new();
    let mut unschedulable = None;
    let mut images = Vec::new();
    for word in words {
        if let Some(image) = word.strip_prefix("image:") {
            let (name, mib) = pair(image);
            let size_bytes = Some(mib.parse::<i64>().expect("MiB") << 20);
            images.push(ContainerImage { names: Some(vec![name]), size_bytes });
        } else if *word == "cordoned" {
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
        status: Some(NodeStatus {
            allocatable: Some(allocatable),
            images: Some(images),
            ..Default::default()
        }),
    }
}

/// A pod from its words; its uid is its name.
pub(crate) fn pod(name: &str, words: &[&str]) -> Pod {
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some(name.to_owned()),
            ..Default::default()
        },
        spec: Some(PodSpec { scheduler_name: Some("default-scheduler".to_owned()), ..Default::default() }),
        status: None,
    };
    let mut container = Container::default();
    let mut affinity = Affinity::default();
    for word in words {
        let (kind, rest) = word.split_once(':').unwrap_or((word, ""));
        let spec = pod.spec.as_mut().expect("a spec");
        match kind {
            "label" => pod.metadata.labels.get_or_insert_default().extend([pair(rest)]),
            "gate" => {
                let gate = PodSchedulingGate { name: rest.to_owned() };
                spec.scheduling_gates.get_or_insert_default().push(gate);
            }
            "spread" => spec.topology_spread_constraints.get_or_insert_default().push(spread(rest)),
            "never-displaces" => spec.preemption_policy = Some("Never".to_owned()),
            "owned" => {
                let owner = OwnerReference { controller: Some(true), ..Default::default() };
                pod.metadata.owner_references = Some(vec![owner]);
            }
            "near" | "far" | "like" | "shun" | "require" | "prefer" => add_term(&mut affinity, kind, rest),
            "selector" => spec.node_selector.get_or_insert_default().extend([pair(rest)]),
            "toleration" => {
                let (key, value, effect) = taint(rest);
                spec.tolerations.get_or_insert_default().push(Toleration {
                    key: Some(key),
                    value: Some(value),
                    effect: Some(effect),
                    ..Default::default()
                });
            }
            _ => set(&mut pod, &mut container, word),
        }
    }
    let spec = pod.spec.as_mut().expect("a spec");
    spec.containers = vec![container];
    spec.affinity = (affinity != Affinity::default()).then_some(affinity);
    pod
}

fn add_term(affinity: &mut Affinity, kind: &str, text: &str) {
    match kind {
        "near" => affinity
            .pod_affinity
            .get_or_insert_with(PodAffinity::default)
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .push(pod_term(text)),
        "like" => affinity
            .pod_affinity
            .get_or_insert_with(PodAffinity::default)
            .preferred_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .push(weighted(text)),
        "far" => affinity
            .pod_anti_affinity
            .get_or_insert_with(PodAntiAffinity::default)
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .push(pod_term(text)),
        "shun" => affinity
            .pod_anti_affinity
            .get_or_insert_with(PodAntiAffinity::default)
            .preferred_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .push(weighted(text)),
        "require" => {
            let of_node = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
            let selector = of_node
                .required_during_scheduling_ignored_during_execution
                .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![term(Vec::new())] });
            let first = &mut selector.node_selector_terms[0];
            match text.strip_prefix("name:") {
                Some(text) => first.match_fields.get_or_insert_default().push(NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    ..expression(&format!("name:{text}"))
                }),
                None => first.match_expressions.get_or_insert_default().push(expression(text)),
            }
        }
        _ => {
            let of_node = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
            let (weight, rest) = text.split_once(':').expect("prefer:WEIGHT:...");
            let preference = term(vec![expression(rest)]);
            let preferred = PreferredSchedulingTerm { weight: weight.parse().expect("weight"), preference };
            of_node
                .preferred_during_scheduling_ignored_during_execution
                .get_or_insert_default()
                .push(preferred);
        }
    }
}

/// Words of the form KEY=VALUE.
fn set(pod: &mut Pod, container: &mut Container, word: &str) {
    let (key, value) = pair(word);
    let spec = pod.spec.as_mut().expect("a spec");
    match key.as_str() {
        "on" | "node-name" => spec.node_name = Some(value),
        "ns" => pod.metadata.namespace = Some(value),
        "scheduler" => spec.scheduler_name = Some(value),
        "priority" => spec.priority = Some(value.parse().expect("priority")),
        "image" => container.image = Some(value),
        "group" => {
            let label = (scheduler::POD_GROUP_LABEL.to_owned(), value);
            pod.metadata.labels.get_or_insert_default().extend([label]);
        }
        "group-min" => {
            let note = (scheduler::POD_GROUP_MIN_ANNOTATION.to_owned(), value);
            pod.metadata.annotations.get_or_insert_default().extend([note]);
        }
        "started" => {
            let at = k8s_openapi::jiff::Timestamp::from_second(value.parse().expect("seconds"));
            let start_time = Some(Time(at.expect("a time")));
            pod.status = Some(PodStatus { start_time, ..Default::default() });
        }
        "port" => {
            let (port, protocol) = value.split_once('/').unwrap_or((&value, "TCP"));
            let (host_ip, port) = port.rsplit_once('@').map_or((None, port), |(ip, port)| (Some(ip), port));
            container.ports.get_or_insert_default().push(ContainerPort {
                container_port: 80,
                host_port: Some(port.parse().expect("port")),
                protocol: Some(protocol.to_owned()),
                host_ip: host_ip.map(str::to_owned),
                ..Default::default()
            });
        }
        _ => {
            let resources = container.resources.get_or_insert_with(ResourceRequirements::default);
            resources.requests.get_or_insert_default().insert(key, Quantity(value));
        }
    }
}
