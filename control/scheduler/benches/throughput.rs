//! Pods per second of the scheduler's core: `cargo bench -p scheduler`.
//!
//! Each run fills a cluster of equal nodes with equal pods, one cycle per pod with its binding confirmed,
//! as kube-scheduler's own benchmark "basic" does, without the API in between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{
    Container, Node, NodeStatus, Pod, PodSpec, ResourceRequirements, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use scheduler::{Outcome, Scheduler, SchedulerConfig};

fn quantities(list: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    list.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
}

fn node(at: usize) -> Node {
    let allocatable = quantities(&[("cpu", "32"), ("memory", "128Gi"), ("pods", "110")]);
    Node {
        metadata: ObjectMeta { name: Some(format!("node-{at}")), ..Default::default() },
        status: Some(NodeStatus { allocatable: Some(allocatable), ..Default::default() }),
        ..Default::default()
    }
}

fn pod(at: usize, cpu: &str) -> Pod {
    let requests = quantities(&[("cpu", cpu), ("memory", "500Mi")]);
    let container = Container {
        resources: Some(ResourceRequirements { requests: Some(requests), ..Default::default() }),
        ..Default::default()
    };
    let tolerations = ["not-ready", "unreachable"].map(|state| Toleration {
        key: Some(format!("node.kubernetes.io/{state}")),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        toleration_seconds: Some(300),
        ..Default::default()
    });
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("pod-{at}")),
            uid: Some(format!("8f1b7c1e-0000-4000-8000-{at:012}")),
            ..Default::default()
        },
        spec: Some(PodSpec {
            containers: vec![container],
            scheduler_name: Some("default-scheduler".to_owned()),
            tolerations: Some(tolerations.into()),
            ..Default::default()
        }),
        status: None,
    }
}

fn cluster(nodes: usize) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    for at in 0..nodes {
        scheduler.node_changed(&node(at), Duration::ZERO).expect("valid node");
    }
    scheduler
}

fn basic(nodes: usize, pods: usize) {
    let mut scheduler = cluster(nodes);
    let objects: Vec<Pod> = (0..pods).map(|at| pod(at, "100m")).collect();
    let started = Instant::now();
    for object in &objects {
        scheduler.pod_changed(object, Duration::ZERO).expect("valid pod");
    }
    let queued = started.elapsed();
    let started = Instant::now();
    let mut bound = 0;
    while let Some(Outcome::Bind { pod, .. }) = scheduler.schedule_next(Duration::ZERO) {
        scheduler.bound(&pod.uid);
        bound += 1;
    }
    report("basic", nodes, bound, started.elapsed());
    report("  reading and queueing alone", nodes, pods, queued);
    assert_eq!(bound, pods, "every pod fits");
}

fn unschedulable(nodes: usize, pods: usize) {
    let mut scheduler = cluster(nodes);
    for at in 0..pods {
        scheduler.pod_changed(&pod(at, "64"), Duration::ZERO).expect("valid pod");
    }
    let started = Instant::now();
    let mut parked = 0;
    while let Some(Outcome::Unschedulable { .. }) = scheduler.schedule_next(Duration::ZERO) {
        parked += 1;
    }
    report("fits nowhere", nodes, parked, started.elapsed());
}

fn report(what: &str, nodes: usize, pods: usize, took: Duration) {
    let rate = pods as f64 / took.as_secs_f64();
    println!("{what:<30} {nodes:>6} nodes {pods:>7} pods {took:>10.1?} {rate:>10.0} pods/s");
}

fn main() {
    for nodes in [100, 1000, 5000, 10000] {
        basic(nodes, if nodes == 100 { 5_000 } else { 30_000 });
    }
    for nodes in [1000, 5000] {
        unschedulable(nodes, 500);
    }
}
