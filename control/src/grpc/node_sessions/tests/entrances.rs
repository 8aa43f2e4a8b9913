//! Which nodes are given the certificates of Ingresses.

use proto::node::ObjectKey;

use super::*;
use crate::registry::WriteOptions;
use crate::test_cluster::any;

/// The Secrets that a node hears of, with whether they are there.
fn secret(message: to_node::Message) -> Option<(String, bool)> {
    let is_secret = |key: &Option<ObjectKey>| key.as_ref().is_some_and(|key| key.kind == "Secret");
    match message {
        to_node::Message::ObjectChange(told) if is_secret(&told.key) => Some((told.key?.name, true)),
        to_node::Message::ObjectRemoved(told) if is_secret(&told.key) => Some((told.key?.name, false)),
        _ => None,
    }
}

fn takes_requests(message: to_node::Message) -> Option<bool> {
    match message {
        to_node::Message::NodeNetwork(network) => Some(network.ingress),
        _ => None,
    }
}

async fn label(cluster: &TestCluster, node: &str, value: Option<&str>) {
    let change = |object: &mut Value| {
        match value {
            Some(value) => object["metadata"]["labels"][api::ingress::NODE_LABEL] = value.into(),
            None => {
                let labels = object["metadata"]["labels"].as_object_mut().expect("a node has labels");
                labels.remove(api::ingress::NODE_LABEL);
            }
        }
        Ok(())
    };
    let target = Target::new(kind("Node"), "", node);
    cluster.registry.modify(target, &WriteOptions::default(), change).await.expect("labelled");
}

fn ingress(name: &str, class: &str, secret: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ingressClassName": class,
        "tls": [{"hosts": ["h.example"], "secretName": secret}],
        "defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
}

#[tokio::test]
async fn certificates_go_to_nodes_that_were_chosen_and_no_others() {
    let cluster = cluster().await;
    cluster.until_all("networking.k8s.io", "IngressClass", |all| !all.is_empty()).await;
    let (mut chosen, mut other) = (Agent::start(&cluster, "n1").await, Agent::start(&cluster, "n2").await);
    assert!(!chosen.hear_of(takes_requests).await);
    let options = WriteOptions::default();
    for name in ["ours", "theirs", "unnamed", "later"] {
        let secret = json!({"metadata": {"name": name}, "type": "Opaque"});
        cluster.registry.create(kind("Secret"), "default", secret, &options).await.expect("created");
    }
    let ingresses = any("networking.k8s.io", "Ingress");
    for (name, class, secret) in [("a", "barque", "ours"), ("b", "somebody-elses", "theirs")] {
        let ingress = ingress(name, class, secret);
        cluster.registry.create(ingresses, "default", ingress, &options).await.expect("created");
    }
    label(&cluster, "n1", Some("true")).await;
    // In whichever order: the word that it takes requests, and the certificate.
    let (mut takes, mut told) = (false, None);
    while !takes || told.is_none() {
        let message = chosen.hear().await;
        takes |= takes_requests(message.clone()) == Some(true);
        told = told.or(secret(message));
    }
    assert_eq!(told, Some(("ours".to_owned(), true)));
    let later = ingress("c", "barque", "later");
    cluster.registry.create(ingresses, "default", later, &options).await.expect("created");
    assert_eq!(chosen.hear_of(secret).await, ("later".to_owned(), true));

    // It changes, nobody needs it any more, the node is not chosen any more.
    let change = |object: &mut Value| {
        object["metadata"]["annotations"] = json!({"new": "yes"});
        Ok(())
    };
    let target = Target::new(kind("Secret"), "default", "ours");
    cluster.registry.modify(target, &options, change).await.expect("changed");
    assert_eq!(chosen.hear_of(secret).await, ("ours".to_owned(), true));
    let target = Target::new(ingresses, "default", "c");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    assert_eq!(chosen.hear_of(secret).await, ("later".to_owned(), false));
    label(&cluster, "n1", None).await;
    assert_eq!(chosen.hear_of(secret).await, ("ours".to_owned(), false));

    // The other one has heard of none: the end of an Ingress is the first that it is asked to hear.
    label(&cluster, "n2", Some("no")).await;
    other.say(from_node::Message::Heartbeat(Heartbeat { sequence: 1 })).await;
    cluster.pod("p", "1").await;
    let last = Target::new(ingresses, "default", "a");
    cluster.registry.delete(last, &DeleteOptions::default()).await.expect("deleted");
    let is_end = |message: &to_node::Message| match message {
        to_node::Message::NetworkChanges(changes) => {
            changes.removed.iter().any(|key| key.kind == "Ingress" && key.name == "a")
        }
        _ => false,
    };
    loop {
        let message = other.hear().await;
        if is_end(&message) {
            return;
        }
        assert_eq!(secret(message.clone()), None);
        assert_ne!(takes_requests(message), Some(true));
    }
}
