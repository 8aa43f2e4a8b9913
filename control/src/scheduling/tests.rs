//! Scheduling over a store in memory, from pods to bindings, Events and conditions.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::controllers::Timings;
use crate::registry::Target;
use crate::test_cluster::{TestCluster, condition, kind};

/// These tests are about pods; nodes never fall silent in them.
fn timings() -> Timings {
    Timings { node_monitor_grace: Duration::from_secs(3600), ..Timings::default() }
}

fn is_bound(pod: &serde_json::Value) -> bool {
    pod["spec"]["nodeName"].is_string()
}

#[tokio::test]
async fn pods_are_spread_over_the_nodes_and_told_so() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    cluster.node("n2", "4").await;
    for at in 0..30 {
        cluster.pod(&format!("p{at}"), "100m").await;
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for at in 0..30 {
        let pod = cluster.until("Pod", "default", &format!("p{at}"), is_bound).await;
        assert_eq!(condition(&pod, "PodScheduled")["status"], "True");
        *counts.entry(pod["spec"]["nodeName"].to_string()).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [15, 15]);
    let pod = cluster.get("Pod", "default", "p0").await.expect("exists");
    let expected =
        format!("Successfully assigned default/p0 to {}", pod["spec"]["nodeName"].as_str().unwrap());
    assert_eq!(cluster.event("Scheduled", "p0").await, expected);
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_goes_where_room_appears() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "1").await;
    cluster.pod("big", "2").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                   1 Preemption is not helpful for scheduling.";
    let waiting = |pod: &serde_json::Value| condition(pod, "PodScheduled")["status"] == "False";
    let pod = cluster.until("Pod", "default", "big", waiting).await;
    assert_eq!(condition(&pod, "PodScheduled")["reason"], "Unschedulable");
    assert_eq!(condition(&pod, "PodScheduled")["message"], message);
    assert_eq!(cluster.event("FailedScheduling", "big").await, message);
    cluster.node("n2", "4").await;
    let pod = cluster.until("Pod", "default", "big", is_bound).await;
    assert_eq!(pod["spec"]["nodeName"], "n2");
    assert_eq!(condition(&pod, "PodScheduled")["status"], "True");
}

#[tokio::test]
async fn only_a_leader_schedules_and_a_new_one_takes_over_at_once() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    cluster.pod("first", "1").await;
    cluster.until("Pod", "default", "first", is_bound).await;
    cluster.follow(2);
    cluster.pod("second", "1").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let pod = cluster.get("Pod", "default", "second").await.expect("exists");
    assert!(!is_bound(&pod), "a follower does not bind");
    let led = std::time::Instant::now();
    cluster.lead(3);
    cluster.until("Pod", "default", "second", is_bound).await;
    assert!(led.elapsed() < Duration::from_secs(1), "took over in {:?}", led.elapsed());
}

#[tokio::test]
async fn what_another_leader_bound_meanwhile_is_counted_before_anything_is_decided() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    cluster.follow(2);
    // Another replica leads and fills the node.
    cluster.pod("theirs", "3").await;
    let binding = crate::registry::Binding {
        namespace: "default".into(),
        name: "theirs".into(),
        uid: cluster.get("Pod", "default", "theirs").await.expect("exists")["metadata"]["uid"]
            .as_str()
            .expect("a uid")
            .into(),
        resource_version: None,
        node: "n1".into(),
    };
    cluster.pod("ours", "2").await;
    let bound = cluster.registry.bind_all(&[binding], Some(2)).await.expect("memory store");
    cluster.lead(3);
    assert!(bound[0].is_ok());
    let waiting = |pod: &serde_json::Value| condition(pod, "PodScheduled")["status"] == "False";
    let pod = cluster.until("Pod", "default", "ours", waiting).await;
    assert!(!is_bound(&pod), "the node is full");
}

#[tokio::test]
async fn bindings_that_the_store_refuses_are_made_when_it_is_back() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    cluster.pod("before", "1").await;
    cluster.until("Pod", "default", "before", is_bound).await;
    cluster.pod("gated", "1").await;
    cluster.until("Pod", "default", "gated", is_bound).await;
    // A pod that waits for a label; then the store loses its quorum in the moment the label is there.
    let mut selective = crate::test_cluster::pod("selective", "1");
    selective["spec"]["nodeSelector"] = serde_json::json!({"disk": "ssd"});
    cluster.create("Pod", "default", selective).await;
    let waiting = |pod: &serde_json::Value| condition(pod, "PodScheduled")["status"] == "False";
    cluster.until("Pod", "default", "selective", waiting).await;
    cluster
        .modify(Target::new(kind("Node"), "", "n1"), |node| {
            node["metadata"]["labels"]["disk"] = serde_json::Value::from("ssd");
        })
        .await;
    cluster.store.set_unavailable(Some("no quorum"));
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let pod = cluster.get("Pod", "default", "selective").await.expect("exists");
    assert!(!is_bound(&pod));
    cluster.store.set_unavailable(None);
    cluster.until("Pod", "default", "selective", is_bound).await;
}

