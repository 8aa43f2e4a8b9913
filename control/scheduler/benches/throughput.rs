//! Pods per second of the scheduler's core: `cargo bench -p scheduler [-- WORDS]`.
//!
//! The workloads are those that kube-scheduler's own benchmark defines, without the API in between: one
//! cycle per pod, its binding confirmed. Words choose workloads by their names. Time is the thread's own
//! time on a processor, so that what else the machine does counts little.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{Outcome, Scheduler, SchedulerConfig};
use serde_json::{Value, json};

/// The longest that one workload may take.
const TIME_MAX: Duration = Duration::from_secs(60);

fn node(at: usize, zone: &str) -> Node {
    let name = format!("node-{at}");
    let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
    let allocatable = json!({"cpu": "4", "memory": "32Gi", "pods": "110"});
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels}, "status": {"allocatable": allocatable},
    }))
    .expect("a node")
}

#[derive(Clone)]
struct Shape {
    name: &'static str,
    cpu: &'static str,
    labels: Value,
    spec: Value,
}

impl Shape {
    fn new(name: &'static str, labels: Value, spec: Value) -> Self {
        Self { name, cpu: "100m", labels, spec }
    }

    fn pod(&self, at: usize) -> Pod {
        let tolerations = ["not-ready", "unreachable"].map(|state| {
            json!({"key": format!("node.kubernetes.io/{state}"), "operator": "Exists", "effect": "NoExecute",
                   "tolerationSeconds": 300})
        });
        let requests = json!({"cpu": self.cpu, "memory": "500Mi"});
        let mut spec = json!({
            "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10",
                            "resources": {"requests": requests}}],
            "schedulerName": "default-scheduler", "tolerations": tolerations,
        });
        for (key, value) in self.spec.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let uid = format!("{}-8f1b7c1e-0000-4000-8000-{at:012}", self.name);
        serde_json::from_value(json!({
            "metadata": {"name": format!("{}-{at}", self.name), "namespace": "default", "uid": uid,
                         "labels": self.labels},
            "spec": spec,
        }))
        .expect("a pod")
    }
}

fn affinity(kind: &str, preferred: bool, key: &str, label: (&str, &str)) -> Value {
    let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {label.0: label.1}}});
    match preferred {
        true => json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution":
                               [{"weight": 1, "podAffinityTerm": term}]}}),
        false => json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}),
    }
}

fn spread(when: &str) -> Value {
    json!({"topologySpreadConstraints": [{
        "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"color": "blue"}},
    }]})
}

fn shapes() -> BTreeMap<&'static str, Shape> {
    let host = "kubernetes.io/hostname";
    let zone = "topology.kubernetes.io/zone";
    let in_zone = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions":
            [{"key": zone, "operator": "In", "values": ["zone-1", "zone-2"]}]}]}}}});
    let color = |color: &str| json!({"color": color});
    let shape = |name, color_of: &str, kind, preferred, key| {
        let rule = affinity(kind, preferred, key, ("color", color_of));
        Shape::new(name, color(color_of), json!({"affinity": rule}))
    };
    let list = [
        Shape::new("basic", json!({}), json!({})),
        Shape::new("node-affinity", json!({}), in_zone),
        Shape::new("topology-spread", color("blue"), spread("DoNotSchedule")),
        Shape::new("preferred-topology-spread", color("blue"), spread("ScheduleAnyway")),
        shape("pod-affinity", "blue", "podAffinity", false, zone),
        shape("pod-anti-affinity", "green", "podAntiAffinity", false, host),
        shape("preferred-pod-affinity", "red", "podAffinity", true, host),
        shape("preferred-pod-anti-affinity", "yellow", "podAntiAffinity", true, host),
    ];
    list.into_iter().map(|shape| (shape.name, shape)).collect()
}

fn cluster(nodes: usize) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    for at in 0..nodes {
        let zone = format!("zone-{}", at % 3);
        scheduler.node_changed(&node(at, &zone), Duration::ZERO).expect("valid node");
    }
    scheduler
}

fn run(scheduler: &mut Scheduler, pods: &[Pod]) -> (usize, Duration) {
    for pod in pods {
        scheduler.pod_changed(pod, Duration::ZERO).expect("valid pod");
    }
    let started = Clock::now();
    let mut bound = 0;
    while let Some(outcome) = scheduler.schedule_next(Duration::ZERO) {
        if let Outcome::Bind { pod, node } = outcome {
            scheduler.bound(&pod.uid, &node);
            bound += 1;
        }
        if bound % 256 == 0 && started.elapsed() > TIME_MAX {
            break;
        }
    }
    (bound, started.elapsed())
}

fn workload(shape: &Shape, nodes: usize, init: usize, count: usize) {
    let mut scheduler = cluster(nodes);
    let before: Vec<Pod> = (0..init).map(|at| shape.pod(at)).collect();
    run(&mut scheduler, &before);
    let pods: Vec<Pod> = (init..init + count).map(|at| shape.pod(at)).collect();
    let (bound, took) = run(&mut scheduler, &pods);
    report(shape.name, nodes, bound, took);
    assert!(bound == count || took >= TIME_MAX, "{}: {bound} of {count}", shape.name);
}

