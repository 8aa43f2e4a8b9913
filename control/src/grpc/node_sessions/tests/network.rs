//! What nodes hear of the cluster's network.

use std::collections::BTreeMap;

use proto::node::{NetworkChanges, NetworkWanted, ObjectKey};

use super::*;
use crate::registry::WriteOptions;
use crate::test_cluster::any;

fn index(message: to_node::Message) -> Option<BTreeMap<(String, String), u64>> {
    let to_node::Message::NetworkIndex(index) = message else { return None };
    assert!(index.objects.iter().all(|object| object.object_json.is_empty()));
    let named = index.objects.into_iter().map(|object| {
        let key = object.key.expect("a key");
        ((key.kind, key.name), object.revision)
    });
    Some(named.collect())
}

fn changes(message: to_node::Message) -> Option<NetworkChanges> {
    match message {
        to_node::Message::NetworkChanges(changes) => Some(changes),
        _ => None,
    }
}

fn wanted(kind: &str, namespace: &str, name: &str) -> from_node::Message {
    let key = ObjectKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
    from_node::Message::NetworkWanted(NetworkWanted { objects: vec![key] })
}

#[tokio::test]
async fn every_node_hears_of_every_service_and_asks_for_what_it_lacks() {
    let cluster = cluster().await;
    let api = cluster.until("Service", "default", "kubernetes", |_| true).await;
    let revision: u64 =
        api["metadata"]["resourceVersion"].as_str().expect("a version").parse().expect("a number");
    let mut agent = Agent::start(&cluster, "n1").await;
    let known = agent.hear_of(index).await;
    assert_eq!(known.get(&("Service".to_owned(), "kubernetes".to_owned())), Some(&revision));

    // What it names it gets; what is not of the network it never gets.
    agent.say(wanted("Secret", "default", "s")).await;
    agent.say(wanted("Service", "default", "kubernetes")).await;
    agent.say(wanted("Service", "default", "gone")).await;
    let (mut told, mut removed) = (Vec::new(), Vec::new());
    while told.is_empty() || removed.is_empty() {
        let changes = agent.hear_of(changes).await;
        assert_eq!(changes.epoch, 1);
        told.extend(changes.changed.into_iter().filter(|object| object.revision == revision));
        removed.extend(changes.removed);
    }
    let object: Value = serde_json::from_slice(&told[0].object_json).expect("JSON");
    assert_eq!(object["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!((removed.len(), removed[0].kind.as_str(), removed[0].name.as_str()), (1, "Service", "gone"));

    // A change comes by itself, and so does its slice, and the end of both.
    let service =
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let options = WriteOptions::default();
    cluster.registry.create(kind("Service"), "default", service, &options).await.expect("created");
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        let changes = agent.hear_of(changes).await;
        let keys = changes.changed.into_iter().filter_map(|object| object.key);
        seen.extend(keys.filter(|key| key.name.starts_with("web")).map(|key| key.kind));
    }
    let target = Target::new(kind("Service"), "default", "web");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    while !seen.is_empty() {
        for key in agent.hear_of(changes).await.removed {
            assert!(key.name.starts_with("web"));
            seen.remove(&key.kind);
        }
    }
}

fn policy(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})
}

#[tokio::test]
async fn nodes_hear_of_pods_of_others_only_while_there_is_a_policy_and_only_what_it_asks_about() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    cluster.pod("p", "1").await;
    let pod = agent.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let status = |sequence, ready: &str| {
        let status = json!({"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}],
            "conditions": [{"type": "Ready", "status": ready}]});
        from_node::Message::PodStatus(PodStatus {
            sequence,
            namespace: "default".into(),
            name: "p".into(),
            uid: uid.clone(),
            status_json: status.to_string().into(),
        })
    };
    agent.say(status(1, "False")).await;
    cluster.until("Pod", "default", "p", |pod| pod["status"]["podIP"] == "10.244.0.2").await;

    let (options, policies) = (WriteOptions::default(), any("networking.k8s.io", "NetworkPolicy"));
    let named = |name: &str| policy(name);
    cluster.registry.create(policies, "default", named("closed"), &options).await.expect("created");
    let named_pod = ("Pod".to_owned(), "p".to_owned());
    let known = loop {
        let known = agent.hear_of(index).await;
        if known.contains_key(&named_pod) {
            break known;
        }
        assert!(!known.keys().any(|(kind, _)| matches!(kind.as_str(), "Pod" | "Namespace")), "{known:?}");
    };
    assert!(known.contains_key(&("NetworkPolicy".to_owned(), "closed".to_owned())), "{known:?}");
    assert!(known.contains_key(&("Namespace".to_owned(), "default".to_owned())), "{known:?}");
    agent.say(wanted("Pod", "default", "p")).await;
    let told = loop {
        let told = agent.hear_of(changes).await.changed;
        if let Some(told) =
            told.into_iter().find(|object| object.key.as_ref().is_some_and(|key| key.kind == "Pod"))
        {
            break told;
        }
    };
    assert_eq!(told.revision, known[&named_pod]);
    let object: Value = serde_json::from_slice(&told.object_json).expect("JSON");
    assert_eq!(object["status"]["podIP"], "10.244.0.2");
    assert_eq!(object["spec"], json!({"containers": [{"name": "", "ports": []}]}), "nothing else of it");

    // A pod that begins is told after every policy that was written before it, and readiness is nobody's business.
    agent.say(status(2, "True")).await;
    cluster.registry.create(policies, "default", named("later"), &options).await.expect("created");
    cluster.pod("q", "1").await;
    let mut told = std::collections::BTreeSet::new();
    loop {
        match agent.hear().await {
            to_node::Message::NetworkChanges(changes) => {
                assert!(
                    !changes
                        .changed
                        .iter()
                        .any(|object| object.key.as_ref().is_some_and(|key| key.name == "p")),
                    "nothing changed that anybody asks about"
                );
                let keys = changes.changed.into_iter().filter_map(|object| object.key);
                told.extend(keys.filter(|key| key.kind == "NetworkPolicy").map(|key| key.name));
            }
            to_node::Message::PodChange(change) => {
                let pod: Value = serde_json::from_slice(&change.pod_json).expect("JSON");
                if pod["metadata"]["name"] == "q" {
                    break;
                }
            }
            _ => {}
        }
    }
    assert!(told.contains("closed") && told.contains("later"), "{told:?}");

    // The last policy goes, and with it what was told for its sake.
    for name in ["closed", "later"] {
        let target = Target::new(policies, "default", name);
        cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    }
    while agent.hear_of(index).await.keys().any(|(kind, _)| matches!(kind.as_str(), "Pod" | "NetworkPolicy"))
    {
    }
}
