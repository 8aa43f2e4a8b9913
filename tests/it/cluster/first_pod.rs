//! The main job: three masters, two nodes, a pod that stock kubectl applied.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, until};
use runtime::net::NetNs;
use serde_json::{Value, json};

use super::{Lab, PATIENCE, kubectl, kubectl_ok, kubectls, measured, skip, skipped};
use crate::support::eventually;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod of the built-in image, on one node if asked.
pub(super) fn hello(name: &str, node: Option<&str>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "hello", "image": "barque/hello:1.0", "ports": [{"containerPort": 8080}]}],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    pod
}

/// Creates a pod and waits until it runs; returns it, and how long that took.
pub(super) async fn run_pod(client: &mut Client, pod: &Value) -> (Value, Duration) {
    let started = Instant::now();
    let (status, created) = client.request(http::Method::POST, PODS, Some(pod)).await.unwrap();
    assert_eq!(status, 201, "{created}");
    let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap());
    loop {
        let now = client.get(&path).await.unwrap();
        if now["status"]["containerStatuses"][0]["ready"] == true {
            return (now, started.elapsed());
        }
        assert!(started.elapsed() < PATIENCE, "the pod does not run: {now:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a pod's program listens. Without a readiness probe its container is ready as soon as it runs.
fn listening(netns: &NetNs, address: IpAddr) {
    eventually(|| netns.run(move || TcpStream::connect(SocketAddr::new(address, 8080)).ok()).unwrap());
}

/// What a GET of `/` answers, asked from inside a network namespace.
fn get_from(netns: &NetNs, address: IpAddr) -> String {
    let target = SocketAddr::new(address, 8080);
    let asked = netns.run(move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    asked.unwrap().unwrap()
}

/// A process of the container, as the host sees it.
pub(super) fn container_pid(pod_ip: &str) -> Option<i32> {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let addresses = std::fs::read_to_string(entry.path().join("net/fib_trie")).unwrap_or_default();
        let is_there = addresses.split_whitespace().any(|word| word == pod_ip);
        if String::from_utf8_lossy(&command).starts_with("/barque\0hello") && is_there {
            return Some(pid);
        }
    }
    None
}

pub(super) fn pod_ip(pod: &Value) -> &str {
    pod["status"]["podIP"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_talks_to_others_survives_its_agent_and_nothing_is_left() {
    if skipped("a_pod_runs_talks_to_others_survives_its_agent_and_nothing_is_left") {
        return;
    }
    let started = Instant::now();
    let lab = Lab::up("it-pod", 3, 2).await;
    measured(&format!("up, 3 masters and 2 nodes Ready: {:?}", started.elapsed()));
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();

    let (one, first) = run_pod(&mut client, &hello("one", Some("node-1"))).await;
    let (two, second) = run_pod(&mut client, &hello("two", Some("node-2"))).await;
    measured(&format!("pod created to running: {first:?}, {second:?}"));
    assert_eq!(one["spec"]["nodeName"], "node-1");
    assert_eq!(two["spec"]["nodeName"], "node-2");

    // Pods on different nodes reach each other by address.
    let inside = NetNs::of_pid(container_pid(pod_ip(&one)).unwrap()).unwrap();
    listening(&inside, pod_ip(&one).parse().unwrap());
    listening(&inside, pod_ip(&two).parse().unwrap());
    let answer = get_from(&inside, pod_ip(&two).parse().unwrap());
    assert!(answer.contains("Hey there, this is two."), "{answer}");
    assert!(answer.contains(pod_ip(&one)), "the caller's own address is seen: {answer}");

    // The agent dies; its containers do not. Started again, it adopts them.
    lab.cluster.kill("node-1").unwrap();
    let alone = get_from(&NetNs::current().unwrap(), pod_ip(&one).parse().unwrap());
    assert!(alone.contains("this is one."), "{alone}");
    lab.cluster.complete().unwrap();
    let path = format!("{PODS}/one");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let adopted = client.get(&path).await.unwrap();
        let (before, now) =
            (&one["status"]["containerStatuses"][0], &adopted["status"]["containerStatuses"][0]);
        if now["ready"] == true {
            assert_eq!(now["containerID"], before["containerID"]);
            assert_eq!(now["state"]["running"]["startedAt"], before["state"]["running"]["startedAt"]);
            assert_eq!(now["restartCount"], 0);
            break;
        }
        assert!(Instant::now() < deadline, "{adopted:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let status = lab.cluster.status().unwrap();
    for process in ["master-1", "master-2", "master-3", "node-1", "node-2", "shim"] {
        let row = status.lines().rev().find(|line| line.starts_with(process)).unwrap_or_default();
        measured(&format!("memory: {row}"));
    }
    lab.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_cluster_and_the_answers_of_up_and_down_said_twice() {
    if skipped("a_small_cluster_and_the_answers_of_up_and_down_said_twice") {
        return;
    }
    let lab = Lab::up("it-small", 1, 1).await;
    let port = lab.options.port.to_string();
    let again = lab.cluster.barque(&["up", "--masters", "1", "--nodes", "1", "--port", &port]).unwrap();
    let said = String::from_utf8_lossy(&again.stdout).into_owned() + &String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert!(said.contains("already up"), "{said}");
    let other = lab.cluster.barque(&["up", "--masters", "3", "--nodes", "1", "--port", &port]).unwrap();
    assert!(!other.status.success(), "a cluster of another shape is refused");
    let options = lab.options.clone();
    lab.down();
    let nothing = Cluster::up(options.clone()).and_then(|cluster| {
        cluster.barque(&["down"])?;
        cluster.barque(&["down"])
    });
    let nothing = nothing.unwrap();
    let said =
        String::from_utf8_lossy(&nothing.stdout).into_owned() + &String::from_utf8_lossy(&nothing.stderr);
    assert!(said.contains("no cluster") || said.contains("nothing"), "{said}");
}

/// A5-03 to A5-11 and A3-18, with every kubectl on this machine: same columns, same words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kubectl_shows_what_the_books_show() {
    if skipped("every_kubectl_shows_what_the_books_show") {
        return;
    }
    let programs = kubectls();
    if programs.is_empty() {
        return skip("every_kubectl_shows_what_the_books_show", "no kubectl on PATH");
    }
    let lab = Lab::up("it-kubectl", 3, 2).await;
    let cluster = &lab.cluster;
    let manifest = lab.directory.path().join("hello.json");
    std::fs::write(&manifest, hello("hello", None).to_string()).unwrap();
    let manifest = manifest.to_str().unwrap();
    for program in &programs {
        let ok = |args: &[&str]| kubectl_ok(program, cluster, args);
        let nodes = ok(&["get", "nodes"]);
        let header: Vec<&str> = nodes.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header, ["NAME", "STATUS", "ROLES", "AGE", "VERSION"], "{program:?}");
        assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 2, "{nodes}");

        assert_eq!(ok(&["apply", "-f", manifest]), "pod/hello created\n", "{program:?}");
        let running = until(PATIENCE, || {
            let pod = ok(&["get", "pod", "hello", "--no-headers"]);
            (pod.split_whitespace().collect::<Vec<_>>()[1..3] == ["1/1", "Running"]).then_some(())
        });
        assert!(running.is_some(), "{program:?}: {}", ok(&["describe", "pod", "hello"]));
        assert_eq!(ok(&["apply", "-f", manifest]), "pod/hello unchanged\n", "{program:?}");

        let wide = ok(&["get", "pods", "-o", "wide"]);
        let header: Vec<&str> = wide.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header[..7], ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"], "{wide}");
        assert_eq!(ok(&["get", "pod", "hello", "-o", "jsonpath={.status.phase}"]), "Running");
        assert!(ok(&["get", "pod", "hello", "-o", "yaml"]).starts_with("apiVersion: v1\nkind: Pod\n"));

        let described = ok(&["describe", "pod", "hello"]);
        for line in ["Name:             hello", "Namespace:        default", "Status:           Running"] {
            let words: Vec<&str> = line.split_whitespace().collect();
            let found = described.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == words);
            assert!(found, "{program:?}: {line:?} is not in\n{described}");
        }
        let node = ok(&["get", "pod", "hello", "-o", "jsonpath={.spec.nodeName}"]);
        for (reason, message) in [
            ("Scheduled", format!("Successfully assigned default/hello to {node}")),
            ("Pulled", "Container image \"barque/hello:1.0\" already present on machine".to_owned()),
            ("Created", "Created container hello".to_owned()),
            ("Started", "Started container hello".to_owned()),
        ] {
            let told = until(PATIENCE, || {
                let described = ok(&["describe", "pod", "hello"]);
                described.lines().any(|l| l.contains(reason) && l.contains(&message)).then_some(())
            });
            assert!(told.is_some(), "{program:?}: no {reason} {message:?} in\n{described}");
        }
        let logs = ok(&["logs", "hello"]);
        assert!(logs.contains("Hello server starting"), "{logs}");
        assert!(follows(program, cluster), "{program:?}: logs -f");
        assert!(ok(&["get", "events"]).starts_with("LAST SEEN"), "{program:?}");
        assert_eq!(ok(&["delete", "pod", "hello"]).lines().next(), Some("pod \"hello\" deleted"));
        let gone = kubectl(program, cluster, &["get", "pod", "hello"]);
        let error = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert_eq!(error, "Error from server (NotFound): pods \"hello\" not found\n");
    }
    measured(&format!("kubectl versions driven: {}", programs.len()));
    lab.down();
}

/// Whether `logs -f` shows a line that is written after it began.
fn follows(program: &std::path::Path, cluster: &Cluster) -> bool {
    let ip = kubectl_ok(program, cluster, &["get", "pod", "hello", "-o", "jsonpath={.status.podIP}"]);
    let mut logs = Command::new(program)
        .args(["logs", "-f", "hello"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", cluster.directory())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(logs.stdout.take().unwrap());
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in std::io::BufRead::lines(output).map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let seen = until(PATIENCE, || {
        get_from(&NetNs::current().unwrap(), ip.parse().unwrap());
        lines.try_iter().any(|line| line.contains("Received request")).then_some(())
    });
    logs.kill().unwrap();
    logs.wait().unwrap();
    drop(lines);
    reader.join().unwrap();
    seen.is_some()
}
