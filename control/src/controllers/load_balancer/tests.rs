//! Services of type `LoadBalancer` against a replica's whole work.

use super::*;
use crate::controllers::Timings;
use crate::registry::{DeleteOptions, WriteOptions};
use crate::test_cluster::{TestCluster, kind};

async fn cluster(addresses: &[&str]) -> TestCluster {
    let timings = Timings { node_monitor_grace: Duration::from_secs(3600), ..Timings::default() };
    TestCluster::start_with_balancers(timings, addresses.iter().map(|text| text.parse().unwrap()).collect())
        .await
}

async fn balanced(cluster: &TestCluster, name: &str, spec: &Value) {
    let mut service =
        json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    cluster.create("Service", "default", service).await;
}

async fn address(cluster: &TestCluster, name: &str) -> String {
    let service = cluster.until("Service", "default", name, |service| address_of(service).is_some()).await;
    assert_eq!(service["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    address_of(&service).unwrap().to_string()
}

async fn complaint(cluster: &TestCluster, about: &str) -> String {
    let looking = async {
        loop {
            let events = cluster.all("", "Event").await;
            let mut of_service = events.iter().filter(|event| {
                event["involvedObject"]["name"] == about && event["reason"] == "SyncLoadBalancerFailed"
            });
            if let Some(event) = of_service.next_back() {
                return event["message"].as_str().unwrap_or_default().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looking).await.expect("an Event")
}

#[tokio::test]
async fn services_get_addresses_that_nobody_has_and_give_them_back() {
    let cluster = cluster(&["192.0.2.10-192.0.2.12"]).await;
    balanced(&cluster, "a", &json!({"loadBalancerIP": "192.0.2.12"})).await;
    assert_eq!(address(&cluster, "a").await, "192.0.2.12");
    for name in ["b", "c"] {
        balanced(&cluster, name, &json!({})).await;
    }
    let given = BTreeSet::from([address(&cluster, "b").await, address(&cluster, "c").await]);
    assert_eq!(given, BTreeSet::from(["192.0.2.10".to_owned(), "192.0.2.11".to_owned()]));
    // Nothing is left; what is wished for is another's, or none's to give; another provider's class is left alone.
    balanced(&cluster, "late", &json!({})).await;
    assert!(complaint(&cluster, "late").await.contains("are in use"));
    balanced(&cluster, "taken", &json!({"loadBalancerIP": "192.0.2.12"})).await;
    assert!(complaint(&cluster, "taken").await.contains("another Service has 192.0.2.12"));
    balanced(&cluster, "outside", &json!({"loadBalancerIP": "198.51.100.1"})).await;
    assert!(complaint(&cluster, "outside").await.contains("not among the addresses"));
    balanced(&cluster, "other", &json!({"loadBalancerClass": "example.com/other"})).await;
    // An address that somebody writes into a status by hand is still one Service's only.
    let status = Target::status(kind("Service"), "default", "late");
    let options = WriteOptions::default();
    let stolen = cluster.registry.modify(status, &options, |value| {
        value["status"]["loadBalancer"] = json!({"ingress": [{"ip": "192.0.2.12"}]});
        Ok(())
    });
    let stolen = stolen.await.expect_err("it is another's").message().to_owned();
    assert!(stolen.contains("192.0.2.12"), "{stolen}");

    // One goes, one becomes another type: what they had is there for others.
    let target = Target::new(kind("Service"), "default", "a");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    assert_eq!(address(&cluster, "taken").await, "192.0.2.12");
    let target = Target::new(kind("Service"), "default", "b");
    cluster.modify(target, |value| value["spec"]["type"] = "ClusterIP".into()).await;
    let plain = cluster.get("Service", "default", "b").await.expect("there");
    assert_eq!(plain["status"]["loadBalancer"], json!({}));
    assert!(given.contains(&address(&cluster, "late").await));
}

#[tokio::test]
async fn without_a_pool_a_service_hears_what_to_do() {
    let cluster = cluster(&[]).await;
    balanced(&cluster, "a", &json!({})).await;
    let told = complaint(&cluster, "a").await;
    assert!(told.contains("loadBalancer.addresses") && told.contains("loadBalancerClass"), "{told}");
    let service = cluster.get("Service", "default", "a").await.expect("there");
    assert_eq!(service["status"]["loadBalancer"], json!({}));
}

async fn held_by(
    cluster: &TestCluster,
    epoch: Epoch,
    address: &str,
    is_right: impl Fn(&str) -> bool,
) -> String {
    let address: Ipv4Addr = address.parse().unwrap();
    let looking = async {
        loop {
            let holders = cluster.work.sessions.holders(epoch).unwrap_or_default();
            if let Some(node) = holders.get(&address).filter(|node| is_right(node)) {
                return node.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looking).await.expect("somebody holds it")
}

#[tokio::test]
async fn an_address_moves_to_a_node_that_lives() {
    let cluster = cluster(&["192.0.2.10"]).await;
    for name in ["n1", "n2", "n3"] {
        cluster.node(name, "4").await;
        let ready = json!([{"type": "Ready", "status": "True"}]);
        cluster
            .modify(Target::status(kind("Node"), "", name), |node| {
                node["status"]["conditions"] = ready.clone()
            })
            .await;
    }
    let alive = Arc::new(std::sync::Mutex::new(BTreeSet::from(["n1", "n2", "n3"])));
    let (beating, beats) = (alive.clone(), cluster.work.heartbeats.clone());
    let pulse = tokio::spawn(async move {
        loop {
            for node in beating.lock().unwrap().iter() {
                beats.beat(node, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    balanced(&cluster, "a", &json!({})).await;
    assert_eq!(address(&cluster, "a").await, "192.0.2.10");
    let first = held_by(&cluster, Epoch(1), "192.0.2.10", |_| true).await;
    alive.lock().unwrap().retain(|node| **node != *first);
    let dead = Instant::now();
    let second = held_by(&cluster, Epoch(1), "192.0.2.10", |node| node != first).await;
    println!("measured: an address left a silent node after {:?}", dead.elapsed());
    assert!(dead.elapsed() < Duration::from_secs(2), "{:?}", dead.elapsed());
    // Kept from it, another one has it.
    let target = Target::new(kind("Node"), "", &second);
    cluster.modify(target, |node| node["metadata"]["labels"][EXCLUDED] = "".into()).await;
    let third = held_by(&cluster, Epoch(1), "192.0.2.10", |node| node != first && node != second).await;
    // The leader's word ends with its office, and the next one's is the same where nothing changed.
    cluster.follow(2);
    cluster.lead(3);
    held_by(&cluster, Epoch(3), "192.0.2.10", |node| node == third).await;
    pulse.abort();
}
