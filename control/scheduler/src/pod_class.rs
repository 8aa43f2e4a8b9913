//! What equal pods have in common: everything that decides where a pod fits, beside its labels.
//!
//! The pods of a ReplicaSet or a Job differ in name only. They share one [`PodClass`], so that it is kept
//! once, compared by its address, and what a cycle found out for one of them serves the next.

use std::collections::{BTreeMap, BTreeSet};

use api::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

use crate::labels::{AffinityTerm, PodSelector};
use crate::pod_info::{HostPort, InvalidPod, PodVolumes};
use crate::resources::{Resources, ScoredRequest, pod_requests};
use crate::selector::{InvalidSelector, NodeTerm};
use crate::taints::Toleration;

/// Labels that tell the pods of one owner apart; they say nothing about whom a pod belongs to.
const LABELS_OF_ONE_POD: [&str; 3] = [
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// One topology spread constraint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpreadConstraint {
    /// How uneven the domains may become.
    pub max_skew: i64,
    /// The label whose value makes a domain.
    pub topology_key: String,
    /// Whether it decides (`DoNotSchedule`) or only ranks (`ScheduleAnyway`).
    pub hard: bool,
    /// The pods that count.
    pub selector: LabelSelector,
    /// With fewer domains than this, the emptiest counts as holding nothing.
    pub min_domains: i64,
    /// Whether only nodes that the pod's node affinity allows make domains.
    pub honor_affinity: bool,
    /// Whether nodes with taints that the pod does not tolerate make none.
    pub honor_taints: bool,
}

/// Everything that equal pods have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodClass {
    /// `spec.priority`, 0 without.
    pub priority: i32,
    /// Whether the pod may displace others (`preemptionPolicy` is not `Never`).
    pub preempts: bool,
    /// What the pod takes on its node.
    pub requests: Resources,
    pub(crate) scored: ScoredRequest,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node that it takes.
    pub host_ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity: one of the terms must match; `None`: no such rule.
    pub required_terms: Option<Vec<NodeTerm>>,
    /// Preferred node affinity with weights.
    pub preferred_terms: Vec<(i64, NodeTerm)>,
    /// `spec.topologySpreadConstraints`.
    pub spread: Vec<SpreadConstraint>,
    /// The pods that default spread constraints count: those of the same owner.
    pub owner_selector: Option<LabelSelector>,
    /// Required pod affinity.
    pub affinity: Vec<AffinityTerm>,
    /// Required pod anti-affinity.
    pub anti_affinity: Vec<AffinityTerm>,
    /// Preferred pod affinity (weight above 0) and anti-affinity (below 0).
    pub preferred_affinity: Vec<(i64, AffinityTerm)>,
    /// The images of its containers, by their full names.
    pub images: Vec<String>,
    /// Where its volumes let it run.
    pub volumes: PodVolumes,
}

impl PodClass {
    /// Reads a pod.
    pub(crate) fn new(pod: &Pod, spec: &PodSpec, volumes: PodVolumes) -> Result<Self, InvalidPod> {
        let (requests, scored) = pod_requests(spec)?;
        let affinity = spec.affinity.as_ref();
        let (required_terms, preferred_terms) = node_affinity(affinity)?;
        let reader = TermReader { labels: pod.metadata.labels.as_ref(), namespace: namespace(pod) };
        let (required, preferred) = match affinity.and_then(|rules| rules.pod_affinity.as_ref()) {
            Some(rules) => (
                rules.required_during_scheduling_ignored_during_execution.as_deref(),
                rules.preferred_during_scheduling_ignored_during_execution.as_deref(),
            ),
            None => (None, None),
        };
        let (anti_required, anti_preferred) =
            match affinity.and_then(|rules| rules.pod_anti_affinity.as_ref()) {
                Some(rules) => (
                    rules.required_during_scheduling_ignored_during_execution.as_deref(),
                    rules.preferred_during_scheduling_ignored_during_execution.as_deref(),
                ),
                None => (None, None),
            };
        let mut preferred_affinity = reader.weighted(preferred, 1)?;
        preferred_affinity.extend(reader.weighted(anti_preferred, -1)?);
        Ok(Self {
            priority: spec.priority.unwrap_or(0),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            requests,
            scored,
            tolerations: spec.tolerations.iter().flatten().filter_map(Toleration::new).collect(),
            host_ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_terms,
            preferred_terms,
            spread: reader.spread(spec.topology_spread_constraints.as_deref())?,
            owner_selector: owner_selector(pod),
            affinity: reader.terms(required)?,
            anti_affinity: reader.terms(anti_required)?,
            preferred_affinity,
            images: images(spec),
            volumes,
        })
    }

    /// Whether the pod requests neither CPU nor memory nor anything else.
    pub fn requests_nothing(&self) -> bool {
        self.requests == Resources::default()
    }

    /// Whether the class itself looks at other pods than those of one node.
    pub fn looks_around(&self) -> bool {
        !self.spread.is_empty() || self.holds_terms()
    }

    /// Whether pods of this class attract or repel others.
    pub fn holds_terms(&self) -> bool {
        !self.affinity.is_empty() || !self.anti_affinity.is_empty() || !self.preferred_affinity.is_empty()
    }
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// Reads what speaks of other pods; some of it refers to the labels of the pod itself.
struct TermReader<'a> {
    labels: Option<&'a BTreeMap<String, String>>,
    namespace: &'a str,
}

