//! What stands behind a Service, as pods come, get ready, and go.

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::{DeleteOptions, Target};
use crate::test_cluster::{TestCluster, any, kind, pod};

fn addresses(slices: &[Value], is_ready: bool) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let mut out: Vec<String> = endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == is_ready)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
        .collect();
    out.sort();
    out
}

/// The slices of the Service `web`.
fn own(slices: &[Value]) -> Vec<Value> {
    let is_own = |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web";
    slices.iter().filter(is_own).cloned().collect()
}

fn of_web(endpoints: &[Value]) -> Option<&Value> {
    endpoints.iter().find(|endpoints| endpoints["metadata"]["name"] == "web")
}

async fn running(cluster: &TestCluster, name: &str, ip: &str, ready: &str) {
    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": ready}]});
    cluster
        .modify(Target::status(kind("Pod"), "default", name), |pod| {
            for (key, part) in status.as_object().into_iter().flatten() {
                pod["status"][key] = part.clone();
            }
        })
        .await;
}

#[tokio::test]
async fn slices_and_endpoints_follow_the_pods() {
    let cluster = TestCluster::start(Timings::default()).await;
    let service =
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    cluster.make("", "Service", service).await;
    let slices = ("discovery.k8s.io", "EndpointSlice");
    cluster.until_all(slices.0, slices.1, |slices| own(slices).len() == 1).await;
    for (name, ip) in [("a", "10.244.0.1"), ("b", "10.244.0.2")] {
        let mut pod = pod(name, "1");
        pod["metadata"]["labels"] = json!({"app": "web"});
        cluster.create("Pod", "default", pod).await;
        running(&cluster, name, ip, "True").await;
    }
    let both = ["10.244.0.1", "10.244.0.2"];
    cluster.until_all(slices.0, slices.1, |slices| addresses(&own(slices), true) == both).await;
    running(&cluster, "b", "10.244.0.2", "False").await;
    let found =
        cluster.until_all(slices.0, slices.1, |slices| addresses(&own(slices), true) == both[..1]).await;
    assert_eq!(addresses(&own(&found), false), both[1..]);
    assert_eq!(own(&found).len(), 1);
    cluster
        .until_all("", "Endpoints", |all| {
            of_web(all).is_some_and(|web| web["subsets"][0]["notReadyAddresses"][0]["ip"] == both[1])
        })
        .await;
    cluster
        .modify(Target::new(kind("Pod"), "default", "a"), |pod| {
            pod["metadata"]["labels"]["app"] = json!("other");
        })
        .await;
    cluster.until_all(slices.0, slices.1, |slices| addresses(&own(slices), true).is_empty()).await;
    let target = Target::new(any("", "Service"), "default", "web");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    cluster.until_all(slices.0, slices.1, |slices| own(slices).is_empty()).await;
    cluster.until_all("", "Endpoints", |all| of_web(all).is_none()).await;
}
