//! Claims and volumes through the whole work of a replica.

use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::{DeleteOptions, Target};
use crate::test_cluster::{TestCluster, kind, pod};

fn volume(name: &str, storage: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "hostPath": {"path": format!("/mnt/{name}")}},
    })
}

fn claim(name: &str, storage: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": storage}}},
    })
}

async fn cluster() -> TestCluster {
    // Its nodes have no agents: they must not count as unreachable before the test is over.
    let node_monitor_grace = std::time::Duration::from_secs(3600);
    TestCluster::start(Timings { node_monitor_grace, ..Timings::default() }).await
}

async fn claim_is(cluster: &TestCluster, name: &str, phase: &str) -> Value {
    cluster.until("PersistentVolumeClaim", "default", name, |claim| claim["status"]["phase"] == phase).await
}

async fn volume_is(cluster: &TestCluster, name: &str, phase: &str) -> Value {
    cluster.until("PersistentVolume", "", name, |volume| volume["status"]["phase"] == phase).await
}

async fn delete(cluster: &TestCluster, kind_name: &str, namespace: &str, name: &str) {
    let target = Target::new(kind(kind_name), namespace, name);
    let now = DeleteOptions { grace_period_s: Some(0), ..DeleteOptions::default() };
    cluster.registry.delete(target, &now).await.expect("deleted");
}