impl TermReader<'_> {
    fn terms(&self, terms: Option<&[PodAffinityTerm]>) -> Result<Vec<AffinityTerm>, InvalidPod> {
        terms.into_iter().flatten().map(|term| self.term(term)).collect()
    }

    fn weighted(
        &self,
        terms: Option<&[WeightedPodAffinityTerm]>,
        sign: i64,
    ) -> Result<Vec<(i64, AffinityTerm)>, InvalidPod> {
        let terms = terms.into_iter().flatten().filter(|term| term.weight != 0);
        terms.map(|term| Ok((sign * i64::from(term.weight), self.term(&term.pod_affinity_term)?))).collect()
    }

    fn term(&self, term: &PodAffinityTerm) -> Result<AffinityTerm, InvalidPod> {
        let mut labels = self.selector(term.label_selector.as_ref(), term.match_label_keys.as_deref())?;
        if let Some(keys) = &term.mismatch_label_keys {
            labels = self.with_keys(labels, keys, Operator::NotIn)?;
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let namespace_selector = match &term.namespace_selector {
            None => None,
            Some(selector) => Some(read_selector(Some(selector))?),
        };
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.insert(self.namespace.to_owned());
        }
        let pods = PodSelector { namespaces, namespace_selector, labels };
        Ok(AffinityTerm { pods, topology_key: term.topology_key.clone() })
    }

    fn spread(
        &self,
        constraints: Option<&[TopologySpreadConstraint]>,
    ) -> Result<Vec<SpreadConstraint>, InvalidPod> {
        let read = |constraint: &TopologySpreadConstraint| {
            let keys = constraint.match_label_keys.as_deref();
            Ok(SpreadConstraint {
                max_skew: i64::from(constraint.max_skew),
                topology_key: constraint.topology_key.clone(),
                hard: constraint.when_unsatisfiable == "DoNotSchedule",
                selector: self.selector(constraint.label_selector.as_ref(), keys)?,
                min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
                honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            })
        };
        constraints.into_iter().flatten().map(read).collect()
    }

    fn selector(
        &self,
        selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
        match_keys: Option<&[String]>,
    ) -> Result<LabelSelector, InvalidPod> {
        let read = read_selector(selector)?;
        match match_keys {
            Some(keys) if selector.is_some() => self.with_keys(read, keys, Operator::In),
            _ => Ok(read),
        }
    }

    /// The selector with one more requirement for each of the keys that the pod itself carries.
    fn with_keys(
        &self,
        selector: LabelSelector,
        keys: &[String],
        operator: Operator,
    ) -> Result<LabelSelector, InvalidPod> {
        let mut requirements = selector.requirements().to_vec();
        for key in keys {
            let Some(value) = self.labels.and_then(|labels| labels.get(key)) else { continue };
            let requirement = Requirement::new(key, operator, vec![value.clone()])
                .map_err(|reason| InvalidPod::Labels { reason })?;
            if !requirements.contains(&requirement) {
                requirements.push(requirement);
            }
        }
        Ok(LabelSelector::all_of(requirements))
    }
}

fn read_selector(
    selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
) -> Result<LabelSelector, InvalidPod> {
    LabelSelector::from_typed(selector).map_err(|reason| InvalidPod::Labels { reason })
}

fn owner_selector(pod: &Pod) -> Option<LabelSelector> {
    let owners = pod.metadata.owner_references.iter().flatten();
    let labels = pod.metadata.labels.as_ref()?;
    owners.into_iter().find(|owner| owner.controller == Some(true))?;
    let requirements: Vec<Requirement> = labels
        .iter()
        .filter(|(key, _)| !LABELS_OF_ONE_POD.contains(&key.as_str()))
        .filter_map(|(key, value)| Requirement::new(key, Operator::In, vec![value.clone()]).ok())
        .collect();
    (!requirements.is_empty()).then(|| LabelSelector::all_of(requirements))
}

fn images(spec: &PodSpec) -> Vec<String> {
    let init = spec.init_containers.iter().flatten();
    let all = init.chain(&spec.containers).filter_map(|container| container.image.as_deref());
    all.map(full_image_name).collect()
}

/// An image's name as nodes report it: with a tag.
pub(crate) fn full_image_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        for port in container.ports.iter().flatten() {
            let Some(host_port) = port.host_port.filter(|&port| port > 0) else { continue };
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or(HostPort::ANY);
            let protocol = port.protocol.as_deref().filter(|text| !text.is_empty()).unwrap_or("TCP");
            ports.push(HostPort { ip: ip.to_owned(), protocol: protocol.to_owned(), port: host_port });
        }
    }
    ports
}

type NodeAffinityTerms = (Option<Vec<NodeTerm>>, Vec<(i64, NodeTerm)>);

fn node_affinity(affinity: Option<&Affinity>) -> Result<NodeAffinityTerms, InvalidSelector> {
    match affinity.and_then(|affinity| affinity.node_affinity.as_ref()) {
        Some(rules) => read_node_affinity(rules),
        None => Ok((None, Vec::new())),
    }
}

/// Required and preferred terms of a node affinity.
pub(crate) fn read_node_affinity(
    rules: &k8s_openapi::api::core::v1::NodeAffinity,
) -> Result<NodeAffinityTerms, InvalidSelector> {
    let required = rules
        .required_during_scheduling_ignored_during_execution
        .as_ref()
        .map(|selector| selector.node_selector_terms.iter().map(NodeTerm::new).collect())
        .transpose()?;
    let mut preferred = Vec::new();
    for term in rules.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
        let read = NodeTerm::new(&term.preference)?;
        if term.weight != 0 && !read.is_empty() {
            preferred.push((i64::from(term.weight), read));
        }
    }
    Ok((required, preferred))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        for (name, full) in [
            ("web", "web:latest"),
            ("web:1", "web:1"),
            ("host:5000/web", "host:5000/web:latest"),
            ("web@sha256:ab", "web@sha256:ab"),
        ] {
            assert_eq!(full_image_name(name), full);
        }
    }
}
