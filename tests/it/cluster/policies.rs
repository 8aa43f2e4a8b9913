//! Policies on real nodes: who reaches whom as kubectl applied them, from a pod's first instruction on, while agents die and
//! somebody takes the packet filter's table away.
//!
//! Rows: KIA-NET-007.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use runtime::net::{NetNs, PolicyTable, netns};
use serde_json::{Value, json};

use super::stage::scripts;
use super::{Lab, PATIENCE, kubectl, kubectl_ok, kubectls, measured, skip, skipped};

/// A server that this machine has in any case.
const SERVE: &str = "mkdir -p /tmp; exec /barque hello";

struct Town {
    lab: Lab,
    program: std::path::PathBuf,
}

impl Town {
    fn run(&self, args: &[&str]) -> String {
        kubectl_ok(&self.program, &self.lab.cluster, args)
    }

    fn apply(&self, object: &Value) {
        let file = self.lab.directory.path().join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        self.run(&["apply", "-f", &file.display().to_string()]);
    }

    fn shell(&self, (namespace, pod): (&str, &str), script: &str) -> String {
        let args = ["exec", "-n", namespace, pod, "--", "/bin/sh", "-c", script];
        let output = kubectl(&self.program, &self.lab.cluster, &args);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn address(&self, (namespace, pod): (&str, &str)) -> String {
        self.run(&["get", "pod", "-n", namespace, pod, "-o", "jsonpath={.status.podIP}"])
    }

    /// Which of these pods reaches which.
    fn reached(&self, pods: &[(&'static str, &'static str)]) -> BTreeSet<(&'static str, &'static str)> {
        let addresses: Vec<(&str, String)> = pods.iter().map(|pod| (pod.1, self.address(*pod))).collect();
        let mut reached = BTreeSet::new();
        for from in pods {
            let calls: String = addresses
                .iter()
                .map(|(name, address)| {
                    format!("(curl -s -o /dev/null -m 1 http://{address}:8080 && echo {name}) & ")
                })
                .collect();
            let answered = self.shell(*from, &format!("{calls} wait"));
            for to in pods {
                if answered.lines().any(|line| line == to.1) {
                    reached.insert((from.1, to.1));
                }
            }
        }
        reached
    }

    async fn until_reached(
        &self,
        what: &str,
        pods: &[(&'static str, &'static str)],
        is_right: impl Fn(&str, &str) -> bool,
    ) {
        let names: Vec<&'static str> = pods.iter().map(|pod| pod.1).collect();
        let all = names.iter().flat_map(|from| names.iter().map(move |to| (*from, *to)));
        let expected: BTreeSet<_> = all.filter(|(from, to)| from == to || is_right(from, to)).collect();
        let started = Instant::now();
        loop {
            let reached = self.reached(pods);
            if reached == expected {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {reached:?} instead of {expected:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A pod that answers at port 8080, and has this machine's programs.
fn server((namespace, name): (&str, &str), node: &str, script: &str) -> Value {
    let mut pod =
        scripts(name, node, &[("c", script, json!({"ports": [{"name": "http", "containerPort": 8080}]}))]);
    pod["metadata"]["namespace"] = namespace.into();
    pod["metadata"]["labels"] = json!({"app": name});
    pod
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

const PODS: [(&str, &str); 4] =
    [("default", "web"), ("default", "db"), ("default", "client"), ("other", "guest")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_say_who_reaches_whom_from_the_first_packet_on() {
    let test = "policies_say_who_reaches_whom_from_the_first_packet_on";
    if skipped(test) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(test, "there is no kubectl on PATH") };
    if !std::path::Path::new("/usr/bin/curl").exists() {
        return skip(test, "there is no curl for pods to call with");
    }
    let town = Town { lab: Lab::up("it-policies", 3, 2).await, program };
    town.run(&["create", "namespace", "other"]);
    town.run(&["label", "namespace", "other", "team=guests"]);
    for (pod, node) in PODS.iter().zip(["node-1", "node-1", "node-2", "node-2"]) {
        town.apply(&server(*pod, node, SERVE));
    }
    for (namespace, name) in PODS {
        town.run(&["wait", "pod", "-n", namespace, name, "--for=condition=Ready", "--timeout=60s"]);
    }
    town.until_reached("nothing is forbidden", &PODS, |_, _| true).await;

    // Nobody is let in, on either node, also over the bridge that two pods share.
    town.apply(&policy("closed", &json!({"podSelector": {}, "policyTypes": ["Ingress"]})));
    town.until_reached("nobody is let in", &PODS, |_, to| to == "guest").await;
    // Named port; pods of the namespace, and those of another.
    town.apply(&policy(
        "web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "db"}}}, {"namespaceSelector": {"matchLabels": {"team": "guests"}}}],
            "ports": [{"port": "http"}],
        }]}),
    ));
    let some = |from: &str, to: &str| to == "guest" || (to == "web" && matches!(from, "db" | "guest"));
    town.until_reached("some are let in", &PODS, some).await;
    let probed = town.run(&[
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}",
    ]);
    assert_eq!(probed, "True True True");
    // A label makes another of a pod.
    town.run(&["label", "pod", "client", "app=db", "--overwrite"]);
    let more = |from: &str, to: &str| to == "guest" || (to == "web" && from != "web");
    town.until_reached("a pod that is labelled so is let in", &PODS, more).await;
    // Who may not go out, may not, whoever would let it in.
    let web_is = town.address(("default", "web"));
    town.apply(&policy(
        "stay",
        &json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": format!("{web_is}/32")}}]}]}),
    ));
    let stay = |from: &str, to: &str| match from {
        "db" | "client" => to == "web",
        _ => more(from, to),
    };
    town.until_reached("some stay within", &PODS, stay).await;

    first_packets(&town).await;
    agents_and_flushes(&town, stay).await;
    town.run(&["delete", "networkpolicy", "--all"]);
    town.until_reached("everything is open again", &PODS, |_, _| true).await;
    town.lab.down();
}

/// Pods that call at their first instruction, and again and again, while they are held to nothing but their node.
async fn first_packets(town: &Town) {
    // It lets everybody in.
    let guest = town.address(("other", "guest"));
    let calls = format!(
        "mkdir -p /tmp; for i in $(seq 30); do curl -s -o /dev/null -m 0.2 http://{guest}:8080 && echo reached; done; \
         echo done; exec sleep 1000"
    );
    town.apply(&policy(
        "mute",
        &json!({"podSelector": {"matchLabels": {"mute": "yes"}}, "policyTypes": ["Egress"]}),
    ));
    for round in 0..3 {
        for (node, count) in [("node-1", 2), ("node-2", 2)] {
            for number in 0..count {
                let name = format!("mute-{round}-{node}-{number}");
                let mut pod = server(("default", &name), node, &calls);
                pod["metadata"]["labels"] = json!({"app": "guest", "mute": "yes"});
                town.apply(&pod);
            }
        }
    }
    let names = town.run(&["get", "pods", "-l", "mute=yes", "-o", "name"]);
    for name in names.lines() {
        let started = Instant::now();
        loop {
            let said = kubectl(&town.program, &town.lab.cluster, &["logs", name]);
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            assert!(!said.contains("reached"), "{name} reached what it must not: {said}");
            if said.contains("done") {
                break;
            }
            assert!(started.elapsed() < PATIENCE * 2, "{name}: {said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    measured(&format!("{} pods began held; none of their calls passed", names.lines().count()));
    town.run(&["delete", "pods", "-l", "mute=yes", "--wait=false"]);
}

/// An agent that dies leaves what it wrote; who takes the table away has it back.
async fn agents_and_flushes(town: &Town, is_right: impl Fn(&str, &str) -> bool) {
    let guest = town.address(("other", "guest"));
    let db = ("default", "db");
    let script = format!(
        "while [ ! -e /tmp/stop ]; do curl -s -o /dev/null -m 0.2 http://{guest}:8080 && echo reached >> /tmp/reached; \
         echo tried >> /tmp/tried; done"
    );
    town.shell(db, &format!("({script}) > /dev/null 2>&1 &"));
    town.lab.cluster.kill("node-1").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.lab.cluster.complete().unwrap();
    town.until_reached("an agent began anew", &PODS, &is_right).await;
    let counts = town.shell(db, "touch /tmp/stop; wc -l < /tmp/tried; cat /tmp/reached");
    let tried: usize = counts.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or_default();
    assert!(tried > 5 && !counts.contains("reached"), "a hole while the agent was away: {counts}");
    measured(&format!("calls while an agent died and came back: {tried}, passed: 0"));

    let name = netns::list()
        .unwrap()
        .into_iter()
        .find(|name| name.contains("it-policies") && name.ends_with("node-1"))
        .expect("node-1 has a namespace");
    let node = NetNs::open_named(&name).unwrap();
    node.run(|| PolicyTable::new("barque-policies-cbr0").remove()).unwrap().unwrap();
    let gone = Instant::now();
    loop {
        let reached =
            town.shell(db, &format!("curl -s -o /dev/null -m 0.3 http://{guest}:8080 && echo reached"));
        if reached.is_empty() {
            break;
        }
        assert!(gone.elapsed() < PATIENCE, "the table does not come back");
    }
    measured(&format!("the table of policies was back after at most {:?}", gone.elapsed()));
}