fn queueing(nodes: usize, count: usize) {
    let mut scheduler = cluster(nodes);
    let basic = Shape::new("basic", json!({}), json!({}));
    let pods: Vec<Pod> = (0..count).map(|at| basic.pod(at)).collect();
    let started = Clock::now();
    for pod in &pods {
        scheduler.pod_changed(pod, Duration::ZERO).expect("valid pod");
    }
    report("reading and queueing alone", nodes, count, started.elapsed());
}

/// Every node is full of pods of low priority; each new pod displaces one, which ends at once.
fn preemption(nodes: usize, count: usize) {
    let mut scheduler = cluster(nodes);
    let low = Shape { cpu: "900m", ..Shape::new("low", json!({}), json!({})) };
    let before: Vec<Pod> = (0..nodes * 4).map(|at| low.pod(at)).collect();
    run(&mut scheduler, &before);
    let spec = json!({"priority": 10});
    let high = Shape { cpu: "3", ..Shape::new("high", json!({}), spec) };
    let pods: Vec<Pod> = (0..count).map(|at| high.pod(at)).collect();
    for pod in &pods {
        scheduler.pod_changed(pod, Duration::ZERO).expect("valid pod");
    }
    let started = Clock::now();
    let mut now = Duration::ZERO;
    let mut bound = 0;
    while bound < count && (bound % 256 != 0 || started.elapsed() < TIME_MAX) {
        match scheduler.schedule_next(now) {
            Some(Outcome::Bind { pod, node }) => {
                scheduler.bound(&pod.uid, &node);
                bound += 1;
            }
            Some(Outcome::Displace { displacement, .. }) => {
                for victim in &displacement.victims {
                    scheduler.pod_removed(&victim.uid, now);
                }
            }
            Some(other) => panic!("{other:?}"),
            None => now += Duration::from_secs(1),
        }
    }
    report("preemption", nodes, bound, started.elapsed());
}

fn unschedulable(nodes: usize, count: usize) {
    let mut scheduler = cluster(nodes);
    let huge = Shape { cpu: "64", ..Shape::new("huge", json!({}), json!({})) };
    for at in 0..count {
        scheduler.pod_changed(&huge.pod(at), Duration::ZERO).expect("valid pod");
    }
    let started = Clock::now();
    let mut parked = 0;
    while let Some(Outcome::Unschedulable { .. }) = scheduler.schedule_next(Duration::ZERO) {
        parked += 1;
    }
    report("fits nowhere", nodes, parked, started.elapsed());
}

/// One pod per node that names it, as a DaemonSet makes them.
fn daemons(nodes: usize) {
    let mut scheduler = cluster(nodes);
    let pod = |at: usize| {
        let named = json!({"key": "metadata.name", "operator": "In", "values": [format!("node-{at}")]});
        let terms = json!({"nodeSelectorTerms": [{"matchFields": [named]}]});
        let rule = json!({"requiredDuringSchedulingIgnoredDuringExecution": terms});
        Shape::new("daemon", json!({}), json!({"affinity": {"nodeAffinity": rule}})).pod(at)
    };
    let pods: Vec<Pod> = (0..nodes).map(pod).collect();
    let (bound, took) = run(&mut scheduler, &pods);
    report("daemon-set", nodes, bound, took);
}

/// Time that this thread has spent on a processor: what others do on the machine does not count.
#[derive(Clone, Copy)]
struct Clock(Duration);

impl Clock {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
        Self(Duration::from_nanos(nanos.unwrap_or(0)))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

fn report(what: &str, nodes: usize, pods: usize, took: Duration) {
    let rate = pods as f64 / took.as_secs_f64();
    println!("{what:<30} {nodes:>6} nodes {pods:>7} pods {took:>10.1?} {rate:>10.0} pods/s");
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let shapes = shapes();
    if wanted("basic") {
        for nodes in [100, 1000, 5000, 10000] {
            workload(&shapes["basic"], nodes, 0, (nodes * 30).min(30_000));
        }
        queueing(5000, 30_000);
    }
    for (name, shape) in shapes.iter().filter(|(name, _)| **name != "basic" && wanted(name)) {
        for nodes in [500, 5000] {
            // Of pods that repel each other, each takes a node; less time than a tick cannot be measured.
            let is_one_per_node = name.contains("pod-anti-affinity") && !name.contains("preferred");
            let count = if is_one_per_node { nodes / 2 } else { (nodes * 10).min(10_000) };
            workload(shape, nodes, nodes / 5, count);
        }
    }
    if wanted("preemption") {
        preemption(500, 500);
        preemption(5000, 5000);
    }
    if wanted("unschedulable") {
        unschedulable(5000, 5000);
    }
    if wanted("daemon") {
        daemons(5000);
    }
}
