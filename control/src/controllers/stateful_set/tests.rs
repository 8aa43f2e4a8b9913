//! Names, order, volumes and updates of a StatefulSet's pods.

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::Target;
use crate::test_cluster::{TestCluster, any, running};

fn set(replicas: u32) -> Value {
    json!({"metadata": {"name": "db"}, "spec": {
        "replicas": replicas,
        "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}],
    }})
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap_or_default()).collect()
}

async fn change(cluster: &TestCluster, change: impl FnMut(&mut Value) + Send) {
    cluster.modify(Target::new(any("apps", "StatefulSet"), "default", "db"), change).await;
}

#[tokio::test]
async fn pods_come_in_order_with_their_claims_and_go_from_the_last() {
    let cluster = TestCluster::start(Timings::default()).await;
    cluster.make("apps", "StatefulSet", set(3)).await;
    let first = cluster.until_all("", "Pod", |pods| pods.len() == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(names(&cluster.all("", "Pod").await), ["db-0"], "the first is not ready yet");
    assert_eq!(first[0]["spec"]["hostname"], "db-0");
    assert_eq!(first[0]["spec"]["subdomain"], "db");
    assert_eq!(first[0]["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "0");
    let _agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    let pods = cluster.until_all("", "Pod", |pods| pods.len() == 3).await;
    assert_eq!(names(&pods), ["db-0", "db-1", "db-2"]);
    assert_eq!(pods[2]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-db-2");
    let claims = cluster.all("", "PersistentVolumeClaim").await;
    assert_eq!(names(&claims), ["data-db-0", "data-db-1", "data-db-2"]);
    change(&cluster, |set| set["spec"]["replicas"] = json!(1)).await;
    let left = cluster.until_all("", "Pod", |pods| pods.len() == 1).await;
    assert_eq!(names(&left), ["db-0"]);
    assert_eq!(cluster.all("", "PersistentVolumeClaim").await.len(), 3, "claims are kept");
    let sets = cluster.until_all("apps", "StatefulSet", |sets| sets[0]["status"]["replicas"] == 1).await;
    assert_eq!(sets[0]["status"]["readyReplicas"], 1);
}

#[tokio::test]
async fn an_update_replaces_pods_down_to_the_partition_and_can_be_undone() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    cluster.make("apps", "StatefulSet", set(3)).await;
    cluster.until_all("", "Pod", |pods| pods.len() == 3).await;
    let images = |pods: &[Value]| -> Vec<String> {
        pods.iter()
            .map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    change(&cluster, |set| {
        set["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(1);
        set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2");
    })
    .await;
    cluster.until_all("", "Pod", |pods| images(pods) == ["i:1", "i:2", "i:2"]).await;
    change(&cluster, |set| set["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(0)).await;
    cluster.until_all("", "Pod", |pods| images(pods) == ["i:2", "i:2", "i:2"]).await;
    cluster
        .until_all("apps", "StatefulSet", |sets| {
            let status = &sets[0]["status"];
            status["currentRevision"] == status["updateRevision"] && status["updatedReplicas"] == 3
        })
        .await;
    assert_eq!(cluster.all("apps", "ControllerRevision").await.len(), 2);
    change(&cluster, |set| set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:1")).await;
    cluster.until_all("", "Pod", |pods| images(pods) == ["i:1", "i:1", "i:1"]).await;
    let mut numbers: Vec<i64> = cluster
        .all("apps", "ControllerRevision")
        .await
        .iter()
        .filter_map(|revision| revision["revision"].as_i64())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "the old revision came back under a new number");
}

#[tokio::test]
async fn leaders_that_come_and_go_make_no_pod_twice() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(|pod| (pod["status"]["phase"] == "Pending").then(running));
    let mut parallel = set(12);
    parallel["spec"]["podManagementPolicy"] = json!("Parallel");
    cluster.make("apps", "StatefulSet", parallel).await;
    for term in 2..10 {
        cluster.lead(term);
        tokio::time::sleep(std::time::Duration::from_millis(7)).await;
    }
    let pods = cluster.until_all("", "Pod", |pods| pods.len() == 12).await;
    assert_eq!(names(&pods).len(), 12);
    assert_eq!(cluster.all("", "PersistentVolumeClaim").await.len(), 12);
}
