//! The loops over a store in memory.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Timings;
use super::node_lifecycle::node_taints;
use crate::registry::{DeleteOptions, Target};
use crate::test_cluster::{TestCluster, condition, kind, node, pod};

const GRACE: Duration = Duration::from_millis(300);

fn timings() -> Timings {
    Timings { node_monitor_grace: GRACE, orphan_after: Duration::from_millis(200), ..Timings::default() }
}

fn is_unknown(node: &Value) -> bool {
    condition(node, "Ready")["status"] == "Unknown"
}

fn taint_keys(node: &Value) -> Vec<String> {
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    taints.map(|taint| format!("{}:{}", taint["key"], taint["effect"]).replace('"', "")).collect()
}

#[test]
fn taints_follow_conditions_and_leave_others_alone() {
    let mut node = node("n1", "1");
    assert_eq!(node_taints(&node, "now"), None);
    node["spec"]["taints"] = json!([{"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}]);
    node["spec"]["unschedulable"] = json!(true);
    node["status"]["conditions"] =
        json!([{"type": "Ready", "status": "Unknown"}, {"type": "DiskPressure", "status": "True"}]);
    node["spec"]["taints"] = Value::from(node_taints(&node, "then").expect("a change"));
    assert_eq!(
        taint_keys(&node),
        [
            "dedicated:NoSchedule",
            "node.kubernetes.io/unreachable:NoSchedule",
            "node.kubernetes.io/unreachable:NoExecute",
            "node.kubernetes.io/disk-pressure:NoSchedule",
            "node.kubernetes.io/unschedulable:NoSchedule",
        ]
    );
    assert_eq!(node_taints(&node, "later"), None, "what is there keeps its time");
    node["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    node["spec"]["unschedulable"] = Value::Null;
    node["spec"]["taints"] = Value::from(node_taints(&node, "later").expect("a change"));
    assert_eq!(
        taint_keys(&node),
        [
            "dedicated:NoSchedule",
            "node.kubernetes.io/not-ready:NoSchedule",
            "node.kubernetes.io/not-ready:NoExecute",
        ]
    );
}

#[tokio::test]
async fn a_node_that_is_heard_of_renews_its_lease_until_it_is_gone() {
    let timings = Timings { node_lease_renewal: Duration::from_millis(20), ..timings() };
    let cluster = TestCluster::start(timings).await;
    cluster.node("n1", "4").await;
    let beating = cluster.work.heartbeats.clone();
    beating.beat("n1", Instant::now());
    let lease = |what: &'static str, wanted: fn(&Value) -> bool| {
        let cluster = &cluster;
        async move {
            let started = Instant::now();
            loop {
                cluster.work.heartbeats.beat("n1", Instant::now());
                let kind = api::kinds::by_kind("coordination.k8s.io", "v1", "Lease").expect("served");
                let found = cluster.registry.get(kind, "kube-node-lease", "n1").await;
                let value = found.map_or(Value::Null, |object| object.value().clone());
                if wanted(&value) {
                    return value;
                }
                assert!(started.elapsed() < Duration::from_secs(15), "{what}: {value}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let first = lease("there is one", Value::is_object).await;
    assert_eq!(first["spec"]["holderIdentity"], "n1");
    assert_eq!(first["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");
    let started = Instant::now();
    while lease("renewed", Value::is_object).await["spec"]["renewTime"] == first["spec"]["renewTime"] {
        assert!(started.elapsed() < Duration::from_secs(15), "it is renewed: {first}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let options = DeleteOptions::default();
    cluster.registry.delete(Target::new(kind("Node"), "", "n1"), &options).await.expect("deleted");
    lease("gone with the node", Value::is_null).await;
}

#[tokio::test]
async fn a_silent_node_becomes_unknown_is_tainted_and_its_pods_are_not_ready() {
    let cluster = TestCluster::start(timings()).await;
    let started = Instant::now();
    cluster.node("n1", "4").await;
    cluster.pod("p", "1").await;
    cluster.until("Pod", "default", "p", |pod| pod["spec"]["nodeName"] == "n1").await;
    cluster
        .modify(Target::status(kind("Pod"), "default", "p"), |pod| {
            pod["status"]["phase"] = json!("Running");
            pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        })
        .await;
    let silent = cluster.until("Node", "", "n1", is_unknown).await;
    assert!(started.elapsed() >= GRACE, "not before the grace period");
    let ready = condition(&silent, "Ready");
    assert_eq!(ready["reason"], "NodeStatusUnknown");
    assert_eq!(ready["message"], "Kubelet stopped posting node status.");
    assert_eq!(condition(&silent, "DiskPressure")["reason"], "NodeStatusNeverUpdated");
    let unreachable =
        ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
    cluster.until("Node", "", "n1", |node| taint_keys(node) == unreachable).await;
    cluster.until("Pod", "default", "p", |pod| condition(pod, "Ready")["status"] == "False").await;
    assert_eq!(cluster.event("NodeNotReady", "n1").await, "Node n1 status is now: NodeNotReady");

    // The node is heard of again and says that it is ready.
    let beating = async {
        loop {
            cluster.work.heartbeats.beat("n1", Instant::now());
            tokio::time::sleep(GRACE / 10).await;
        }
    };
    let recovering = async {
        cluster
            .modify(Target::status(kind("Node"), "", "n1"), |value| {
                value["status"] = node("n1", "4")["status"].clone()
            })
            .await;
        cluster.until("Node", "", "n1", |node| !is_unknown(node) && taint_keys(node).is_empty()).await;
        assert_eq!(cluster.event("NodeReady", "n1").await, "Node n1 status is now: NodeReady");
    };
    tokio::select! {
        () = beating => {}
        () = recovering => {}
    }
}

#[tokio::test]
async fn a_new_leader_gives_every_node_a_fresh_grace_period() {
    let timings = Timings { node_monitor_grace: Duration::from_millis(800), ..timings() };
    let cluster = TestCluster::start(timings).await;
    cluster.node("n1", "4").await;
    // Leadership moves faster than the grace period: nobody may raise an alarm in between.
    for term in 2..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        cluster.lead(term);
    }
    let node = cluster.get("Node", "", "n1").await.expect("exists");
    assert!(!is_unknown(&node), "1.6 s of silence, but never 0.8 s under one leader");
    cluster.until("Node", "", "n1", is_unknown).await;
}

#[tokio::test]
async fn pods_leave_an_unreachable_node_after_their_toleration() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    let bears = |seconds: i64| {
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds}])
    };
    for (name, seconds) in [("short", 1), ("long", 1000)] {
        let mut pod = pod(name, "1");
        pod["spec"]["tolerations"] = bears(seconds);
        cluster.create("Pod", "default", pod).await;
        cluster.until("Pod", "default", name, |pod| pod["spec"]["nodeName"] == "n1").await;
    }
    // A node that works: without one, nobody is evicted.
    cluster.node("n2", "4").await;
    let beating = async {
        loop {
            cluster.work.heartbeats.beat("n2", Instant::now());
            tokio::time::sleep(GRACE / 10).await;
        }
    };
    let evicted = async {
        cluster
            .until("Pod", "default", "short", |pod| pod["metadata"]["deletionTimestamp"].is_string())
            .await;
        let long = cluster.get("Pod", "default", "long").await.expect("exists");
        assert_eq!(long["metadata"]["deletionTimestamp"], Value::Null);
        let message = cluster.event("TaintManagerEviction", "short").await;
        assert_eq!(message, "Marking for deletion Pod default/short");
        let is_lost = |pod: &Value| pod["status"]["reason"] == "NodeLost";
        let lost = cluster.until("Pod", "default", "short", is_lost).await;
        assert_eq!(lost["status"]["message"], "Node n1 which was running pod short is unresponsive");
    };
    tokio::select! {
        () = beating => {}
        () = evicted => {}
    }
}

#[tokio::test]
async fn pods_of_a_node_that_is_gone_are_removed() {
    let cluster = TestCluster::start(timings()).await;
    cluster.node("n1", "4").await;
    cluster.pod("p", "1").await;
    cluster.until("Pod", "default", "p", |pod| pod["spec"]["nodeName"] == "n1").await;
    let target = Target::new(kind("Node"), "", "n1");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    cluster.until_gone("Pod", "default", "p").await;
}

#[tokio::test]
async fn a_namespace_under_deletion_is_emptied_and_goes() {
    let cluster = TestCluster::start(timings()).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    cluster.create("Namespace", "", namespace).await;
    for at in 0..3 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{at}")}});
        cluster.create("ConfigMap", "shop", map).await;
    }
    let mut waiting = pod("p", "1");
    waiting["metadata"]["namespace"] = json!("shop");
    cluster.create("Pod", "shop", waiting).await;
    let target = Target::new(kind("Namespace"), "", "shop");
    let deleted = cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    assert!(!deleted.removed, "its content goes first");
    cluster.until_gone("Namespace", "", "shop").await;
    assert!(cluster.get("ConfigMap", "shop", "c0").await.is_none());
    assert!(cluster.get("Pod", "shop", "p").await.is_none());
}

#[tokio::test]
async fn events_expire() {
    let timings = Timings { event_ttl: Duration::from_secs(1), ..timings() };
    let cluster = TestCluster::start(timings).await;
    cluster.pod("p", "1").await;
    assert_eq!(cluster.event("FailedScheduling", "p").await, "no nodes available to schedule pods");
    let looking = async {
        while !cluster
            .registry
            .list(kind("Event"), None, &Default::default())
            .await
            .expect("list")
            .items
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looking).await.expect("the Event expires");
}

#[tokio::test]
async fn default_roles_are_made_and_those_made_of_others_follow_them() {
    let cluster = TestCluster::start(Timings::default()).await;
    let of = |name: &str| api::kinds::by_kind(api::kinds::RBAC_GROUP, "v1", name).expect("a kind");
    let (role, binding) = (of("ClusterRole"), of("ClusterRoleBinding"));
    let part = json!({"metadata": {"name": "crd-view", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"verbs": ["get"], "apiGroups": ["lab.example"], "resources": ["rockets"]}]});
    let options = crate::registry::WriteOptions::default();
    cluster.registry.create(role, "", part, &options).await.expect("created");
    // Through three steps: the part is in view, view in edit, edit in admin.
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let admin = cluster.registry.get_local(role, "", "admin").await.expect("memory store");
        let rules = admin.map(|role| role.value()["rules"].to_string()).unwrap_or_default();
        if rules.contains("rockets") && rules.contains("pods/exec") && rules.contains("rolebindings") {
            break;
        }
        assert!(Instant::now() < deadline, "admin has {rules}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let bound = cluster.registry.get(binding, "", "cluster-admin").await.expect("made");
    assert_eq!(bound.value()["subjects"][0]["name"], "system:masters");
}