fn is_scheduled(pod: &serde_json::Value, status: &str, reason: &str) -> bool {
    let condition = condition(pod, "PodScheduled");
    condition["status"] == status && condition["reason"] == reason
}

#[tokio::test]
async fn a_more_important_pod_displaces_another_gracefully_and_gets_its_room() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "1").await;
    cluster.pod("small", "800m").await;
    cluster.until("Pod", "default", "small", is_bound).await;
    let mut urgent = crate::test_cluster::pod("urgent", "800m");
    urgent["spec"]["priorityClassName"] = serde_json::json!("system-node-critical");
    cluster.create("Pod", "default", urgent).await;

    let leaves = |pod: &serde_json::Value| pod["metadata"]["deletionTimestamp"].is_string();
    let victim = cluster.until("Pod", "default", "small", leaves).await;
    let disrupted = condition(&victim, "DisruptionTarget");
    assert_eq!(
        (&disrupted["status"], &disrupted["reason"]),
        (&"True".into(), &"PreemptionByScheduler".into())
    );
    assert_eq!(victim["metadata"]["deletionGracePeriodSeconds"], 30, "its own grace");
    let nominated = |pod: &serde_json::Value| pod["status"]["nominatedNodeName"] == "n1";
    let pod = cluster.until("Pod", "default", "urgent", nominated).await;
    assert!(!is_bound(&pod) && is_scheduled(&pod, "False", "Unschedulable"), "{pod}");
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    assert_eq!(cluster.event("Preempted", "small").await, format!("Preempted by pod {uid} on node n1"));
    let why = cluster.event("FailedScheduling", "urgent").await;
    assert_eq!(why, "0/1 nodes are available: 1 Insufficient cpu.");

    // The room is urgent's, also under the next leader; nobody slips in.
    cluster.follow(2);
    cluster.lead(3);
    let gone = crate::registry::DeleteOptions::now(victim["metadata"]["uid"].as_str().expect("a uid"));
    cluster.registry.delete(Target::new(kind("Pod"), "default", "small"), &gone).await.expect("deleted");
    cluster.pod("late", "800m").await;
    let pod = cluster.until("Pod", "default", "urgent", is_bound).await;
    assert_eq!(pod["spec"]["nodeName"], "n1");
}

#[tokio::test]
async fn a_gated_pod_says_so_and_goes_when_its_gates_are_gone() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    let mut gated = crate::test_cluster::pod("gated", "1");
    gated["spec"]["schedulingGates"] = serde_json::json!([{"name": "example.com/wait"}]);
    cluster.create("Pod", "default", gated).await;
    cluster.pod("free", "1").await;
    cluster.until("Pod", "default", "free", is_bound).await;
    let pod = cluster.get("Pod", "default", "gated").await.expect("exists");
    assert!(!is_bound(&pod) && is_scheduled(&pod, "False", "SchedulingGated"), "{pod}");
    let open = |pod: &mut serde_json::Value| pod["spec"]["schedulingGates"] = serde_json::json!([]);
    cluster.modify(Target::new(kind("Pod"), "default", "gated"), open).await;
    cluster.until("Pod", "default", "gated", is_bound).await;
}

#[tokio::test]
async fn a_group_goes_when_it_is_complete() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    for name in ["m1", "m2", "m3"] {
        if name == "m3" {
            let waits = |pod: &serde_json::Value| is_scheduled(pod, "False", "Unschedulable");
            let pod = cluster.until("Pod", "default", "m2", waits).await;
            let message = condition(&pod, "PodScheduled")["message"].as_str().expect("a message");
            assert!(message.contains("of the 3 pods that it needs at least"), "{message}");
        }
        let mut member = crate::test_cluster::pod(name, "1");
        member["metadata"]["labels"] = serde_json::json!({scheduler::POD_GROUP_LABEL: "train"});
        member["metadata"]["annotations"] = serde_json::json!({scheduler::POD_GROUP_MIN_ANNOTATION: "3"});
        cluster.create("Pod", "default", member).await;
    }
    let mut versions = std::collections::BTreeSet::new();
    for name in ["m1", "m2", "m3"] {
        let pod = cluster.until("Pod", "default", name, is_bound).await;
        versions.insert(pod["metadata"]["resourceVersion"].to_string());
    }
    assert_eq!(versions.len(), 1, "all in one revision");
}

