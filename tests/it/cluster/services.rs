//! Services on real nodes: chapter 3 of the book as printed, names and addresses as pods, nodes and others see them, and
//! that they go on while pods, masters and agents die.
//!
//! Rows: A3-27, 28, 32, 33, 35 to 37, AX-08, KIA-ARCH-029, KIA-SVC-001 to 004, 007, 008, 013, 015, KIA-NET-008, KIA-API-030, WS-ORC-01, 11,
//! WS-K8S-05, 06.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::net::{NetNs, ServiceTable, ServiceTableConfig, netns};

use super::stage::{SLEEP, scripts};
use super::{Lab, PATIENCE, kubectl, kubectl_ok, kubectls, measured, skip, skipped};

const CALLS: usize = 60;

pub(super) struct Town {
    pub(super) lab: Lab,
    pub(super) program: PathBuf,
}

impl Town {
    pub(super) async fn up(test: &str, name: &str) -> Option<Self> {
        Self::with(test, name, 2).await
    }

    /// One with so many nodes.
    pub(super) async fn with(test: &str, name: &str, nodes: u8) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let Some(program) = kubectls().pop() else {
            skip(test, "there is no kubectl on PATH");
            return None;
        };
        if !Path::new("/usr/bin/curl").exists() {
            skip(test, "there is no curl for pods to call with");
            return None;
        }
        Some(Self { lab: Lab::up(name, 3, nodes).await, program })
    }

    pub(super) fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&self.program, &self.lab.cluster, &args)
    }

    /// A pod on a node that has this machine's programs.
    pub(super) fn client(&self, name: &str, node: &str) {
        let file = self.lab.directory.path().join(format!("{name}.json"));
        std::fs::write(&file, scripts(name, node, &[("c", SLEEP, serde_json::json!({}))]).to_string())
            .unwrap();
        self.run(&format!("apply -f {}", file.display()));
        self.run(&format!("wait pod {name} --for=condition=Ready --timeout=60s"));
    }

    /// What a script prints in a pod.
    pub(super) fn shell(&self, pod: &str, script: &str) -> String {
        let output = kubectl(&self.program, &self.lab.cluster, &["exec", pod, "--", "/bin/sh", "-c", script]);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let _closed = writeln!(std::io::stderr(), "{pod}: {script}: {said}");
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Asks again until the answer is right.
    pub(super) async fn until(
        &self,
        what: &str,
        ask: impl Fn() -> String,
        is_right: impl Fn(&str) -> bool,
    ) -> String {
        let started = Instant::now();
        loop {
            let answer = ask();
            if is_right(&answer) {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How often each pod answers.
    pub(super) fn answers(&self, pod: &str, url: &str) -> BTreeMap<String, usize> {
        let calls = format!("for i in $(seq {CALLS}); do curl -s -m 5 {url} || echo failed; done");
        count(&self.shell(pod, &calls))
    }

    pub(super) fn node_addresses(&self) -> Vec<String> {
        let path = "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}";
        kubectl_ok(&self.program, &self.lab.cluster, &["get", "nodes", "-o", path])
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }
}

/// Pods by the lines "Hey there, this is POD. ..".
fn count(text: &str) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for line in text.lines() {
        let name = line.split("this is ").nth(1).and_then(|rest| rest.split('.').next()).unwrap_or(line);
        *seen.entry(name.to_owned()).or_default() += 1;
    }
    seen
}

/// How often each pod answers somebody who is no part of the cluster.
fn from_outside(url: &str, calls: usize) -> BTreeMap<String, usize> {
    let call = |_| {
        let output = std::process::Command::new("curl").args(["-s", "-m", "5", url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned() + "\n"
    };
    count(&(0..calls).map(call).collect::<String>())
}

fn assert_spread(seen: &BTreeMap<String, usize>, pods: usize) {
    assert!(seen.len() == pods && seen.values().all(|hits| *hits >= 5), "{seen:?}");
    assert!(seen.keys().all(|name| name.starts_with("hello-")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chapter_3_a_deployment_is_exposed_and_requests_are_spread() {
    let Some(town) =
        Town::up("chapter_3_a_deployment_is_exposed_and_requests_are_spread", "it-services").await
    else {
        return;
    };
    town.client("client", "node-1");
    assert_eq!(
        town.run("create deployment hello --image=barque/hello:1.0"),
        "deployment.apps/hello created\n"
    );
    assert_eq!(
        town.run("expose deployment hello --type=LoadBalancer --port 8080"),
        "service/hello exposed\n"
    );
    town.run("rollout status deployment hello --timeout=60s");
    let address = town.run("get svc hello -o jsonpath={.spec.clusterIP}");
    let port = town.run("get svc hello -o jsonpath={.spec.ports[0].nodePort}");
    let by_address = format!("http://{address}:8080");
    let ask = || town.shell("client", &format!("curl -s -m 5 {by_address}"));
    town.until("the service's address", ask, |answer| answer.contains("this is hello-")).await;
    // One pod, and every node answers, also the one that runs none.
    for node in town.node_addresses() {
        let seen = from_outside(&format!("http://{node}:{port}"), 3);
        assert!(seen.len() == 1 && seen.keys().all(|name| name.starts_with("hello-")), "{node}: {seen:?}");
    }

    assert_eq!(town.run("scale deployment hello --replicas=3"), "deployment.apps/hello scaled\n");
    town.run("rollout status deployment hello --timeout=60s");
    let ready = || {
        town.run("get endpointslices -l kubernetes.io/service-name=hello -o jsonpath={.items[*].endpoints[*].conditions.ready}")
    };
    town.until("three endpoints", ready, |text| {
        text.split_whitespace().filter(|word| *word == "true").count() == 3
    })
    .await;
    for url in [&by_address, "http://hello:8080", "http://hello.default.svc.cluster.local:8080"] {
        assert_spread(&town.answers("client", url), 3);
    }
    for node in town.node_addresses() {
        assert_spread(&from_outside(&format!("http://{node}:{port}"), CALLS), 3);
    }
    a_name_stays(&town, &address).await;
    names_are_answered(&town).await;
    api_is_found(&town);
    town.run("delete deployment hello --wait=false");
    // Without anybody behind it callers hear so at once.
    let refused =
        || town.shell("client", &format!("curl -s -m 5 -w '%{{errormsg}} %{{time_total}}' {by_address}"));
    // Newer curls say that they could not connect; what counts is that it was not for want of an answer.
    let is_refused =
        |answer: &str| answer.contains("refused") || answer.contains("Couldn't connect to server");
    let took = |answer: &str| answer.split_whitespace().last().and_then(|word| word.parse::<f64>().ok());
    let is_at_once = |answer: &str| is_refused(answer) && took(answer).is_some_and(|took| took < 0.5);
    town.until("nobody is there", refused, is_at_once).await;
    for _ in 0..5 {
        let answer = refused();
        assert!(is_at_once(&answer), "each time: {answer}");
    }
    town.lab.down();
}

/// J10: every one of many calls of a name is answered, by all alike; and the name stays when pods go.
async fn a_name_stays(town: &Town, address: &str) {
    let calls = "for i in $(seq 300); do curl -s -m 5 http://hello:8080 || echo failed; done";
    let seen = count(&town.shell("client", calls));
    assert!(seen.len() == 3 && seen.values().all(|hits| *hits >= 60), "{seen:?}");
    let pod = seen.keys().next().unwrap().clone();
    town.run(&format!("delete pod {pod}"));
    let ask = || town.shell("client", "curl -s -m 5 http://hello:8080");
    town.until("another pod", ask, |answer| answer.contains("this is hello-") && !answer.contains(&pod))
        .await;
    town.run("rollout status deployment hello --timeout=60s");
    assert_eq!(town.run("get svc hello -o jsonpath={.spec.clusterIP}"), address);
}

/// Names as pods see them.
async fn names_are_answered(town: &Town) {
    let resolver = town.shell("client", "cat /etc/resolv.conf");
    assert!(
        resolver.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local"),
        "{resolver}"
    );
    assert!(resolver.contains("nameserver 10.96.0.10\n") && resolver.contains("ndots:5"), "{resolver}");
    town.run("expose deployment hello --name=head --cluster-ip=None --port 8080");
    let ask = || town.shell("client", "getent ahostsv4 head | grep STREAM | cut -d' ' -f1");
    let found = town.until("a headless service", ask, |text| text.lines().count() == 3).await;
    let pods = town.run("get pods -l app=hello -o jsonpath={.items[*].status.podIP}");
    let mut found: Vec<&str> = found.lines().collect();
    let mut pods: Vec<&str> = pods.split_whitespace().collect();
    found.sort_unstable();
    pods.sort_unstable();
    assert_eq!(found, pods);
    let back = town.shell("client", "getent hosts 10.96.0.10");
    assert!(back.contains("kube-dns.kube-system.svc.cluster.local"), "{back}");
    assert_eq!(town.shell("client", "getent hosts no-such-name || echo none"), "none\n");
    let info = town.run("cluster-info");
    assert!(
        info.contains("KubeDNS is running at") && info.contains("/services/kube-dns:dns/proxy"),
        "{info}"
    );
}

/// The masters, by the variables that every pod has.
fn api_is_found(town: &Town) {
    let call = "curl -sk -m 5 https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version";
    let version = town.shell("client", call);
    assert!(version.contains("gitVersion"), "{version}");
    // With what every pod has: the authority's certificate, and a token that is allowed what its account is.
    let by_name = |path: &str| {
        let credentials = "/var/run/secrets/kubernetes.io/serviceaccount";
        let bearer = format!("-H \"Authorization: Bearer $(cat {credentials}/token)\"");
        let call =
            format!("curl -s -m 5 --cacert {credentials}/ca.crt {bearer} https://kubernetes.default{path}");
        town.shell("client", &call)
    };
    let version = by_name("/version");
    assert!(version.contains("gitVersion"), "{version}");
    let pods = "/api/v1/namespaces/default/pods?labelSelector=app%3Dhello";
    let refused = by_name(pods);
    assert!(refused.contains("system:serviceaccount:default:default\\\" cannot list resource"), "{refused}");
    town.run("create rolebinding readers --clusterrole=view --serviceaccount=default:default");
    let listed: serde_json::Value = serde_json::from_str(&by_name(pods)).unwrap_or_default();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(3), "{listed}");
    let file = town.lab.directory.path().join("late.json");
    let late = scripts("late", "node-2", &[("c", SLEEP, serde_json::json!({}))]);
    std::fs::write(&file, late.to_string()).unwrap();
    town.run(&format!("apply -f {}", file.display()));
    town.run("wait pod late --for=condition=Ready --timeout=60s");
    let told = town.shell("late", "echo $HELLO_SERVICE_HOST:$HELLO_SERVICE_PORT $HELLO_PORT_8080_TCP_PROTO");
    assert!(told.starts_with("10.96.") && told.ends_with(":8080 tcp\n"), "{told}");
}

/// An application whose pods are replaced without a call that fails.
pub(super) const GRACEFUL: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 3
  selector: {matchLabels: {app: hello}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: hello
        image: barque/hello:1.0
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 3}}}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_while_pods_masters_and_agents_change() {
    let Some(town) = Town::up("a_service_goes_on_while_pods_masters_and_agents_change", "it-goes-on").await
    else {
        return;
    };
    let file = town.lab.directory.path().join("graceful.yaml");
    std::fs::write(&file, GRACEFUL).unwrap();
    town.run(&format!("apply -f {}", file.display()));
    town.run("rollout status deployment hello --timeout=60s");
    town.client("client", "node-1");
    let ask = || town.shell("client", "curl -s -m 5 http://hello");
    town.until("the service", ask, |answer| answer.contains("this is hello-")).await;

    // Calls one after the other, all the while.
    let script = "touch /tmp/go; while [ -e /tmp/go ]; do \
        curl -s -o /dev/null -m 5 -w '%{http_code} %{time_connect} %{exitcode}\\n' http://$HELLO_SERVICE_HOST >> /tmp/calls; done";
    let caller =
        format!("HELLO_SERVICE_HOST={}; {script}", town.run("get svc hello -o jsonpath={.spec.clusterIP}"));
    let background = kubectl(
        &town.program,
        &town.lab.cluster,
        &["exec", "client", "--", "/bin/sh", "-c", &format!("({caller}) > /dev/null 2>&1 &")],
    );
    assert!(background.status.success(), "{}", String::from_utf8_lossy(&background.stderr));
    town.run("rollout restart deployment hello");
    town.run("rollout status deployment hello --timeout=90s");
    let leader = town.lab.cluster.leader(PATIENCE).unwrap();
    town.lab.cluster.kill(&leader).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.lab.cluster.complete().unwrap();
    town.lab.cluster.kill("node-1").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.lab.cluster.complete().unwrap();
    let count = || town.shell("client", "wc -l < /tmp/calls");
    let before: usize = count().trim().parse().unwrap_or_default();
    town.until("more calls", count, |text| {
        text.trim().parse::<usize>().is_ok_and(|calls| calls > before + 20)
    })
    .await;
    let calls = town.shell("client", "rm /tmp/go; sleep 1; cat /tmp/calls");
    let failed: Vec<&str> = calls.lines().filter(|line| !line.starts_with("200 ")).collect();
    measured(&format!(
        "calls during a rollout, a leader's and an agent's death: {}, failed: {}",
        calls.lines().count(),
        failed.len()
    ));
    assert!(calls.lines().count() > 100 && failed.is_empty(), "{failed:?} of {}", calls.lines().count());

    // Somebody takes the table away.
    let name = netns::list()
        .unwrap()
        .into_iter()
        .find(|name| name.contains("it-goes-on") && name.ends_with("node-1"));
    let node = NetNs::open_named(&name.expect("node-1 has a namespace")).unwrap();
    let config = ServiceTableConfig {
        table: "barque-services-cbr0".to_owned(),
        bridge: "cbr0".to_owned(),
        own_pods: "10.0.0.0/8".parse().unwrap(),
        all_pods: None,
        services: None,
        bridge_is_filtered: true,
    };
    node.run(|| ServiceTable::new(config).remove()).unwrap().unwrap();
    let gone = Instant::now();
    let ask = || town.shell("client", "curl -s -m 1 http://hello");
    town.until("the table is back", ask, |answer| answer.contains("this is hello-")).await;
    measured(&format!("the table was back after {:?}", gone.elapsed()));
    town.lab.down();
}
