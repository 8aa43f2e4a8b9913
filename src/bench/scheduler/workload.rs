//! The workloads, named and shaped as those of kube-scheduler's own benchmark (`test/integration/scheduler_perf`).

use serde_json::{Value, json};

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
const NAMESPACE: &str = "default";

/// What happens beside the pods that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Nothing,
    /// Nodes and pods come and go.
    Churn,
    /// Pods that fit nowhere wait.
    Unschedulable,
    /// Pods that are held back wait.
    Gated,
}

/// One workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Pods per second below which kube-scheduler's own tests fail, at 5,000 nodes; it has no such number for all.
    pub(crate) floor: Option<u32>,
    pub(crate) beside: Beside,
    rule: Rule,
    /// Pods there already, and pods measured, for each hundred nodes.
    init_percent: usize,
    pods_percent: usize,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    Plain,
    NodeAffinity,
    Spread { hard: bool },
    Pods { kind: &'static str, preferred: bool, key: &'static str },
    Daemon,
    Urgent,
}

/// All of them.
pub(crate) const WORKLOADS: [Workload; 13] = {
    const fn of(name: &'static str, floor: Option<u32>, rule: Rule) -> Workload {
        Workload { name, floor, beside: Beside::Nothing, rule, init_percent: 20, pods_percent: 200 }
    }
    const fn beside(name: &'static str, floor: Option<u32>, beside: Beside) -> Workload {
        Workload { name, floor, beside, rule: Rule::Plain, init_percent: 20, pods_percent: 200 }
    }
    const fn few(workload: Workload) -> Workload {
        Workload { pods_percent: 40, ..workload }
    }
    const fn pods(name: &'static str, floor: u32, kind: &'static str, preferred: bool) -> Workload {
        let key = if matches!(kind.as_bytes(), b"podAffinity") && !preferred { ZONE } else { HOST };
        of(name, Some(floor), Rule::Pods { kind, preferred, key })
    }
    [
        of("basic", Some(680), Rule::Plain),
        of("node-affinity", Some(220), Rule::NodeAffinity),
        of("topology-spread", Some(460), Rule::Spread { hard: true }),
        of("preferred-topology-spread", Some(340), Rule::Spread { hard: false }),
        pods("pod-affinity", 35, "podAffinity", false),
        few(pods("pod-anti-affinity", 60, "podAntiAffinity", false)),
        pods("preferred-pod-affinity", 90, "podAffinity", true),
        pods("preferred-pod-anti-affinity", 90, "podAntiAffinity", true),
        Workload { init_percent: 400, pods_percent: 100, ..of("preemption", Some(570), Rule::Urgent) },
        beside("churn", Some(710), Beside::Churn),
        Workload { init_percent: 0, pods_percent: 100, ..of("daemonset", Some(1100), Rule::Daemon) },
        beside("gated", Some(910), Beside::Gated),
        beside("unschedulable", Some(590), Beside::Unschedulable),
    ]
};

impl Workload {
    /// Pods there before anything is measured, for so many nodes.
    pub(crate) fn init(&self, nodes: usize) -> Vec<Value> {
        (0..nodes * self.init_percent / 100).map(|at| self.pod("init", at, true)).collect()
    }

    /// Pods that are measured.
    pub(crate) fn measured(&self, nodes: usize, count: Option<usize>) -> Vec<Value> {
        let count = count.unwrap_or(nodes * self.pods_percent / 100);
        (0..count).map(|at| self.pod("pod", at, false)).collect()
    }

    /// Pods that wait beside those measured, and are never bound.
    pub(crate) fn waiting(&self, nodes: usize) -> Vec<Value> {
        let pod = |at: usize| match self.beside {
            Beside::Unschedulable => pod("huge", at, "900", json!({}), json!({})),
            _ => {
                let gates = json!([{"name": "example.com/wait"}]);
                pod("gated", at, "100m", json!({}), json!({"schedulingGates": gates}))
            }
        };
        match self.beside {
            Beside::Unschedulable => (0..nodes / 5).map(pod).collect(),
            Beside::Gated => (0..nodes * 2).map(pod).collect(),
            _ => Vec::new(),
        }
    }

    fn pod(&self, prefix: &str, at: usize, is_init: bool) -> Value {
        let color = |color: &str| json!({"color": color});
        match self.rule {
            Rule::Plain => pod(prefix, at, "100m", json!({}), json!({})),
            Rule::NodeAffinity => {
                let zones = json!([{"key": ZONE, "operator": "In", "values": ["zone-1", "zone-2"]}]);
                pod(prefix, at, "100m", json!({}), node_affinity(json!({"matchExpressions": zones})))
            }
            Rule::Daemon => {
                let name = json!([{"key": "metadata.name", "operator": "In", "values": [node_name(at)]}]);
                pod(prefix, at, "100m", json!({}), node_affinity(json!({"matchFields": name})))
            }
            Rule::Spread { hard } => {
                let when = if hard { "DoNotSchedule" } else { "ScheduleAnyway" };
                let constraint = json!({
                    "maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": when,
                    "labelSelector": {"matchLabels": {"color": "blue"}},
                });
                pod(prefix, at, "100m", color("blue"), json!({"topologySpreadConstraints": [constraint]}))
            }
            Rule::Pods { kind, preferred, key } => {
                let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"color": "green"}}});
                let rule = match preferred {
                    true => json!({"preferredDuringSchedulingIgnoredDuringExecution":
                                   [{"weight": 1, "podAffinityTerm": term}]}),
                    false => json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]}),
                };
                pod(prefix, at, "100m", color("green"), json!({"affinity": {kind: rule}}))
            }
            Rule::Urgent if is_init => pod(prefix, at, "900m", json!({}), json!({})),
            Rule::Urgent => {
                pod(prefix, at, "3", json!({}), json!({"priorityClassName": "system-node-critical"}))
            }
        }
    }
}

/// The name of a node.
pub(crate) fn node_name(at: usize) -> String {
    format!("node-{at}")
}

/// A node as kube-scheduler's benchmark makes it: 4 CPUs, 32 GiB, one of three zones.
pub(crate) fn node(at: usize) -> Value {
    let room = json!({"cpu": "4", "memory": "32Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(at),
                     "labels": {HOST: node_name(at), ZONE: format!("zone-{}", at % 3)}},
        "status": {"allocatable": room, "capacity": room,
                   "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    })
}

/// Where pods are made.
pub(crate) fn pods_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods")
}

fn node_affinity(term: Value) -> Value {
    let required = json!({"nodeSelectorTerms": [term]});
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
}

fn pod(prefix: &str, at: usize, cpu: &str, labels: Value, rules: Value) -> Value {
    let requests = json!({"cpu": cpu, "memory": "500Mi"});
    let mut spec = json!({
        "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10",
                        "ports": [{"containerPort": 80}],
                        "resources": {"requests": requests, "limits": requests}}],
        "terminationGracePeriodSeconds": 0,
    });
    for (key, value) in rules.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{prefix}-{at}"), "labels": labels}, "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_names_of_their_own_and_pods_in_proportion() {
        for (at, workload) in WORKLOADS.iter().enumerate() {
            assert!(WORKLOADS[..at].iter().all(|other| other.name != workload.name));
            assert!(!workload.measured(100, None).is_empty(), "{}", workload.name);
            assert_eq!(workload.measured(100, Some(7)).len(), 7);
        }
        let gated = WORKLOADS.iter().find(|workload| workload.name == "gated").unwrap();
        assert_eq!(gated.waiting(100)[0]["spec"]["schedulingGates"][0]["name"], "example.com/wait");
    }
}
