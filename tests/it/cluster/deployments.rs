//! Deployments on real nodes, through stock kubectl: made, looked at, scaled, healed, rolled out and back while
//! the leader dies, and removed with everything they made.
//!
//! Rows: KIA-DEP-001 to 005, 007 to 009, 011, KIA-CLI-010, 036, KIA-ARCH-021, A3-22, 24, 26, 30, 33 to 36, 39, A5-41, AX-06.

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
    // The API's own Service stays.
    while run("get all -o name").trim() != "service/kubernetes" {
        assert!(started.elapsed() < PATIENCE, "{}", run("get all"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    lab.down();
}

const TWO_OF_EACH: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: barque/hello:1.0, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: back}
spec:
  selector: {matchLabels: {app: back}}
  template:
    metadata: {labels: {app: back}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: barque/hello:1.0}]
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {selector: {app: front}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: back}
spec: {selector: {app: back}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nonsense}
spec:
  selector: {matchLabels: {app: nonsense}}
  template:
    metadata: {labels: {app: another}}
    spec: {containers: [{name: c, image: barque/hello:1.0}]}
";

/// What a watch from a version on tells of objects whose names begin so: versions, and the objects.
fn told(raw: impl Fn(&str) -> String, path: &str, since: &str, name: &str) -> Vec<(u64, Value)> {
    let text = raw(&format!("{path}?watch=1&resourceVersion={since}&timeoutSeconds=1"));
    let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>().flatten();
    let objects = events.map(|event| event["object"].clone());
    let own =
        objects.filter(|object| object["metadata"]["name"].as_str().is_some_and(|own| own.starts_with(name)));
    own.map(|object| (object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap(), object))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_many_objects_becomes_pods_step_by_step() {
    let name = "a_file_of_many_objects_becomes_pods_step_by_step";
    if skipped(name) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(name, "there is no kubectl on PATH") };
    let lab = Lab::up("it-steps", 3, 2).await;
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
    let run = |line: &str| {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&program, &lab.cluster, &args)
    };
    let resources = run("api-resources --no-headers");
    for line in ["nodes no", "pods po", "services svc", "deployments deploy", "events ev"] {
        let words: Vec<&str> = line.split(' ').collect();
        let is_there = |row: &str| row.split_whitespace().take(2).eq(words.iter().copied());
        assert!(resources.lines().any(is_there), "{line} in {resources}");
    }

    let file = lab.directory.path().join("two.yaml");
    std::fs::write(&file, TWO_OF_EACH).unwrap();
    let since = client.get(PODS).await.unwrap()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let applied = kubectl(&program, &lab.cluster, &["apply", "-f", file.to_str().unwrap()]);
    let (made, refused) =
        (String::from_utf8_lossy(&applied.stdout), String::from_utf8_lossy(&applied.stderr));
    assert_eq!(made.lines().count(), 4, "each object is a request of its own: {made}");
    assert!(refused.contains("`selector` does not match template `labels`"), "{refused}");
    assert!(!run("get deployments -o name").contains("nonsense"), "what is invalid is never stored");
    ready_pods(&mut client, 2).await;
    let started = Instant::now();
    while !run("get endpoints front").contains(":8080") {
        assert!(started.elapsed() < PATIENCE, "{}", run("get endpoints"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let raw = |path: &str| run(&format!("get --raw {path}"));
    let of = |group: &str, plural: &str| {
        told(raw, &format!("/{group}/namespaces/default/{plural}"), &since, "front")
    };
    let pods = of("api/v1", "pods");
    let first = |is_right: &dyn Fn(&Value) -> bool| pods.iter().find(|(_, pod)| is_right(pod)).unwrap().0;
    let endpoints = of("api/v1", "endpoints");
    let steps = [
        of("apis/apps/v1", "deployments")[0].0,
        of("apis/apps/v1", "replicasets")[0].0,
        pods[0].0,
        first(&|pod| pod["spec"]["nodeName"].is_string()),
        first(&|pod| pod["status"]["phase"] == "Running"),
        endpoints.iter().find(|(_, all)| all["subsets"][0]["addresses"].is_array()).unwrap().0,
    ];
    assert!(steps.is_sorted_by(|one, next| one < next), "each step follows the one before: {steps:?}");

    // Pods lie in the ranges of their nodes.
    let nodes = client.get("/api/v1/nodes").await.unwrap();
    for (_, pod) in pods.iter().filter(|(_, pod)| pod["status"]["podIP"].is_string()) {
        let of = nodes["items"].as_array().unwrap().iter();
        let node = of.into_iter().find(|node| node["metadata"]["name"] == pod["spec"]["nodeName"]).unwrap();
        let range = node["spec"]["podCIDR"].as_str().unwrap().rsplit_once('.').unwrap().0.to_owned();
        assert!(pod["status"]["podIP"].as_str().unwrap().starts_with(&format!("{range}.")), "{pod}");
    }

    // An image that nobody has.
    run("create deployment broken --image=127.0.0.1:1/nothing:1");
    let started = Instant::now();
    while !run("get pods -l app=broken").contains("ImagePullBackOff") {
        assert!(started.elapsed() < PATIENCE, "{}", run("get pods"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told = run("describe pods -l app=broken");
    assert!(told.contains("Warning  Failed") && told.contains("Back-off pulling image"), "{told}");
    run("delete deployment broken");

    // A pod of nobody's goes for good, those of deployments come back as others.
    run("run alone --image=barque/hello:1.0 --restart=Never");
    run("wait pod alone --for=condition=Ready --timeout=30s");
    let before = run("get pods -o name -l app");
    let gone = run("delete po --all --wait=false");
    assert_eq!(
        gone.lines().count(),
        3 + before.lines().filter(|line| line.contains("broken")).count(),
        "{gone}"
    );
    let started = Instant::now();
    loop {
        let now = run("get pods -o name");
        let is_new = |line: &str| !before.contains(line) && !line.contains("alone");
        if now.lines().count() == 2 && now.lines().all(is_new) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{now}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(run("describe deployment front").contains("ScalingReplicaSet"), "{}", run("get events"));

    // Any master dies, then the leader: everything is still there, and what is new is scheduled.
    let leader = lab.cluster.leader(PATIENCE).unwrap();
    let follower = lab.cluster.masters().into_iter().find(|master| *master != leader).unwrap();
    for (number, victim) in [follower, leader].into_iter().enumerate() {
        lab.cluster.kill(&victim).unwrap();
        let deployment = format!("after-{number}");
        let started = Instant::now();
        let create = ["create", "deployment", &deployment, "--image=barque/hello:1.0"];
        // kubectl knows one master only, which may be the dead one.
        while !kubectl(&program, &lab.cluster, &create).status.success() {
            lab.cluster.complete().unwrap();
            assert!(started.elapsed() < PATIENCE);
        }
        lab.cluster.complete().unwrap();
        run(&format!("rollout status deployment {deployment} --timeout=60s"));
        assert!(run("get deployments").contains("front"));
    }
    lab.down();
}