#[tokio::test]
async fn a_claim_gets_the_smallest_volume_that_fits_and_keeps_it() {
    let cluster = cluster().await;
    for volume in [volume("big", "10Gi", "a"), volume("fits", "2Gi", "a"), volume("small", "1Gi", "a")] {
        cluster.create("PersistentVolume", "", volume).await;
    }
    cluster.create("PersistentVolume", "", volume("other", "2Gi", "b")).await;
    volume_is(&cluster, "fits", "Available").await;
    cluster.create("PersistentVolumeClaim", "default", claim("data", "1500Mi", "a")).await;
    let data = claim_is(&cluster, "data", "Bound").await;
    assert_eq!(data["spec"]["volumeName"], "fits");
    assert_eq!(data["status"]["capacity"]["storage"], "2Gi");
    assert_eq!(data["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let fits = volume_is(&cluster, "fits", "Bound").await;
    assert_eq!(fits["spec"]["claimRef"]["uid"], data["metadata"]["uid"]);
    // Two claims never get the same one, and one that nothing fits says so.
    cluster.create("PersistentVolumeClaim", "default", claim("more", "1Gi", "b")).await;
    claim_is(&cluster, "more", "Bound").await;
    cluster.create("PersistentVolumeClaim", "default", claim("less", "1Gi", "b")).await;
    let message = cluster.event("ProvisioningFailed", "less").await;
    assert_eq!(message, "storageclass.storage.k8s.io \"b\" not found");
    // The claim goes: the volume is kept with its data, for nobody.
    delete(&cluster, "PersistentVolumeClaim", "default", "data").await;
    cluster.until_gone("PersistentVolumeClaim", "default", "data").await;
    volume_is(&cluster, "fits", "Released").await;
    delete(&cluster, "PersistentVolume", "", "fits").await;
    cluster.until_gone("PersistentVolume", "", "fits").await;
}

#[tokio::test]
async fn claims_and_volumes_stay_while_they_are_used() {
    let cluster = cluster().await;
    cluster.create("PersistentVolume", "", volume("disk", "1Gi", "")).await;
    cluster.create("PersistentVolumeClaim", "default", claim("data", "1Gi", "")).await;
    claim_is(&cluster, "data", "Bound").await;
    let mut user = pod("user", "1");
    user["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create("Pod", "default", user).await;
    delete(&cluster, "PersistentVolume", "", "disk").await;
    delete(&cluster, "PersistentVolumeClaim", "default", "data").await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let data = cluster.get("PersistentVolumeClaim", "default", "data").await.expect("the pod uses it");
    assert!(data["metadata"]["deletionTimestamp"].is_string());
    assert!(cluster.get("PersistentVolume", "", "disk").await.is_some(), "the claim has it");
    delete(&cluster, "Pod", "default", "user").await;
    cluster.until_gone("PersistentVolumeClaim", "default", "data").await;
    cluster.until_gone("PersistentVolume", "", "disk").await;
}

#[tokio::test]
async fn a_class_that_waits_binds_where_the_pod_is() {
    let cluster = cluster().await;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    let kind = api::kinds::by_kind("storage.k8s.io", "v1", "StorageClass").expect("served");
    cluster.registry.create(kind, "", class, &Default::default()).await.expect("created");
    for node in ["n1", "n2"] {
        cluster.node(node, "4").await;
        let mut local = volume(&format!("on-{node}"), "1Gi", "local");
        local["spec"]["hostPath"] = Value::Null;
        local["spec"]["local"] = json!({"path": "/mnt/disk"});
        local["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
        cluster.create("PersistentVolume", "", local).await;
    }
    cluster.create("PersistentVolumeClaim", "default", claim("data", "1Gi", "local")).await;
    let message = cluster.event("WaitForFirstConsumer", "data").await;
    assert_eq!(message, "waiting for first consumer to be created before binding");
    let mut user = pod("user", "1");
    user["spec"]["nodeName"] = json!("n2");
    user["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create("Pod", "default", user).await;
    let data = claim_is(&cluster, "data", "Bound").await;
    assert_eq!(data["spec"]["volumeName"], "on-n2");
}

#[tokio::test]
async fn what_is_reserved_by_hand_and_what_is_lost() {
    let cluster = cluster().await;
    let mut reserved = volume("reserved", "5Gi", "");
    reserved["spec"]["claimRef"] = json!({"namespace": "default", "name": "late"});
    reserved["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    cluster.create("PersistentVolume", "", reserved).await;
    cluster.create("PersistentVolumeClaim", "default", claim("early", "1Gi", "")).await;
    let message = cluster.event("FailedBinding", "early").await;
    assert_eq!(message, "no persistent volumes available for this claim and no storage class is set");
    cluster.create("PersistentVolumeClaim", "default", claim("late", "1Gi", "")).await;
    claim_is(&cluster, "late", "Bound").await;
    // Nobody here can delete what lies on a node's disk: that is said, not skipped.
    delete(&cluster, "PersistentVolumeClaim", "default", "late").await;
    let failed = volume_is(&cluster, "reserved", "Failed").await;
    assert!(
        failed["status"]["message"].as_str().expect("why").contains("no deletable volume plugin matched")
    );
    cluster.create("PersistentVolume", "", volume("disk", "1Gi", "")).await;
    claim_is(&cluster, "early", "Bound").await;
    let target = Target::new(kind("PersistentVolume"), "", "disk");
    cluster.modify(target, |volume| volume["metadata"]["finalizers"] = Value::Null).await;
    delete(&cluster, "PersistentVolume", "", "disk").await;
    claim_is(&cluster, "early", "Lost").await;
    assert!(cluster.event("ClaimLost", "early").await.contains("Data on the volume is lost"));
}

#[tokio::test]
async fn a_pod_goes_where_its_disk_is_and_waits_until_there_is_one() {
    let cluster = cluster().await;
    for node in ["n1", "n2", "n3"] {
        cluster.node(node, "4").await;
    }
    let mut user = pod("user", "1");
    user["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create("Pod", "default", user).await;
    let said = |words: &'static str| {
        let cluster = &cluster;
        async move {
            cluster
                .until("Pod", "default", "user", |pod| {
                    let message = pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
                    message.contains(words)
                })
                .await
        }
    };
    said("persistentvolumeclaim \"data\" not found").await;
    cluster.create("PersistentVolumeClaim", "default", claim("data", "1Gi", "")).await;
    said("pod has unbound immediate PersistentVolumeClaims").await;
    let mut local = volume("disk", "1Gi", "");
    local["spec"]["hostPath"] = Value::Null;
    local["spec"]["local"] = json!({"path": "/mnt/disk"});
    local["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]}]}]}});
    cluster.create("PersistentVolume", "", local).await;
    let user = cluster.until("Pod", "default", "user", |pod| pod["spec"]["nodeName"].is_string()).await;
    assert_eq!(user["spec"]["nodeName"], "n2");
}

#[tokio::test]
async fn a_volume_of_its_own_comes_and_goes_with_the_pod() {
    let cluster = cluster().await;
    cluster.node("n1", "4").await;
    cluster.create("PersistentVolume", "", volume("disk", "5Gi", "")).await;
    // Somebody else's, with the name that the claim of the second pod would have.
    cluster.create("PersistentVolumeClaim", "default", claim("other-scratch", "4Gi", "none")).await;
    let with_own = |name: &str| {
        let mut user = pod(name, "1");
        user["spec"]["volumes"] = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"labels": {"app": "a"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "resources": {"requests": {"storage": "1Gi"}}}}}}]);
        user
    };
    cluster.create("Pod", "default", with_own("user")).await;
    let made = claim_is(&cluster, "user-scratch", "Bound").await;
    assert_eq!(made["metadata"]["labels"]["app"], "a");
    assert_eq!(made["metadata"]["ownerReferences"][0]["name"], "user");
    let bound = || async {
        let user = cluster.get("Pod", "default", "user").await.expect("the pod");
        user["spec"]["nodeName"] == "n1"
    };
    while !bound().await {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    cluster.create("Pod", "default", with_own("other")).await;
    let why = cluster.event("FailedScheduling", "other").await;
    let words = "PVC default/other-scratch was not created for pod default/other (pod is not owner)";
    assert!(why.contains(words), "{why}");
    delete(&cluster, "Pod", "default", "user").await;
    let target = Target::new(kind("Pod"), "default", "user");
    let gone = crate::registry::DeleteOptions { grace_period_s: Some(0), ..Default::default() };
    let _ = cluster.registry.delete(target, &gone).await;
    cluster.until_gone("PersistentVolumeClaim", "default", "user-scratch").await;
    assert!(cluster.get("PersistentVolumeClaim", "default", "other-scratch").await.is_some());
}

/// A class whose volumes are made on nodes' own disks.
async fn local_class(cluster: &TestCluster, name: &str, mode: &str) {
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "local.barque.io", "volumeBindingMode": mode, "allowVolumeExpansion": true});
    let kind = api::kinds::by_kind("storage.k8s.io", "v1", "StorageClass").expect("served");
    cluster.registry.create(kind, "", class, &Default::default()).await.expect("created");
}

#[tokio::test]
async fn a_volume_is_made_where_the_first_pod_is_grows_and_goes_after_its_data() {
    let cluster = cluster().await;
    local_class(&cluster, "own", "WaitForFirstConsumer").await;
    for node in ["n1", "n2"] {
        cluster.node(node, "4").await;
    }
    cluster.create("PersistentVolumeClaim", "default", claim("data", "1Gi", "own")).await;
    cluster.event("WaitForFirstConsumer", "data").await;
    let mut user = pod("user", "1");
    user["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create("Pod", "default", user).await;
    let data = claim_is(&cluster, "data", "Bound").await;
    let user = cluster.get("Pod", "default", "user").await.expect("the pod");
    let name = format!("pvc-{}", data["metadata"]["uid"].as_str().expect("a uid"));
    assert_eq!(data["spec"]["volumeName"], name.as_str());
    assert!(cluster.event("ProvisioningSucceeded", "data").await.contains(&name));
    let made = volume_is(&cluster, &name, "Bound").await;
    assert_eq!(made["spec"]["csi"]["volumeAttributes"]["node"], user["spec"]["nodeName"]);
    assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    assert_eq!(made["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"], "local.barque.io");

    // It grows with its claim, and never shrinks.
    let ask = |storage: &'static str| {
        move |claim: &mut Value| {
            claim["spec"]["resources"]["requests"]["storage"] = json!(storage);
        }
    };
    let target = Target::new(kind("PersistentVolumeClaim"), "default", "data");
    cluster.modify(target, ask("2Gi")).await;
    let grown = |claim: &Value| claim["status"]["capacity"]["storage"] == "2Gi";
    cluster.until("PersistentVolumeClaim", "default", "data", grown).await;
    let change = |claim: &mut Value| {
        ask("1Gi")(claim);
        Ok(())
    };
    let refused = cluster.registry.modify(target, &Default::default(), change).await;
    let refused = refused.expect_err("it has more");
    assert!(refused.message().contains("field can not be less than status.capacity"), "{refused}");

    // The node has it: the volume stays until that is gone.
    let node = user["spec"]["nodeName"].as_str().expect("bound").to_owned();
    let in_use = |names: Value| {
        let target = Target::status(kind("Node"), "", &node);
        cluster.modify(target, move |node| node["status"]["volumesInUse"] = names.clone())
    };
    in_use(json!([format!("kubernetes.io/csi/local.barque.io^{name}")])).await;
    delete(&cluster, "PersistentVolumeClaim", "default", "data").await;
    delete(&cluster, "Pod", "default", "user").await;
    cluster.until_gone("PersistentVolumeClaim", "default", "data").await;
    volume_is(&cluster, &name, "Released").await;
    delete(&cluster, "PersistentVolume", "", &name).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(cluster.get("PersistentVolume", "", &name).await.is_some(), "its data is there yet");
    in_use(Value::Null).await;
    cluster.until_gone("PersistentVolume", "", &name).await;
}

#[tokio::test]
async fn what_no_node_can_have_is_told_and_nothing_is_made() {
    let cluster = cluster().await;
    local_class(&cluster, "now", "Immediate").await;
    local_class(&cluster, "own", "WaitForFirstConsumer").await;
    cluster.node("n1", "4").await;
    cluster.create("PersistentVolumeClaim", "default", claim("early", "1Gi", "now")).await;
    let why = cluster.event("ProvisioningFailed", "early").await;
    assert!(why.contains("volumeBindingMode to WaitForFirstConsumer"), "{why}");
    let mut shared = claim("shared", "1Gi", "own");
    shared["spec"]["accessModes"] = json!(["ReadWriteMany"]);
    cluster.create("PersistentVolumeClaim", "default", shared).await;
    let mut user = pod("user", "1");
    user["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}]);
    cluster.create("Pod", "default", user).await;
    let why = cluster.event("ProvisioningFailed", "shared").await;
    assert!(why.contains("access mode ReadWriteMany is not supported"), "{why}");
    let found = cluster.get("PersistentVolumeClaim", "default", "shared").await.expect("the claim");
    assert_eq!(found["status"]["phase"], "Pending");
    assert!(found["spec"]["volumeName"].is_null());
}

#[tokio::test]
async fn a_claim_asks_for_more_only_where_its_class_lets_it() {
    let cluster = cluster().await;
    cluster.create("PersistentVolume", "", volume("disk", "5Gi", "")).await;
    cluster.create("PersistentVolumeClaim", "default", claim("data", "1Gi", "")).await;
    let more = |claim: &mut Value| {
        claim["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        Ok(())
    };
    let target = Target::new(kind("PersistentVolumeClaim"), "default", "data");
    claim_is(&cluster, "data", "Bound").await;
    let refused = cluster.registry.modify(target, &Default::default(), more).await.expect_err("no class");
    assert!(refused.message().contains("the storageclass that provisions the pvc must support resize"));
    cluster.create("PersistentVolumeClaim", "default", claim("waits", "9Gi", "")).await;
    let target = Target::new(kind("PersistentVolumeClaim"), "default", "waits");
    let refused = cluster.registry.modify(target, &Default::default(), more).await.expect_err("not bound");
    assert!(refused.message().contains("spec is immutable after creation"), "{refused}");
}
