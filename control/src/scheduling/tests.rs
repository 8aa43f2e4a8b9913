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
