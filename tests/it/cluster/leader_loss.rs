//! kill -9 of leaders under load, and of a majority.

use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use chaos_tests::cluster::until;
use chaos_tests::workload::creates::{Creates, missing};
use rand::Rng as _;

use super::first_pod::{hello, run_pod};
use super::{Lab, PATIENCE, measured, skipped};

/// Leaders killed one after the other.
const KILLS: usize = 20;
/// Far beyond what is promised (1 s): a shared machine can stall every process for as long.
const OUTAGE_MAX: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_leaders_killed_under_load_lose_nothing() {
    if skipped("twenty_leaders_killed_under_load_lose_nothing") {
        return;
    }
    let lab = Lab::up("it-leaders", 3, 2).await;
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
    let (before, _) = run_pod(&mut client, &hello("witness", None)).await;
    let load = Creates::start(&lab.cluster.kubeconfig(), "load", 4).unwrap();

    let mut kills = Vec::new();
    for round in 0..KILLS {
        let moment = rand::rng().random_range(100..600);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let leader = lab.cluster.leader(PATIENCE).unwrap();
        let pod = hello(&format!("late-{round}"), None);
        // Whether this one is acknowledged or not, it must not be bound twice.
        let _ = client.request(http::Method::POST, "/api/v1/namespaces/default/pods", Some(&pod)).await;
        kills.push(Instant::now());
        lab.cluster.kill(&leader).unwrap();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        lab.cluster.complete().unwrap();
    }
    let history = load.stop().await.unwrap();

    let outages: Vec<Duration> =
        kills.iter().map(|at| history.first_after(*at).map_or(Duration::MAX, |next| next - *at)).collect();
    let mut sorted = outages.clone();
    sorted.sort();
    measured(&format!(
        "kill -9 of the leader to the next acknowledged write, {KILLS} times: median {:?}, max {:?}; \
         {} writes acknowledged, {} refused, {} unknown",
        sorted[KILLS / 2],
        sorted[KILLS - 1],
        history.acknowledged.len(),
        history.failed,
        history.unknown,
    ));
    assert!(sorted[KILLS - 1] < OUTAGE_MAX, "writes did not come back: {outages:?}");

    let lost = missing(&mut client, &history).await.unwrap();
    assert!(lost.is_empty(), "{} acknowledged writes are lost: {lost:?}", lost.len());

    let after = client.get("/api/v1/namespaces/default/pods/witness").await.unwrap();
    let (then, now) = (&before["status"]["containerStatuses"][0], &after["status"]["containerStatuses"][0]);
    assert_eq!(then["containerID"], now["containerID"], "the pod was not restarted");
    assert_eq!(now["restartCount"], 0);

    every_pod_is_bound_once(&mut client).await;
    lab.down();
}

/// Every pod has a node, and no pod was ever said to be assigned to two.
async fn every_pod_is_bound_once(client: &mut Client) {
    let deadline = Instant::now() + PATIENCE;
    let pods = loop {
        let pods = client.get("/api/v1/namespaces/default/pods").await.unwrap();
        let all = pods["items"].as_array().unwrap();
        if all.iter().all(|pod| pod["status"]["phase"] == "Running") {
            break pods;
        }
        assert!(Instant::now() < deadline, "not all pods run: {pods:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let events = client.get("/api/v1/namespaces/default/events").await.unwrap();
    for pod in pods["items"].as_array().unwrap() {
        let name = &pod["metadata"]["name"];
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        assert!(!node.is_empty(), "{name} has no node");
        let scheduled = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["reason"] == "Scheduled" && event["involvedObject"]["name"] == *name);
        for event in scheduled {
            let message = event["message"].as_str().unwrap_or_default();
            assert!(message.ends_with(&format!(" to {node}")), "{name} is on {node}, but: {message}");
        }
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_writes_are_refused_and_none_is_lost() {
    if skipped("without_a_majority_writes_are_refused_and_none_is_lost") {
        return;
    }
    let lab = Lab::up("it-majority", 3, 1).await;
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
    let load = Creates::start(&lab.cluster.kubeconfig(), "load", 2).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    lab.cluster.kill("master-1").unwrap();
    lab.cluster.kill("master-2").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let body = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "refused"}});
    let configmaps = "/api/v1/namespaces/default/configmaps";
    let (status, answer) = client.request(http::Method::POST, configmaps, Some(&body)).await.unwrap();
    assert!(status.is_server_error(), "{status}: {answer}");
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(message.contains("majority") || message.contains("leader"), "it says why: {message}");
    measured(&format!("a write without a majority: {status} {message}"));

    let restarted = Instant::now();
    lab.cluster.complete().unwrap();
    let back = until(PATIENCE, || lab.cluster.leader(Duration::ZERO).ok());
    assert!(back.is_some());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let history = load.stop().await.unwrap();
    let next = history.first_after(restarted);
    assert!(next.is_some(), "writes did not come back: {:?}", history.messages);
    let lost = missing(&mut client, &history).await.unwrap();
    assert!(lost.is_empty(), "lost: {lost:?}");
    lab.down();
}
