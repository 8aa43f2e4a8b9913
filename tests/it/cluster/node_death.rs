//! What becomes of pods when their node falls silent, and when it comes back: replaced elsewhere, ended here, never
//! two of one. And a cluster without any node: its API goes on, and what was asked for runs when one is back.
//!
//! Rows: KIA-ARCH-013, 025, 035, KIA-DEP-006, 010, 011, KIA-NODE-020, KIA-POD-014, A3-36, 38, AX-12, J6, J22,
//! WS-ORC-10, KC-CTL-08.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Lab, PATIENCE, kubectl_ok, kubectls, measured, skip, skipped};

/// Pods that leave a node a second after it fell silent, spread over all.
const MANIFEST: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 3
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway,
         labelSelector: {matchLabels: {app: hello}}}
      containers: [{name: c, image: barque/hello:1.0, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: alone}}
spec:
  terminationGracePeriodSeconds: 1
  nodeName: node-1
  tolerations:
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
  containers: [{name: c, image: barque/hello:1.0}]
";

struct Session {
    lab: Lab,
    program: PathBuf,
}

/// A pod as `get pods -o wide` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    name: String,
    ready: String,
    status: String,
    ip: String,
    node: String,
}

impl Session {
    fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&self.program, &self.lab.cluster, &args)
    }

    fn pods(&self, label: &str) -> Vec<Row> {
        let table = self.run(&format!("get pods -o wide --no-headers -l app={label}"));
        let rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        rows.filter(|words| words.len() >= 9)
            .map(|words| {
                // From the end: RESTARTS may be "1 (3s ago)".
                let at = words.len() - 4;
                let (name, ready, status) = (words[0].clone(), words[1].clone(), words[2].clone());
                Row { name, ready, status, ip: words[at].clone(), node: words[at + 1].clone() }
            })
            .collect()
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {}", self.run("get pods,nodes -o wide"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until so many pods are ready, none of them on a node.
    async fn ready(&self, count: usize, away_from: &str) -> BTreeSet<Row> {
        self.until(&format!("{count} ready pods away from {away_from}"), |session| {
            let rows = session.pods("hello").into_iter();
            let ready: BTreeSet<Row> = rows
                .filter(|row| row.status == "Running" && row.ready == "1/1" && row.node != away_from)
                .collect();
            (ready.len() == count).then_some(ready)
        })
        .await
    }

    /// Cuts a node's only link, or mends it. Its processes go on.
    fn link(&self, node: &str, state: &str) {
        let host = format!("{}-{node}", self.lab.options.name);
        let done =
            Command::new("ip").args(["-n", &host, "link", "set", "dev", "eth0", state]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// How many sandboxes a node has, whatever the API says.
    fn sandboxes(&self, node: &str) -> usize {
        let dir = format!("/run/barque/clusters/{}/{node}/runtime/sandboxes", self.lab.options.name);
        std::fs::read_dir(dir).map_or(0, |entries| entries.flatten().count())
    }

    /// Every condition of nodes, pods and Deployments has its type, one of three words, and the times that its kind keeps.
    fn conditions_are_lists_of_words(&self) {
        for (kind, beside) in
            [("nodes", Some("lastHeartbeatTime")), ("pods", Some("lastProbeTime")), ("deployments", None)]
        {
            let list: serde_json::Value =
                serde_json::from_str(&self.run(&format!("get {kind} -o json"))).unwrap();
            let objects = list["items"].as_array().unwrap();
            assert!(!objects.is_empty(), "there are {kind}");
            for object in objects {
                let conditions = object["status"]["conditions"].as_array().expect("a list");
                assert!(!conditions.is_empty(), "{object:#}");
                for condition in conditions {
                    let word = condition["status"].as_str().unwrap_or_default();
                    assert!(["True", "False", "Unknown"].contains(&word), "{kind}: {condition}");
                    assert!(condition["type"].is_string() && condition["lastTransitionTime"].is_string());
                    assert!(
                        beside.is_none_or(|beside| condition.get(beside).is_some()),
                        "{kind}: {condition}"
                    );
                }
            }
        }
    }

    fn node_status(&self, node: &str) -> String {
        let row = self.run(&format!("get node {node} --no-headers"));
        row.split_whitespace().nth(1).unwrap_or_default().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_nodes_pods_move_and_none_is_there_twice_when_it_is_back() {
    let name = "a_dead_nodes_pods_move_and_none_is_there_twice_when_it_is_back";
    if skipped(name) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(name, "there is no kubectl on PATH") };
    let session = Session { lab: Lab::up("it-death", 3, 3).await, program };
    let file = session.lab.directory.path().join("hello.yaml");
    std::fs::write(&file, MANIFEST).unwrap();
    session.run(&format!("apply -f {}", file.display()));
    let before = session.ready(3, "nowhere").await;
    assert_eq!(
        before.iter().map(|row| &row.node).collect::<BTreeSet<_>>().len(),
        3,
        "one on each: {before:?}"
    );
    session.run("wait pod alone --for=condition=Ready --timeout=30s");
    let header = session.run("get pods -o wide");
    let header: Vec<&str> = header.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header[..7], ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]);

    session.link("node-1", "down");
    let cut = Instant::now();
    session.until("node-1 is not ready", |s| (s.node_status("node-1") == "NotReady").then_some(())).await;
    measured(&format!("link cut to node NotReady: {:?}", cut.elapsed()));
    let moved = session.ready(3, "node-1").await;
    measured(&format!("link cut to all pods ready elsewhere (toleration 1 s): {:?}", cut.elapsed()));
    let lost: Vec<&Row> = before.iter().filter(|row| row.node == "node-1").collect();
    let new: Vec<&Row> = moved.difference(&before).collect();
    assert_eq!((lost.len(), new.len()), (1, 1), "{before:?} became {moved:?}");
    assert!(new[0].name != lost[0].name && new[0].ip != lost[0].ip, "a replacement is another pod: {new:?}");
    // Nobody can say that the old ones have ended, so they are still there: asked to go, and lost.
    let on_dead: Vec<Row> = session
        .pods("hello")
        .into_iter()
        .chain(session.pods("alone"))
        .filter(|row| row.node == "node-1")
        .collect();
    assert!(on_dead.len() == 2 && on_dead.iter().all(|row| row.status == "Unknown"), "{on_dead:?}");
    assert_eq!(session.sandboxes("node-1"), 2, "the node goes on by itself");

    session.link("node-1", "up");
    let mended = Instant::now();
    session.until("node-1 is ready", |s| (s.node_status("node-1") == "Ready").then_some(())).await;
    session.until("what was replaced ends", |s| (s.sandboxes("node-1") == 0).then_some(())).await;
    session
        .until("no pod is left of those", |s| {
            (s.pods("hello").len() == 3 && s.pods("alone").is_empty()).then_some(())
        })
        .await;
    measured(&format!("link mended to nothing left of the old pods: {:?}", mended.elapsed()));
    assert_eq!(session.ready(3, "nowhere").await, moved, "those that replaced it stay");

    // A controller of quite another kind runs in the same process.
    session.run("delete serviceaccount default");
    session.until("the account is back", |s| s.run("get sa").contains("default").then_some(())).await;

    // Without any node the API goes on; what is asked for runs when one is back.
    for node in ["node-1", "node-2", "node-3"] {
        session.lab.cluster.kill(node).unwrap();
    }
    session
        .until("no node is ready", |s| {
            (!s.run("get nodes --no-headers -l !node-role.kubernetes.io/control-plane").contains(" Ready "))
                .then_some(())
        })
        .await;
    session.run("create deployment later --image=barque/hello:1.0");
    session.run("scale deployment hello --replicas=4");
    session.until("a pod waits", |s| (!s.pods("later").is_empty()).then_some(())).await;
    assert!(session.pods("later").iter().all(|row| row.status == "Pending"), "{:?}", session.pods("later"));
    // As it is shown right after it was made, before any pod is ready.
    session
        .until("its counters tell of the pod", |session| {
            let row = session.run("get deployment later --no-headers");
            let words: Vec<&str> = row.split_whitespace().collect();
            (words[..4] == ["later", "0/1", "1", "0"]).then_some(())
        })
        .await;
    session.conditions_are_lists_of_words();
    session.lab.cluster.complete().unwrap();
    session.run("rollout status deployment later --timeout=60s");
    let all = session.ready(4, "nowhere").await;
    assert!(all.len() == 4, "{all:?}");
    session.lab.down();
}
