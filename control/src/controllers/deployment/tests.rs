//! Rollouts over a store in memory. A stand-in for the nodes makes pods ready, and ends those that are deleted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::{DeleteOptions, ListOptions, Registry, Target, WriteOptions};
use crate::test_cluster::{TestCluster, condition, kind};

const PATIENCE: Duration = Duration::from_secs(20);

fn of(name: &str) -> &'static api::Kind {
    api::kinds::by_kind("apps", "v1", name).expect("a kind")
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
    }})
}

async fn list(registry: &Registry, kind: &'static api::Kind) -> Vec<Value> {
    let list = registry.list(kind, Some("default"), &ListOptions::default()).await;
    list.expect("memory store").items.iter().map(|object| object.value().clone()).collect()
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Makes every pod ready whose image is not `broken`.
async fn run_pods(registry: Registry) {
    loop {
        for pod in list(&registry, kind("Pod")).await {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if is_ready(&pod) || image(&pod) == "broken" {
                continue;
            }
            let ready = |pod: &mut Value| {
                pod["status"]["phase"] = json!("Running");
                pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
                Ok(())
            };
            let target = Target::status(kind("Pod"), "default", &name);
            let _ = registry.modify(target, &WriteOptions::default(), ready).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Rollouts {
    cluster: TestCluster,
    pods: tokio::task::JoinHandle<()>,
}

impl Drop for Rollouts {
    fn drop(&mut self) {
        self.pods.abort();
    }
}

impl Rollouts {
    async fn start() -> Self {
        let cluster = TestCluster::start(Timings::default()).await;
        let pods = tokio::spawn(run_pods(cluster.registry.clone()));
        Self { cluster, pods }
    }

    async fn make(&self, deployment: Value) {
        let options = WriteOptions::default();
        self.cluster
            .registry
            .create(of("Deployment"), "default", deployment, &options)
            .await
            .expect("created");
    }

    async fn change(&self, change: impl FnMut(&mut Value) + Send) {
        self.cluster.modify(Target::new(of("Deployment"), "default", "web"), change).await;
    }

    async fn deployment(&self) -> Value {
        self.cluster.registry.get(of("Deployment"), "default", "web").await.expect("there").value().clone()
    }

    /// Waits until the Deployment is as it should be; looks at the pods all the while.
    async fn until(&self, is_right: impl Fn(&Value) -> bool, look: impl Fn(&[Value])) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.deployment().await;
            look(&list(&self.cluster.registry, kind("Pod")).await);
            if is_right(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{found:#}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    async fn through(&self, replicas: u32, wanted: &str, look: impl Fn(&[Value])) -> Value {
        let through = self.until(|found| is_through(found, replicas), look).await;
        let pods = list(&self.cluster.registry, kind("Pod")).await;
        assert!(pods.iter().all(|pod| image(pod) == wanted) && pods.len() == replicas as usize, "{pods:#?}");
        through
    }
}

fn is_through(deployment: &Value, replicas: u32) -> bool {
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[*field] == replicas)
        && condition(deployment, "Progressing")["reason"] == "NewReplicaSetAvailable"
}

#[tokio::test]
async fn a_template_becomes_a_set_and_a_new_one_rolls_out_within_bounds() {
    let rollouts = Rollouts::start().await;
    rollouts.make(deployment(4, "i:1")).await;
    let made = rollouts.through(4, "i:1", |_| {}).await;
    assert_eq!(made["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(condition(&made, "Available")["message"], "Deployment has minimum availability.");
    rollouts.change(|value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2")).await;
    let bounds = |pods: &[Value]| {
        assert!(pods.len() <= 5, "25 % of 4 more: {}", pods.len());
        assert!(pods.iter().filter(|pod| is_ready(pod)).count() >= 3, "25 % of 4 missing");
    };
    let rolled = rollouts.through(4, "i:2", bounds).await;
    assert_eq!(rolled["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    let sets = list(&rollouts.cluster.registry, of("ReplicaSet")).await;
    assert_eq!(sets.len(), 2, "the old one is kept for going back");
    // Going back is the old template again: its set comes to life, as the newest revision.
    rollouts.change(|value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:1")).await;
    let back = rollouts.through(4, "i:1", bounds).await;
    assert_eq!(back["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    assert_eq!(list(&rollouts.cluster.registry, of("ReplicaSet")).await.len(), 2);
}

#[tokio::test]
async fn what_never_becomes_ready_stops_the_rollout_and_is_told() {
    let rollouts = Rollouts::start().await;
    let mut value = deployment(4, "i:1");
    value["spec"]["progressDeadlineSeconds"] = json!(1);
    rollouts.make(value).await;
    rollouts.through(4, "i:1", |_| {}).await;
    rollouts
        .change(|value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("broken"))
        .await;
    let stuck = |found: &Value| condition(found, "Progressing")["reason"] == "ProgressDeadlineExceeded";
    let found = rollouts
        .until(stuck, |pods| assert!(pods.iter().filter(|pod| image(pod) == "i:1").count() >= 3))
        .await;
    assert_eq!(condition(&found, "Progressing")["status"], "False");
    assert_eq!(condition(&found, "Available")["status"], "True");
    rollouts.change(|value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:3")).await;
    rollouts.through(4, "i:3", |_| {}).await;
}

#[tokio::test]
async fn a_number_changes_alone_and_in_the_middle_and_while_paused() {
    let rollouts = Rollouts::start().await;
    rollouts.make(deployment(2, "i:1")).await;
    rollouts.through(2, "i:1", |_| {}).await;
    rollouts.change(|value| value["spec"]["replicas"] = json!(6)).await;
    rollouts.through(6, "i:1", |pods| assert!(pods.len() <= 6)).await;
    assert_eq!(list(&rollouts.cluster.registry, of("ReplicaSet")).await.len(), 1);
    rollouts
        .change(|value| {
            value["spec"]["paused"] = json!(true);
            value["spec"]["replicas"] = json!(3);
            value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2");
        })
        .await;
    let scaled =
        |found: &Value| found["status"]["replicas"] == 3 && found["status"]["availableReplicas"] == 3;
    rollouts.until(scaled, |_| {}).await;
    assert!(list(&rollouts.cluster.registry, kind("Pod")).await.iter().all(|pod| image(pod) == "i:1"));
    rollouts.change(|value| value["spec"]["paused"] = json!(false)).await;
    rollouts.through(3, "i:2", |_| {}).await;
    rollouts.change(|value| value["spec"]["replicas"] = json!(0)).await;
    let none = |found: &Value| found["status"]["replicas"].as_i64().unwrap_or(0) == 0;
    rollouts.until(none, |_| {}).await;
}

#[tokio::test]
async fn recreating_never_runs_two_versions_at_once_and_history_is_bounded() {
    let rollouts = Rollouts::start().await;
    let mut value = deployment(3, "i:0");
    value["spec"]["strategy"] = json!({"type": "Recreate"});
    value["spec"]["revisionHistoryLimit"] = json!(1);
    rollouts.make(value).await;
    for number in 0..4 {
        let wanted = format!("i:{number}");
        rollouts
            .change(|value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!(wanted))
            .await;
        let one_version = |pods: &[Value]| {
            let versions: std::collections::BTreeSet<&str> = pods.iter().map(image).collect();
            assert!(versions.len() <= 1, "{versions:?}");
        };
        rollouts.through(3, &wanted, one_version).await;
    }
    let deadline = Instant::now() + PATIENCE;
    while list(&rollouts.cluster.registry, of("ReplicaSet")).await.len() > 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_deployment_made_goes_with_it() {
    let rollouts = Rollouts::start().await;
    rollouts.make(deployment(3, "i:1")).await;
    rollouts.through(3, "i:1", |_| {}).await;
    let target = Target::new(of("Deployment"), "default", "web");
    rollouts.cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = list(&rollouts.cluster.registry, kind("Pod")).await.len()
            + list(&rollouts.cluster.registry, of("ReplicaSet")).await.len();
        if left == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{left} left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
