//! What holds for every cluster and every order of events.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use scheduler::{Cycle, Framework, Outcome, PodInfo, Scheduler, SchedulerConfig};

use crate::build;

#[derive(Debug, Clone)]
struct RandomNode {
    cpu: u32,
    memory: u32,
    pods: u32,
    zone: u8,
    tainted: bool,
    cordoned: bool,
}

#[derive(Debug, Clone)]
struct RandomPod {
    cpu: u32,
    memory: u32,
    zone: Option<u8>,
    tolerates: bool,
    port: Option<u8>,
    priority: u8,
}

#[derive(Debug, Clone)]
enum Step {
    AddNode(u8, RandomNode),
    DropNode(u8),
    AddPod(u8, RandomPod),
    DeletePod(u8),
    FailBind(u8),
    Confirm(u8),
    Wait(u8),
    Schedule,
}

fn random_node() -> impl Strategy<Value = RandomNode> {
    (1..8u32, 1..8u32, 1..6u32, 0..3u8, prop::bool::weighted(0.2), prop::bool::weighted(0.1)).prop_map(
        |(cpu, memory, pods, zone, tainted, cordoned)| RandomNode {
            cpu,
            memory,
            pods,
            zone,
            tainted,
            cordoned,
        },
    )
}

fn random_pod() -> impl Strategy<Value = RandomPod> {
    (
        0..5u32,
        0..5u32,
        prop::option::weighted(0.3, 0..3u8),
        any::<bool>(),
        prop::option::weighted(0.2, 0..3u8),
        0..3u8,
    )
        .prop_map(|(cpu, memory, zone, tolerates, port, priority)| RandomPod {
            cpu,
            memory,
            zone,
            tolerates,
            port,
            priority,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..6u8, random_node()).prop_map(|(name, node)| Step::AddNode(name, node)),
        1 => (0..6u8).prop_map(Step::DropNode),
        6 => (0..30u8, random_pod()).prop_map(|(name, pod)| Step::AddPod(name, pod)),
        2 => (0..30u8).prop_map(Step::DeletePod),
        1 => (0..30u8).prop_map(Step::FailBind),
        2 => (0..30u8).prop_map(Step::Confirm),
        1 => (1..20u8).prop_map(Step::Wait),
        4 => Just(Step::Schedule),
    ]
}

