//! As many pods as asked for, through creation, loss, scaling, adoption and a new leader.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::{DeleteOptions, ListOptions, Target, WriteOptions};
use crate::test_cluster::{TestCluster, kind};

fn set(name: &str, replicas: u32) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
    }})
}

fn sets() -> &'static api::Kind {
    api::kinds::by_kind("apps", "v1", "ReplicaSet").expect("a kind")
}

async fn make(cluster: &TestCluster, set: Value) {
    cluster.registry.create(sets(), "default", set, &WriteOptions::default()).await.expect("created");
}

async fn pods(cluster: &TestCluster) -> Vec<Value> {
    let list = cluster.registry.list(kind("Pod"), Some("default"), &ListOptions::default()).await;
    list.expect("memory store").items.iter().map(|pod| pod.value().clone()).collect()
}

/// Waits until the pods are as they should be, and stay so for a while.
async fn until(cluster: &TestCluster, is_right: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let found = pods(cluster).await;
        if is_right(&found) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let later = pods(cluster).await;
            if is_right(&later) {
                return later;
            }
        }
        assert!(Instant::now() < deadline, "{found:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn names(pods: &[Value]) -> Vec<String> {
    pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn scale(cluster: &TestCluster, name: &str, replicas: u32) {
    let target = Target::new(sets(), "default", name);
    cluster.modify(target, |set| set["spec"]["replicas"] = json!(replicas)).await;
}

async fn status(cluster: &TestCluster, name: &str) -> Value {
    let set = cluster.registry.get(sets(), "default", name).await.expect("there");
    set.value()["status"].clone()
}

#[tokio::test]
async fn pods_are_made_replaced_added_and_taken_away() {
    let cluster = TestCluster::start(Timings::default()).await;
    make(&cluster, set("web", 3)).await;
    let first = until(&cluster, |pods| pods.len() == 3).await;
    assert!(first.iter().all(|pod| pod["metadata"]["ownerReferences"][0]["controller"] == true));
    assert!(
        names(&first).iter().all(|name| name.starts_with("web-") && name.len() == 9),
        "{:?}",
        names(&first)
    );
    let gone = &names(&first)[0];
    let now = DeleteOptions { grace_period_s: Some(0), ..DeleteOptions::default() };
    cluster.registry.delete(Target::new(kind("Pod"), "default", gone), &now).await.expect("deleted");
    let second = until(&cluster, |pods| pods.len() == 3).await;
    assert!(!names(&second).contains(gone));
    scale(&cluster, "web", 20).await;
    let third = until(&cluster, |pods| pods.len() == 20).await;
    assert!(names(&second).iter().all(|name| names(&third).contains(name)), "those that were there stay");
    scale(&cluster, "web", 0).await;
    until(&cluster, |pods| pods.is_empty()).await;
    assert_eq!(cluster.event("SuccessfulDelete", "web").await.split(':').next(), Some("Deleted pod"));
    let deadline = Instant::now() + Duration::from_secs(5);
    while status(&cluster, "web").await["replicas"] != 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn free_pods_are_adopted_and_those_that_no_longer_fit_let_go() {
    let cluster = TestCluster::start(Timings::default()).await;
    let mut free = crate::test_cluster::pod("free", "1");
    free["metadata"]["labels"] = json!({"app": "web"});
    cluster.create("Pod", "default", free).await;
    // The scheduler has found no node for it: so this replica's copy of the pods has it.
    let is_seen = |pod: &Value| crate::test_cluster::condition(pod, "PodScheduled")["status"] == "False";
    cluster.until("Pod", "default", "free", is_seen).await;
    make(&cluster, set("web", 2)).await;
    let own = until(&cluster, |pods| pods.len() == 2).await;
    assert!(names(&own).contains(&"free".to_owned()));
    cluster
        .until("Pod", "default", "free", |pod| pod["metadata"]["ownerReferences"][0]["name"] == "web")
        .await;
    let target = Target::new(kind("Pod"), "default", "free");
    cluster.modify(target, |pod| pod["metadata"]["labels"]["app"] = json!("other")).await;
    until(&cluster, |pods| pods.len() == 3).await;
    let freed = cluster.get("Pod", "default", "free").await.expect("there");
    assert!(freed["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{freed}");
}

#[tokio::test]
async fn what_cannot_be_made_is_said_and_tried_again() {
    let cluster = TestCluster::start(Timings::default()).await;
    let mut broken = set("web", 2);
    broken["spec"]["template"]["spec"]["serviceAccountName"] = json!("nobody");
    make(&cluster, broken).await;
    let message = cluster.event("FailedCreate", "web").await;
    assert!(message.contains("serviceaccount \"nobody\" not found"), "{message}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while status(&cluster, "web").await["conditions"][0]["type"] != "ReplicaFailure" {
        assert!(Instant::now() < deadline, "{}", status(&cluster, "web").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.create("ServiceAccount", "default", json!({"metadata": {"name": "nobody"}})).await;
    until(&cluster, |pods| pods.len() == 2).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !status(&cluster, "web").await["conditions"].is_null() {
        assert!(Instant::now() < deadline, "{}", status(&cluster, "web").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn leaders_that_come_and_go_make_no_pod_twice() {
    let cluster = TestCluster::start(Timings::default()).await;
    make(&cluster, set("web", 30)).await;
    for term in 2..12 {
        cluster.lead(term);
        tokio::time::sleep(Duration::from_millis(7)).await;
        assert!(pods(&cluster).await.len() <= 30);
    }
    until(&cluster, |pods| pods.len() == 30).await;
}
