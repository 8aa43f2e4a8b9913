//! What budgets allow, and evictions that keep to it.

use serde_json::json;

use crate::controllers::Timings;
use crate::registry::DeleteOptions;
use crate::test_cluster::{TestCluster, running};

#[tokio::test]
async fn evictions_stop_where_the_budget_ends() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    cluster.make("apps", "ReplicaSet", set).await;
    let budget = json!({"metadata": {"name": "web"},
        "spec": {"minAvailable": "75%", "selector": {"matchLabels": {"app": "web"}}}});
    cluster.make("policy", "PodDisruptionBudget", budget).await;
    let budgets = cluster
        .until_all("policy", "PodDisruptionBudget", |all| all[0]["status"]["disruptionsAllowed"] == 1)
        .await;
    assert_eq!(budgets[0]["status"]["desiredHealthy"], 3);
    assert_eq!(budgets[0]["status"]["conditions"][0]["reason"], "SufficientPods");
    let pods = cluster.all("", "Pod").await;
    let name = |index: usize| pods[index]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let evictions = (0..3).map(|index| {
        let (registry, name) = (cluster.registry.clone(), name(index));
        async move { registry.evict("default", &name, &DeleteOptions::default()).await }
    });
    let outcomes = futures_util::future::join_all(evictions).await;
    let allowed = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(allowed >= 1, "{outcomes:?}");
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect::<Vec<_>>();
    for status in &refused {
        assert_eq!(status.code(), 429, "{status:?}");
        assert_eq!(status.message(), "Cannot evict pod as it would violate the pod's disruption budget.");
    }
    cluster
        .until_all("policy", "PodDisruptionBudget", |all| {
            all[0]["status"]["disruptionsAllowed"] == 1 && all[0]["status"]["disruptedPods"].is_null()
        })
        .await;
}

#[tokio::test]
async fn pods_that_nobody_controls_have_no_share() {
    let cluster = TestCluster::start(Timings::default()).await;
    let mut pod = crate::test_cluster::pod("a", "1");
    pod["metadata"]["labels"] = json!({"app": "web"});
    cluster.create("Pod", "default", pod).await;
    let budget = json!({"metadata": {"name": "web"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.make("policy", "PodDisruptionBudget", budget).await;
    let budgets = cluster
        .until_all("policy", "PodDisruptionBudget", |all| !all[0]["status"]["conditions"].is_null())
        .await;
    assert_eq!(budgets[0]["status"]["conditions"][0]["reason"], "SyncFailed");
    assert_eq!(budgets[0]["status"]["disruptionsAllowed"], 0);
}
