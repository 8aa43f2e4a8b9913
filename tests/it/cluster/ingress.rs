//! Ingresses on real nodes: stock kubectl makes them, stock curl calls them, pods are replaced and a node dies meanwhile.
//!
//! Rows: WS-ORC-14, J16, KIA-POD-010.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::services::{GRACEFUL, Town};
use super::stage::scripts;
use super::{PATIENCE, measured};

const HOST: &str = "shop.example.test";
const SECURE: &str = "pay.example.test";

/// Calls a node as a host; the code of the answer and its text.
fn call(node: &str, host: &str, path: &str) -> String {
    let url = format!("http://{node}{path}");
    curl(&["-H", &format!("Host: {host}"), &url])
}

fn curl(args: &[&str]) -> String {
    let output =
        Command::new("curl").args(["-s", "-m", "5", "-w", " %{http_code}"]).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A second application beside that of the services' test, and one whose pods do not exist.
const OTHER: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: other}
spec:
  selector: {matchLabels: {app: other}}
  template:
    metadata: {labels: {app: other}}
    spec: {containers: [{name: hello, image: 'barque/hello:1.0', ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec:
  selector: {app: other}
  ports: [{name: web, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_led_by_host_and_path_while_pods_and_nodes_change() {
    let test = "requests_are_led_by_host_and_path_while_pods_and_nodes_change";
    let Some(town) = Town::up(test, "it-ingress").await else { return };
    let file = town.lab.directory.path().join("applications.yaml");
    std::fs::write(&file, format!("{GRACEFUL}---\n{OTHER}")).unwrap();
    town.run(&format!("apply -f {}", file.display()));
    town.run("rollout status deployment hello --timeout=60s");
    town.run("rollout status deployment other --timeout=60s");
    let nodes = town.node_addresses();
    assert_eq!(nodes.len(), 2);

    let class = town.run("get ingressclass");
    assert!(class.contains("barque.io/ingress"), "{class}");
    let rules = [
        format!("--rule={HOST}/*=hello:80"),
        format!("--rule={HOST}/other*=other:web"),
        format!("--rule={HOST}/nobody=nobody:80"),
        format!("--rule={SECURE}/*=other:80,tls=pay"),
    ];
    town.run(&format!("create ingress web {}", rules.join(" ")));
    assert_eq!(town.run("get ingress web -o jsonpath={.spec.ingressClassName}"), "barque");
    let shown = || town.run("get ingress web");
    let table =
        town.until("its addresses", shown, |table| nodes.iter().all(|node| table.contains(node))).await;
    assert!(table.contains(HOST) && table.contains("80, 443"), "{table}");

    for node in &nodes {
        let ask = || call(node, HOST, "/");
        town.until("the first answer", ask, |answer| {
            answer.contains("this is hello-") && answer.ends_with(" 200")
        })
        .await;
        let seen: Vec<String> = (0..30).map(|_| ask()).collect();
        let pods: std::collections::BTreeSet<&str> =
            seen.iter().filter_map(|answer| answer.split("this is ").nth(1)?.split('.').next()).collect();
        assert_eq!(pods.len(), 3, "{seen:?}");
        let other = call(node, "SHOP.example.test:80", "/other/x");
        assert!(other.contains("this is other-"), "{other}");
        let nobody = call(node, HOST, "/nobody");
        assert!(
            nobody.contains("default/nobody:80: no endpoint is ready") && nobody.ends_with(" 503"),
            "{nobody}"
        );
        let unknown = call(node, "unknown.example.test", "/");
        assert!(unknown.ends_with(" 404"), "{unknown}");
    }
    certificates_are_used(&town, &nodes[0]).await;
    datagrams_are_answered(&town, &nodes).await;

    let (calls, failed) = while_calling(&nodes, || {
        town.run("rollout restart deployment hello");
        town.run("rollout status deployment hello --timeout=90s");
        // Rules change, too.
        town.run("annotate ingress web seen=yes");
        let leader = town.lab.cluster.leader(PATIENCE).unwrap();
        town.lab.cluster.kill(&leader).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1));
        town.lab.cluster.complete().unwrap();
    });
    measured(&format!(
        "requests through an Ingress during a rollout and a leader's death: {calls}, failed: {}",
        failed.len()
    ));
    assert!(calls > 100 && failed.is_empty(), "{failed:?} of {calls}");

    // An administrator takes a node out.
    town.run("label node node-1 node-restriction.kubernetes.io/ingress-");
    let gone = Instant::now();
    let closed = || call(&nodes[0], HOST, "/");
    town.until("the node takes no requests", closed, |answer| answer.ends_with(" 000")).await;
    measured(&format!("a node took no more requests after {:?}", gone.elapsed()));
    town.until("its address is not shown", shown, |table| !table.contains(&nodes[0])).await;
    assert!(call(&nodes[1], HOST, "/").ends_with(" 200"));

    town.run("delete ingress web");
    town.until("the rules are gone", || call(&nodes[1], HOST, "/"), |answer| answer.ends_with(" 404")).await;
    town.lab.down();
}

/// A Secret's certificate is shown to who asks for its host, also a new one, and plain callers are sent there.
async fn certificates_are_used(town: &Town, node: &str) {
    let directory = town.lab.directory.path();
    let at = format!("{SECURE}:443:{node}");
    let url = format!("https://{SECURE}/x?y=1");
    let without = curl(&["-k", "--resolve", &at, &url]);
    assert!(without.ends_with(" 000"), "there is no certificate yet: {without}");
    for round in ["first", "second"] {
        let made = rcgen::generate_simple_self_signed([SECURE.to_owned()]).unwrap();
        let (certificate, key) =
            (directory.join(format!("{round}.crt")), directory.join(format!("{round}.key")));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        if round == "second" {
            town.run("delete secret pay");
        }
        town.run(&format!("create secret tls pay --cert={} --key={}", certificate.display(), key.display()));
        let trusted = certificate.display().to_string();
        for version in ["--http1.1", "--http2"] {
            let ask = || curl(&[version, "--cacert", &trusted, "--resolve", &at, &url]);
            let answer = town.until("TLS", ask, |answer| answer.ends_with(" 200")).await;
            assert!(answer.contains("this is other-"), "{round} {version}: {answer}");
        }
    }
    let location = || {
        curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{redirect_url}",
            "-H",
            &format!("Host: {SECURE}"),
            &format!("http://{node}/x?y=1"),
        ])
    };
    assert!(location().contains(&url), "{}", location());
    town.run("annotate ingress web barque.io/ssl-redirect=false");
    town.until("no redirection", || call(node, SECURE, "/"), |answer| answer.ends_with(" 200")).await;
}

/// What is no HTTP goes through a Service.
async fn datagrams_are_answered(town: &Town, nodes: &[String]) {
    let echo = "exec perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 5353, Proto => \"udp\"); \
        while ($s->recv($d, 1024)) { $s->send(\"echo $d\") }'";
    let mut pod = scripts("echo", "node-1", &[("c", echo, json!({}))]);
    pod["metadata"]["labels"] = json!({"app": "echo"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo"},
        "spec": {"type": "NodePort", "selector": {"app": "echo"}, "ports": [{"port": 5353, "protocol": "UDP"}]}});
    let file = town.lab.directory.path().join("echo.json");
    let both = json!({"apiVersion": "v1", "kind": "List", "items": [pod, service]});
    std::fs::write(&file, both.to_string()).unwrap();
    town.run(&format!("apply -f {}", file.display()));
    town.run("wait pod echo --for=condition=Ready --timeout=60s");
    let port: u16 = town.run("get svc echo -o jsonpath={.spec.ports[0].nodePort}").parse().unwrap();
    for node in nodes {
        let ask = || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
            let mut answer = [0; 64];
            let asked = socket.send_to(b"hello", (node.as_str(), port));
            let length = asked.and_then(|_| socket.recv(&mut answer)).unwrap_or_default();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        town.until("a datagram", ask, |answer| answer == "echo hello").await;
    }
}

/// Calls every node by turns while something happens. How many calls, and which went wrong.
fn while_calling(nodes: &[String], happens: impl FnOnce()) -> (usize, Vec<String>) {
    let going = Arc::new(AtomicBool::new(true));
    let callers: Vec<_> = nodes
        .iter()
        .cloned()
        .map(|node| {
            let going = Arc::clone(&going);
            std::thread::spawn(move || {
                let (mut calls, mut failed) = (0, Vec::new());
                while going.load(Ordering::Relaxed) {
                    let answer = call(&node, HOST, "/");
                    calls += 1;
                    if !answer.ends_with(" 200") {
                        failed.push(answer);
                    }
                }
                (calls, failed)
            })
        })
        .collect();
    happens();
    going.store(false, Ordering::Relaxed);
    let ended = callers.into_iter().map(|caller| caller.join().unwrap());
    ended.fold((0, Vec::new()), |(calls, mut failed), (more, wrong): (usize, Vec<String>)| {
        failed.extend(wrong);
        (calls + more, failed)
    })
}
