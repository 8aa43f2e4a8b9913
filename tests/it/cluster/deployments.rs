//! Deployments on real nodes, through stock kubectl: made, looked at, scaled, healed, rolled out and back while
//! the leader dies, and removed with everything they made.
//!
//! Rows: KIA-DEP-001 to 005, 007 to 009, KIA-CLI-010, 036, A3-22, 24, 33 to 36.

use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use serde_json::Value;

use super::{Lab, PATIENCE, kubectl, kubectl_ok, kubectls, measured, skip, skipped};

const MANIFEST: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 1
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hello
        image: barque/hello:1.0
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// The pods' names, when there are so many and all are ready.
async fn ready_pods(client: &mut Client, count: usize) -> Vec<String> {
    let started = Instant::now();
    loop {
        let list = client.get(PODS).await.unwrap();
        let pods: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
        let ready = pods.iter().filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true).count();
        if pods.len() == count && ready == count {
            return pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        }
        assert!(started.elapsed() < PATIENCE, "{ready} of {} pods are ready: {list:#}", pods.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_made_scaled_healed_rolled_out_and_removed() {
    let name = "a_deployment_is_made_scaled_healed_rolled_out_and_removed";
    if skipped(name) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(name, "there is no kubectl on PATH") };
    let lab = Lab::up("it-deploy", 3, 2).await;
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
    let run = |line: &str| {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&program, &lab.cluster, &args)
    };
    let file = lab.directory.path().join("hello.yaml");
    std::fs::write(&file, MANIFEST).unwrap();

    assert_eq!(run(&format!("apply -f {}", file.display())), "deployment.apps/hello created\n");
    let first = ready_pods(&mut client, 1).await;
    run("rollout status deployment hello --timeout=30s");
    let table = run("get deployments");
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    assert_eq!(lines[1][..4], ["hello", "1/1", "1", "1"]);
    let parts: Vec<&str> = first[0].split('-').collect();
    assert!(parts.len() == 3 && parts[2].len() == 5, "hello-HASH-XXXXX: {first:?}");
    let set = format!("hello-{}", parts[1]);
    assert!(run("get rs").contains(&set));

    let asked = Instant::now();
    assert_eq!(run("scale deployment hello --replicas=3"), "deployment.apps/hello scaled\n");
    let three = ready_pods(&mut client, 3).await;
    measured(&format!("scale from 1 to 3, asked to ready: {:?}", asked.elapsed()));
    assert!(three.contains(&first[0]), "the one that was there stays");
    assert!(run("describe deployment hello").contains(&format!("Scaled up replica set {set} from 1 to 3")));

    run(&format!("delete pod {} --wait=false", first[0]));
    let started = Instant::now();
    let healed = loop {
        let now = ready_pods(&mut client, 3).await;
        if !now.contains(&first[0]) {
            break now;
        }
        assert!(started.elapsed() < PATIENCE);
    };
    assert_eq!(healed.iter().filter(|name| three.contains(name)).count(), 2);

    // A new template, and the leader dies in the middle of it.
    run("set env deployment/hello VERSION=2");
    let leader = lab.cluster.leader(PATIENCE).unwrap();
    lab.cluster.kill(&leader).unwrap();
    lab.cluster.complete().unwrap();
    let status =
        kubectl(&program, &lab.cluster, &["rollout", "status", "deployment", "hello", "--timeout=60s"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let second = ready_pods(&mut client, 3).await;
    assert!(second.iter().all(|name| !healed.contains(name)), "{second:?} after {healed:?}");
    let history = run("rollout history deployment hello");
    assert!(history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{history}");
    assert!(run("rollout undo deployment hello").contains("rolled back"));
    run("rollout status deployment hello --timeout=60s");
    let back = ready_pods(&mut client, 3).await;
    assert!(back.iter().all(|name| name.starts_with(&format!("{set}-"))), "{back:?}");

    run("delete deployment hello");
    let started = Instant::now();
    while !run("get all").trim().is_empty() {
        assert!(started.elapsed() < PATIENCE, "{}", run("get all"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    lab.down();
}