fn node_object(name: u8, node: &RandomNode) -> k8s_openapi::api::core::v1::Node {
    let mut words = vec![
        format!("cpu={}", node.cpu),
        format!("memory={}Gi", node.memory),
        format!("pods={}", node.pods),
        format!("label:zone=z{}", node.zone),
    ];
    words.extend(node.tainted.then(|| "taint:key=value:NoSchedule".to_owned()));
    words.extend(node.cordoned.then(|| "cordoned".to_owned()));
    build::node(&format!("n{name}"), &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn pod_object(uid: &str, pod: &RandomPod, on: Option<&str>) -> k8s_openapi::api::core::v1::Pod {
    let mut words = vec![format!("priority={}", pod.priority), "never-displaces".to_owned()];
    words.extend((pod.cpu > 0).then(|| format!("cpu={}", pod.cpu)));
    words.extend((pod.memory > 0).then(|| format!("memory={}Gi", pod.memory)));
    words.extend(pod.zone.map(|zone| format!("selector:zone=z{zone}")));
    words.extend(pod.tolerates.then(|| "toleration:key=value:NoSchedule".to_owned()));
    words.extend(pod.port.map(|port| format!("port={}", 80 + u32::from(port))));
    words.extend(on.map(|node| format!("on={node}")));
    build::pod(uid, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The world as its owner keeps it, written independently of the scheduler's cache.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, RandomNode>,
    pods: BTreeMap<String, RandomPod>,
    /// Pod → node, for assumed and bound pods.
    on: BTreeMap<String, String>,
    confirmed: BTreeSet<String>,
}

impl Model {
    fn fits(&self, pod: &RandomPod, node_name: &str) -> bool {
        let node = &self.nodes[node_name];
        let there: Vec<_> =
            self.on.iter().filter(|(_, on)| *on == node_name).map(|(uid, _)| &self.pods[uid]).collect();
        let cpu: u32 = there.iter().map(|other| other.cpu).sum();
        let memory: u32 = there.iter().map(|other| other.memory).sum();
        !node.cordoned
            && (!node.tainted || pod.tolerates)
            && pod.zone.is_none_or(|zone| zone == node.zone)
            && pod.port.is_none_or(|port| there.iter().all(|other| other.port != Some(port)))
            && there.len() < node.pods as usize
            && (pod.cpu == 0 || cpu + pod.cpu <= node.cpu)
            && (pod.memory == 0 || memory + pod.memory <= node.memory)
    }
}

fn apply(step: Step, model: &mut Model, scheduler: &mut Scheduler, now: &mut Duration) {
    match step {
        Step::AddNode(name, node) => {
            scheduler.node_changed(&node_object(name, &node), *now).expect("valid node");
            model.nodes.insert(format!("n{name}"), node);
        }
        Step::DropNode(name) => {
            scheduler.node_removed(&format!("n{name}"), *now);
            model.nodes.remove(&format!("n{name}"));
        }
        Step::AddPod(name, pod) => {
            let uid = format!("p{name}");
            if let Entry::Vacant(place) = model.pods.entry(uid) {
                scheduler.pod_changed(&pod_object(place.key(), &pod, None), *now).expect("valid pod");
                place.insert(pod);
            }
        }
        Step::DeletePod(name) => {
            let uid = format!("p{name}");
            scheduler.pod_removed(&uid, *now);
            model.pods.remove(&uid);
            model.on.remove(&uid);
            model.confirmed.remove(&uid);
        }
        Step::FailBind(name) => {
            let uid = format!("p{name}");
            if model.on.contains_key(&uid) && !model.confirmed.contains(&uid) {
                scheduler.bind_failed(&uid, *now);
                model.on.remove(&uid);
            }
        }
        Step::Confirm(name) => {
            let uid = format!("p{name}");
            if let Some(node) = model.on.get(&uid) {
                let pod = pod_object(&uid, &model.pods[&uid], Some(node));
                scheduler.pod_changed(&pod, *now).expect("valid pod");
                model.confirmed.insert(uid);
            }
        }
        Step::Wait(seconds) => *now += Duration::from_secs(u64::from(seconds)),
        Step::Schedule => {
            while let Some(outcome) = scheduler.schedule_next(*now) {
                check(outcome, model);
            }
        }
    }
}

fn check(outcome: Outcome, model: &mut Model) {
    match &outcome {
        Outcome::Bind { pod, node } => {
            let uid = pod.uid.to_string();
            assert!(!model.on.contains_key(&uid), "{uid} is placed twice");
            assert!(model.fits(&model.pods[&uid], node), "{uid} does not fit {node}");
            model.on.insert(uid, node.to_string());
        }
        Outcome::BindGroup { .. } | Outcome::Displace { .. } => panic!("nobody asked for {outcome:?}"),
        Outcome::Unschedulable { pod, error } => {
            let waiting = &model.pods[&*pod.uid];
            assert_eq!(error.nodes, model.nodes.len());
            for node in model.nodes.keys() {
                assert!(!model.fits(waiting, node), "{} fits {node}, yet: {error}", pod.uid);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// No node is over-committed, no pod is placed twice, every decision is feasible and every "fits
    /// nowhere" is true, against a model that recomputes everything from scratch.
    #[test]
    fn decisions_agree_with_a_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut scheduler = Scheduler::new(SchedulerConfig::default());
        let mut model = Model::default();
        let mut now = Duration::ZERO;
        for step in steps {
            apply(step, &mut model, &mut scheduler, &mut now);
        }
        // In the end nobody that fits is left waiting: after all waits, everything was tried again.
        now += Duration::from_secs(600);
        apply(Step::Schedule, &mut model, &mut scheduler, &mut now);
        for (uid, pod) in &model.pods {
            if !model.on.contains_key(uid) {
                prop_assert!(model.nodes.keys().all(|node| !model.fits(pod, node)), "{} was left out", uid);
            }
        }
    }

    /// Same cluster, same pod, same seed: same node. And the node's score is a best one.
    #[test]
    fn equal_calls_decide_equally(
        nodes in prop::collection::vec(random_node(), 1..40),
        pods in prop::collection::vec(random_pod(), 1..20),
        seed in any::<u64>(),
    ) {
        let decide = || {
            let mut scheduler =
                Scheduler::new(SchedulerConfig { seed, ..SchedulerConfig::default() });
            for (at, node) in nodes.iter().enumerate() {
                let name = u8::try_from(at).expect("few nodes");
                scheduler.node_changed(&node_object(name, node), Duration::ZERO).expect("valid node");
            }
            for (at, pod) in pods.iter().enumerate() {
                let pod = pod_object(&format!("p{at}"), pod, None);
                scheduler.pod_changed(&pod, Duration::ZERO).expect("valid pod");
            }
            std::iter::from_fn(|| scheduler.schedule_next(Duration::ZERO))
                .map(|outcome| match outcome {
                    Outcome::Bind { pod, node } => format!("{} {node}", pod.uid),
                    Outcome::Unschedulable { pod, error } => format!("{} {error}", pod.uid),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
        };
        prop_assert_eq!(decide(), decide());
    }
}

/// Over many equal nodes the tie-breaker leaves none out.
#[test]
fn ties_are_broken_evenly() {
    let mut cache = scheduler::Cache::default();
    for name in 0..10 {
        let words = ["cpu=4", "memory=8Gi", "pods=10"];
        cache.upsert_node(&build::node(&format!("n{name}"), &words)).expect("valid node");
    }
    let pod = cache.intern(PodInfo::new(&build::pod("p", &["cpu=1"])).expect("valid pod"));
    let framework = Framework::default_profile();
    let mut cycle = Cycle::new(7);
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        let decision = cycle.schedule_one(&framework, &cache, &pod).expect("fits");
        *counts.entry(decision.node).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 10);
    assert!(counts.values().all(|&count| (60..=140).contains(&count)), "{counts:?}");
}
