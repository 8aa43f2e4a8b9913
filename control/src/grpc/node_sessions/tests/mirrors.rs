//! Mirror pods: what a node may make and remove, and whose status they carry.

use proto::node::MirrorPod;

use super::*;

fn mirror(hash: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-n1", "namespace": "default",
            "annotations": {"kubernetes.io/config.mirror": hash, "kubernetes.io/config.source": "file"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    })
}

fn wish(sequence: u64, pod: Option<&Value>, uid: &str) -> from_node::Message {
    from_node::Message::MirrorPod(MirrorPod {
        sequence,
        namespace: "default".into(),
        name: "web-n1".into(),
        pod_json: pod.map(|pod| pod.to_string().into()).unwrap_or_default(),
        uid: uid.to_owned(),
    })
}

fn status(sequence: u64, uid: &str, phase: &str) -> PodStatus {
    PodStatus {
        sequence,
        namespace: "default".into(),
        name: "web-n1".into(),
        uid: uid.to_owned(),
        status_json: json!({"phase": phase}).to_string().into(),
    }
}

#[tokio::test]
async fn a_node_shows_its_static_pods() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    cluster.until("Node", "", "n1", |_| true).await;
    agent.say(wish(1, Some(&mirror("h1")), "h1")).await;
    assert_eq!(agent.ack().await, 1);
    let shown = cluster.until("Pod", "default", "web-n1", |_| true).await;
    assert!(shown["spec"]["serviceAccountName"].is_null(), "it is nobody to the API: {shown}");
    assert!(shown["spec"]["volumes"].is_null());
    let owner = &shown["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["controller"]),
        (&json!("Node"), &json!("n1"), &json!(true))
    );
    // Asked twice it is made once.
    agent.say(wish(2, Some(&mirror("h1")), "h1")).await;
    assert_eq!(agent.ack().await, 2);

    // The node speaks of it by what it shows.
    agent.say(from_node::Message::PodStatus(status(3, "h1", "Running"))).await;
    assert_eq!(agent.ack().await, 3);
    cluster.until("Pod", "default", "web-n1", |pod| pod["status"]["phase"] == "Running").await;
    agent.say(from_node::Message::PodStatus(status(4, "h2", "Failed"))).await;
    assert_eq!(agent.ack().await, 4);
    let uid = shown["metadata"]["uid"].as_str().expect("a uid").to_owned();

    // Deleted by somebody, it goes when its node says so, not when what it shows has ended.
    let target = Target::new(kind("Pod"), "default", "web-n1");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    let said = status(5, "h1", "Running");
    let end = PodTerminated {
        sequence: 5,
        namespace: said.namespace,
        name: said.name,
        uid: said.uid,
        status_json: said.status_json,
    };
    agent.say(from_node::Message::PodTerminated(end)).await;
    assert_eq!(agent.ack().await, 5);
    let kept = cluster.get("Pod", "default", "web-n1").await.expect("still there");
    assert_eq!(kept["status"]["phase"], "Running", "and h2's status was nobody's");
    agent.say(wish(6, None, "of-another-life")).await;
    assert_eq!(agent.ack().await, 6);
    assert!(cluster.get("Pod", "default", "web-n1").await.is_some());
    agent.say(wish(7, None, &uid)).await;
    assert_eq!(agent.ack().await, 7);
    assert!(cluster.get("Pod", "default", "web-n1").await.is_none());
}

#[tokio::test]
async fn a_node_cannot_reach_other_pods_by_way_of_mirrors() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    let mut elsewhere = mirror("h1");
    elsewhere["spec"]["nodeName"] = json!("n2");
    let mut greedy = mirror("h1");
    greedy["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
    let mut plain = mirror("h1");
    plain["metadata"]["annotations"] = json!({});
    for (sequence, pod) in [(1, elsewhere), (2, greedy), (3, plain)] {
        agent.say(wish(sequence, Some(&pod), "h1")).await;
        assert_eq!(agent.ack().await, sequence, "refused is settled, too");
        assert!(cluster.get("Pod", "default", "web-n1").await.is_none());
    }
    // An ordinary pod of the node's is not the node's to remove.
    cluster.pod("p", "1").await;
    let pod = agent.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;
    let removal = MirrorPod {
        sequence: 4,
        namespace: "default".into(),
        name: "p".into(),
        uid: pod["metadata"]["uid"].as_str().expect("a uid").to_owned(),
        ..MirrorPod::default()
    };
    agent.say(from_node::Message::MirrorPod(removal)).await;
    assert_eq!(agent.ack().await, 4);
    assert!(cluster.get("Pod", "default", "p").await.is_some());
}
