//! What goes with its owners, what stays, and in which order.

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::{DeleteOptions, Propagation, Target};
use crate::test_cluster::{TestCluster, kind};

/// Makes a ConfigMap; gives a reference to it.
async fn map(cluster: &TestCluster, name: &str, owners: &[&Value], finalizers: &[&str]) -> Value {
    let metadata = json!({"name": name, "ownerReferences": owners, "finalizers": finalizers});
    cluster.create("ConfigMap", "default", json!({"metadata": metadata})).await;
    let made = cluster.get("ConfigMap", "default", name).await.expect("made");
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": made["metadata"]["uid"],
        "blockOwnerDeletion": true})
}

async fn delete(cluster: &TestCluster, name: &str, propagation: Propagation) {
    let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
    let target = Target::new(kind("ConfigMap"), "default", name);
    cluster.registry.delete(target, &options).await.expect("deleted");
}

async fn owners(cluster: &TestCluster, name: &str) -> Vec<Value> {
    let object = cluster.get("ConfigMap", "default", name).await.expect("there");
    let references = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    references.iter().map(|reference| reference["name"].clone()).collect()
}

#[tokio::test]
async fn what_belongs_to_nobody_any_more_goes_through_all_generations() {
    let cluster = TestCluster::start(Timings::default()).await;
    let grandparent = map(&cluster, "grandparent", &[], &[]).await;
    let other = map(&cluster, "other", &[], &[]).await;
    let parent = map(&cluster, "parent", &[&grandparent], &[]).await;
    map(&cluster, "child", &[&parent], &[]).await;
    map(&cluster, "shared", &[&parent, &other], &[]).await;
    delete(&cluster, "grandparent", Propagation::Background).await;
    cluster.until_gone("ConfigMap", "default", "parent").await;
    cluster.until_gone("ConfigMap", "default", "child").await;
    cluster
        .until("ConfigMap", "default", "shared", |map| {
            map["metadata"]["ownerReferences"].as_array().is_some_and(|owners| owners.len() == 1)
        })
        .await;
    assert_eq!(owners(&cluster, "shared").await, ["other"], "who is gone is forgotten, who is left keeps it");
}

#[tokio::test]
async fn in_the_foreground_the_owner_waits_for_those_that_block_it() {
    let cluster = TestCluster::start(Timings::default()).await;
    let owner = map(&cluster, "owner", &[], &[]).await;
    let parent = map(&cluster, "parent", &[&owner], &[]).await;
    map(&cluster, "child", &[&parent], &["lab.example/hold"]).await;
    delete(&cluster, "owner", Propagation::Foreground).await;
    let is_deleting = |map: &Value| !map["metadata"]["deletionTimestamp"].is_null();
    cluster.until("ConfigMap", "default", "child", is_deleting).await;
    // The child is held: so are its parent, which was asked to wait for it, and the owner.
    for name in ["parent", "owner"] {
        let waiting = cluster.get("ConfigMap", "default", name).await.expect("waits");
        assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]), "{name}");
    }
    let let_go = |map: &mut Value| map["metadata"]["finalizers"] = json!([]);
    cluster.modify(Target::new(kind("ConfigMap"), "default", "child"), let_go).await;
    for name in ["child", "parent", "owner"] {
        cluster.until_gone("ConfigMap", "default", name).await;
    }
}

#[tokio::test]
async fn orphans_stay_and_forget_their_owner() {
    let cluster = TestCluster::start(Timings::default()).await;
    let owner = map(&cluster, "owner", &[], &[]).await;
    map(&cluster, "a", &[&owner], &[]).await;
    map(&cluster, "b", &[&owner], &[]).await;
    delete(&cluster, "owner", Propagation::Orphan).await;
    cluster.until_gone("ConfigMap", "default", "owner").await;
    assert!(owners(&cluster, "a").await.is_empty());
    assert!(owners(&cluster, "b").await.is_empty());
}

#[tokio::test]
async fn an_owner_that_never_was_or_was_another_keeps_nothing() {
    let cluster = TestCluster::start(Timings::default()).await;
    map(&cluster, "namesake", &[], &[]).await;
    let namesake =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "namesake", "uid": "an-older-one"});
    let unserved = json!({"apiVersion": "lab.example/v1", "kind": "Rocket", "name": "r", "uid": "r1"});
    map(&cluster, "late", &[&namesake], &[]).await;
    map(&cluster, "rocket-part", &[&unserved], &[]).await;
    cluster.until_gone("ConfigMap", "default", "late").await;
    assert_eq!(owners(&cluster, "rocket-part").await, ["r"], "nobody here can say whether a Rocket is gone");
}

#[tokio::test]
async fn a_new_leader_goes_on_where_the_old_one_stopped() {
    let cluster = TestCluster::start(Timings::default()).await;
    cluster.follow(2);
    let mut epochs = cluster.work.epochs.clone();
    epochs.wait_for(Option::is_none).await.expect("the replica follows");
    let owner = map(&cluster, "owner", &[], &[]).await;
    map(&cluster, "child", &[&owner], &[]).await;
    delete(&cluster, "owner", Propagation::Foreground).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(cluster.get("ConfigMap", "default", "child").await.is_some(), "nobody collects without a leader");
    cluster.lead(3);
    cluster.until_gone("ConfigMap", "default", "child").await;
    cluster.until_gone("ConfigMap", "default", "owner").await;
}