#[tokio::test]
async fn a_pod_groups_object_says_how_many_it_needs() {
    let cluster = TestCluster::start(timings()).await;
    let group = "scheduling.x-k8s.io";
    let schema = serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = serde_json::json!({"metadata": {"name": format!("podgroups.{group}"),
        "annotations": {"api-approved.kubernetes.io": "https://example.org"}},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "podgroups", "kind": "PodGroup"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema}}]}});
    let made = crate::registry::definition_kind();
    cluster.registry.create(made, "", definition, &Default::default()).await.expect("created");
    let kinds = cluster.registry.kinds();
    let kind_of_group = loop {
        kinds.learn(group, "podgroups").await;
        match kinds.current().by_group_kind(group, "PodGroup") {
            Some(kind) => break kind,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let object = serde_json::json!({"apiVersion": format!("{group}/v1alpha1"), "kind": "PodGroup",
        "metadata": {"name": "train"}, "spec": {"minMember": 2}});
    cluster.registry.create(kind_of_group, "default", object, &Default::default()).await.expect("created");
    let member = |name: &str| {
        let mut member = crate::test_cluster::pod(name, "1");
        member["metadata"]["labels"] = serde_json::json!({scheduler::POD_GROUP_LABEL: "train"});
        member
    };
    cluster.create("Pod", "default", member("m1")).await;
    // There is no node yet, so that the member waits also before the scheduler has heard of the group.
    let knows = |pod: &serde_json::Value| {
        let message = condition(pod, "PodScheduled")["message"].as_str().unwrap_or_default();
        message.contains("of the 2 pods that it needs at least")
    };
    cluster.until("Pod", "default", "m1", knows).await;
    cluster.node("n1", "4").await;
    cluster.create("Pod", "default", member("m2")).await;
    let first = cluster.until("Pod", "default", "m1", is_bound).await;
    let second = cluster.until("Pod", "default", "m2", is_bound).await;
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn the_leader_explains_its_decisions() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    cluster.node("n2", "1").await;
    cluster.pod("big", "2").await;
    cluster.until("Pod", "default", "big", is_bound).await;
    let explainer = &cluster.work.explainer;
    let why = explainer.explain("default", "big").await.expect("it is remembered");
    assert_eq!((why.node.as_deref(), why.feasible, why.nodes), (Some("n1"), 1, 2));
    assert!(why.examined[0].rejected.is_none() && !why.examined[0].scores.is_empty());
    let rejected = ("NodeResourcesFit".to_owned(), "Insufficient cpu".to_owned());
    assert_eq!(why.examined[1].rejected, Some(rejected));
    let unknown = explainer.explain("default", "nobody").await.expect_err("not remembered");
    assert!(matches!(unknown, crate::scheduling::ExplainError::Unknown { .. }));
    cluster.follow(2);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = explainer.explain("default", "big").await.expect_err("others lead");
    assert_eq!(refused, crate::scheduling::ExplainError::NotLeader);
}

#[tokio::test]
async fn what_pods_take_is_given_back_to_the_last_thousandth() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "1").await;
    let bound = async |name: &str| cluster.until("Pod", "default", name, is_bound).await;
    // Each needs all of the node, so a thousandth that is kept would stop the next.
    for round in 0..100 {
        let name = format!("round-{round}");
        cluster.pod(&name, "1").await;
        let pod = bound(&name).await;
        let gone = crate::registry::DeleteOptions::now(pod["metadata"]["uid"].as_str().expect("a uid"));
        cluster.registry.delete(Target::new(kind("Pod"), "default", &name), &gone).await.expect("deleted");
    }
    for (name, cpu) in [("first", "400m"), ("second", "600m")] {
        cluster.pod(name, cpu).await;
        bound(name).await;
    }
    // And one that is given twice would let this in.
    cluster.pod("least", "1m").await;
    let waits = |pod: &serde_json::Value| is_scheduled(pod, "False", "Unschedulable");
    cluster.until("Pod", "default", "least", waits).await;
}

#[tokio::test]
async fn a_displaced_replica_is_made_again_and_goes_where_there_is_room() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "1").await;
    let mut template = crate::test_cluster::pod("", "800m");
    template["metadata"] = serde_json::json!({"labels": {"app": "web"}});
    let set = serde_json::json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    cluster.make("apps", "ReplicaSet", set).await;
    let first = cluster.until_all("", "Pod", |pods| pods.len() == 1 && is_bound(&pods[0])).await.remove(0);
    let mut urgent = crate::test_cluster::pod("urgent", "800m");
    urgent["spec"]["priorityClassName"] = serde_json::json!("system-cluster-critical");
    cluster.create("Pod", "default", urgent).await;
    let name = first["metadata"]["name"].as_str().expect("a name").to_owned();
    let leaves = |pod: &serde_json::Value| pod["metadata"]["deletionTimestamp"].is_string();
    cluster.until("Pod", "default", &name, leaves).await;
    // What its node does in the end.
    let gone = crate::registry::DeleteOptions::now(first["metadata"]["uid"].as_str().expect("a uid"));
    cluster.registry.delete(Target::new(kind("Pod"), "default", &name), &gone).await.expect("deleted");
    let pod = cluster.until("Pod", "default", "urgent", is_bound).await;
    assert_eq!(pod["spec"]["nodeName"], "n1");
    let again = |pods: &[serde_json::Value]| {
        let other = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == "web");
        other.filter(|pod| is_scheduled(pod, "False", "Unschedulable") && !leaves(pod)).cloned()
    };
    let pods = cluster.until_all("", "Pod", |pods| pods.len() == 2 && again(pods).is_some()).await;
    let again = again(&pods).expect("it waits");
    assert_ne!(again["metadata"]["uid"], first["metadata"]["uid"]);
    cluster.node("n2", "1").await;
    let name = again["metadata"]["name"].as_str().expect("a name");
    let pod = cluster.until("Pod", "default", name, is_bound).await;
    assert_eq!(pod["spec"]["nodeName"], "n2");
}
