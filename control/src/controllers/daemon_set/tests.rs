//! A pod on every node that fits, as nodes and templates come and go.

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::Target;
use crate::test_cluster::{TestCluster, any, kind, running};

fn set() -> Value {
    json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}},
        "template": {"metadata": {"labels": {"app": "agent"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
    }})
}

/// The nodes that pods are for.
fn nodes(pods: &[Value]) -> Vec<String> {
    let term =
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
    let field = |pod: &Value| pod.pointer(&format!("{term}/matchFields/0/values/0")).cloned();
    let mut nodes: Vec<String> =
        pods.iter().filter_map(|pod| field(pod)?.as_str().map(str::to_owned)).collect();
    nodes.sort();
    nodes
}

#[tokio::test]
async fn every_node_that_fits_gets_one_pod() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    for name in ["n1", "n2"] {
        cluster.node(name, "4").await;
    }
    cluster.make("apps", "DaemonSet", set()).await;
    let pods = cluster.until_all("", "Pod", |pods| nodes(pods) == ["n1", "n2"]).await;
    let tolerations = pods[0]["spec"]["tolerations"].as_array().map_or(0, Vec::len);
    assert!(tolerations >= 6, "{pods:#?}");
    cluster.node("n3", "4").await;
    cluster.until_all("", "Pod", |pods| nodes(pods) == ["n1", "n2", "n3"]).await;
    let taint = json!([{"key": "dedicated", "value": "db", "effect": "NoExecute"}]);
    cluster.modify(Target::new(kind("Node"), "", "n2"), |node| node["spec"]["taints"] = taint.clone()).await;
    cluster.until_all("", "Pod", |pods| nodes(pods) == ["n1", "n3"]).await;
    // The status follows the pods; for a moment two of three are ready.
    let is_settled = |sets: &[Value]| {
        let status = &sets[0]["status"];
        status["numberReady"] == 2
            && status["desiredNumberScheduled"] == 2
            && status["numberMisscheduled"] == 0
    };
    cluster.until_all("apps", "DaemonSet", is_settled).await;
    cluster
        .modify(Target::new(any("apps", "DaemonSet"), "default", "agent"), |set| {
            set["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n3"});
        })
        .await;
    cluster.until_all("", "Pod", |pods| nodes(pods) == ["n3"]).await;
}

#[tokio::test]
async fn an_update_moves_on_node_by_node_and_failed_pods_are_replaced() {
    let cluster = TestCluster::start(Timings::default()).await;
    for name in ["n1", "n2", "n3"] {
        cluster.node(name, "4").await;
    }
    let agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    cluster.make("apps", "DaemonSet", set()).await;
    cluster.until_all("apps", "DaemonSet", |sets| sets[0]["status"]["numberAvailable"] == 3).await;
    drop(agent);
    let target = || Target::new(any("apps", "DaemonSet"), "default", "agent");
    cluster
        .modify(target(), |set| set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2"))
        .await;
    let going =
        |pods: &[Value]| pods.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null()).count();
    let is_new = |pod: &Value| pod["spec"]["containers"][0]["image"] == "i:2";
    cluster
        .until_all("", "Pod", |pods| going(pods) + pods.iter().filter(|pod| is_new(pod)).count() > 0)
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let pods = cluster.all("", "Pod").await;
    assert!(going(&pods) + pods.iter().filter(|pod| is_new(pod)).count() <= 1, "one at a time: {pods:#?}");
    let _agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    cluster.until_all("", "Pod", |pods| pods.len() == 3 && pods.iter().all(is_new)).await;
    let pods = cluster.all("", "Pod").await;
    let failed = pods[0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    cluster
        .modify(Target::status(kind("Pod"), "default", &failed), |pod| {
            pod["status"]["phase"] = json!("Failed")
        })
        .await;
    cluster
        .until_all("", "Pod", |pods| {
            pods.len() == 3 && pods.iter().all(|pod| pod["metadata"]["name"] != failed.as_str())
        })
        .await;
    assert!(cluster.event("FailedDaemonPod", "agent").await.contains("will try to kill it"));
}
