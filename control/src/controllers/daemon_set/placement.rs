//! On which nodes a DaemonSet's pods belong. Pure.
//!
//! The rules and the tolerations that such pods get by themselves are those of Kubernetes' documentation
//! ("DaemonSet", "Taints and tolerations").

use std::collections::BTreeMap;

use api::object;
use k8s_openapi::api::core::v1 as core;
use scheduler::{Effect, NodeTerm, Taint, Toleration};
use serde_json::{Value, json};

use crate::registry::Object;

/// What pods of a DaemonSet tolerate whether they say so or not.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a node means to a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) should_run: bool,
    /// Whether a pod that is there may stay.
    pub(super) should_stay: bool,
}

/// What of a template decides where its pods belong.
pub(super) struct Template {
    node_name: Option<String>,
    labels: BTreeMap<String, String>,
    /// Any of these must match; `None`: every node does.
    terms: Option<Vec<NodeTerm>>,
    tolerations: Vec<Toleration>,
}

impl Template {
    /// Reads a pod's spec; `None` if it makes no sense, which validation rules out.
    pub(super) fn of(spec: &Value) -> Option<Self> {
        let mut spec = spec.clone();
        tolerate(&mut spec);
        let typed: core::PodSpec = serde_json::from_value(spec).ok()?;
        let required = typed
            .affinity
            .and_then(|affinity| affinity.node_affinity)
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution);
        let terms = match required {
            None => None,
            Some(required) => {
                let terms = required.node_selector_terms.iter().map(NodeTerm::new);
                Some(terms.collect::<Result<Vec<_>, _>>().ok()?)
            }
        };
        Some(Self {
            node_name: typed.node_name.filter(|name| !name.is_empty()),
            labels: typed.node_selector.unwrap_or_default(),
            terms,
            tolerations: typed.tolerations.iter().flatten().filter_map(Toleration::new).collect(),
        })
    }

    pub(super) fn on(&self, node: &Object) -> Verdict {
        let (name, labels) = (node.name(), object::labels(node.value()));
        let fits = self.node_name.as_deref().is_none_or(|own| own == name)
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, &labels)));
        if !fits {
            return Verdict { should_run: false, should_stay: false };
        }
        let taints = node.value()["spec"]["taints"].as_array().into_iter().flatten();
        let taints: Vec<Taint> = taints
            .filter_map(|taint| Taint::new(&serde_json::from_value::<core::Taint>(taint.clone()).ok()?))
            .collect();
        let untolerated = |effect: Effect| {
            taints.iter().any(|taint| {
                taint.effect == effect
                    && !self.tolerations.iter().any(|toleration| toleration.tolerates(taint))
            })
        };
        let (barred, thrown_out) = (untolerated(Effect::NoSchedule), untolerated(Effect::NoExecute));
        Verdict { should_run: !barred && !thrown_out, should_stay: !thrown_out }
    }
}

fn tolerate(spec: &mut Value) {
    let host = spec["hostNetwork"] == true;
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    let Some(tolerations) = spec["tolerations"].as_array_mut() else { return };
    for (key, effect) in TOLERATED.into_iter().chain(host.then_some(NETWORK)) {
        let own = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&own) {
            tolerations.push(own);
        }
    }
}

/// Makes a pod one for that node, whatever troubles it has.
pub(super) fn pin(spec: &mut Value, node: &str) {
    tolerate(spec);
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"].as_array().cloned();
    // What the terms say of labels was looked at when the node was chosen.
    let terms: Vec<Value> = match terms {
        Some(terms) if !terms.is_empty() => terms
            .into_iter()
            .map(|mut term| {
                term["matchFields"] = json!([field]);
                term
            })
            .collect(),
        _ => vec![json!({"matchFields": [field]})],
    };
    if !spec["affinity"].is_object() {
        spec["affinity"] = json!({});
    }
    if !spec["affinity"]["nodeAffinity"].is_object() {
        spec["affinity"]["nodeAffinity"] = json!({});
    }
    spec["affinity"]["nodeAffinity"][required] = json!({"nodeSelectorTerms": terms});
}

/// The node that a pod runs on or is for.
pub(super) fn node_of(pod: &Object) -> Option<String> {
    let spec = &pod.value()["spec"];
    if let Some(name) = spec["nodeName"].as_str().filter(|name| !name.is_empty()) {
        return Some(name.to_owned());
    }
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let fields = required["nodeSelectorTerms"][0]["matchFields"].as_array()?;
    let field = fields.iter().find(|field| field["key"] == "metadata.name")?;
    field["values"][0].as_str().map(str::to_owned)
}
