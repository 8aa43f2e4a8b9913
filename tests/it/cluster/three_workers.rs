//! Three workers behind one Service: pods reach each other, each worker has its share, what is not fit gets no calls, and a
//! worker that is gone is made up for, without a command and without the callers noticing.
//!
//! Rows: J3, J5, J9, A3-38, AX-18, WS-ORC-03, 07, 09, 10, WS-K8S-04.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use super::PATIENCE;
use super::services::Town;

const MANIFEST: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 3
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello, tier: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway,
         labelSelector: {matchLabels: {app: hello}}}
      containers: [{name: c, image: barque/hello:1.0, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {type: LoadBalancer, selector: {tier: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: deaf, labels: {tier: web}}
spec:
  nodeName: node-1
  containers: [{name: c, image: barque/hello:1.0, readinessProbe: {tcpSocket: {port: 1}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: barque/hello:1.0, livenessProbe: {tcpSocket: {port: 1}, periodSeconds: 1, failureThreshold: 2}}
";

impl Town {
    /// Nodes and addresses of the ready replicas.
    fn replicas(&self) -> Vec<(String, String)> {
        let path = "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status} {.spec.nodeName} {.status.podIP}{\"\\n\"}{end}";
        let args = ["get", "pods", "-l", "app=hello", "-o", path];
        let text = super::kubectl_ok(&self.program, &self.lab.cluster, &args);
        let ready = text.lines().filter_map(|line| line.strip_prefix("True "));
        let pairs = ready.filter_map(|line| line.split_once(' '));
        pairs.map(|(node, address)| (node.to_owned(), address.to_owned())).collect()
    }

    /// Waits for three ready replicas on these nodes.
    async fn spread_over(&self, nodes: &[&str]) -> Vec<(String, String)> {
        let is_spread = |found: &[(String, String)]| {
            let on: BTreeSet<&str> = found.iter().map(|(node, _)| node.as_str()).collect();
            found.len() == 3 && on == nodes.iter().copied().collect()
        };
        let found =
            chaos_tests::cluster::until(PATIENCE, || Some(self.replicas()).filter(|found| is_spread(found)));
        found.unwrap_or_else(|| panic!("not on {nodes:?}: {}", self.run("get pods,nodes -o wide")))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_make_up_for_one_that_is_gone() {
    let name = "it-three";
    let Some(town) = Town::with("three_workers_make_up_for_one_that_is_gone", name, 3).await else { return };
    let file = town.lab.directory.path().join("three.yaml");
    std::fs::write(&file, MANIFEST).unwrap();
    town.run(&format!("apply -f {}", file.display()));
    // J5: one each.
    let replicas = town.spread_over(&["node-1", "node-2", "node-3"]).await;
    town.client("client", "node-1");
    // J3: from a pod of another worker, and the callee sees the caller's own address.
    let own = town.run("get pod client -o jsonpath={.status.podIP}");
    for (node, address) in &replicas {
        let answer = town.shell("client", &format!("curl -s -m 5 http://{address}:8080"));
        assert!(answer.contains("this is hello-") && answer.contains(&own), "{node}: {answer}, caller {own}");
    }
    // J9: alive and not ready gets no calls; not alive is restarted.
    let told = town.run("get pod deaf -o jsonpath={.status.phase},{.status.containerStatuses[0].ready},{.status.containerStatuses[0].restartCount}");
    assert_eq!(told, "Running,false,0");
    let seen = town.answers("client", "http://hello");
    assert!(seen.len() == 3 && seen.keys().all(|pod| pod.starts_with("hello-")), "{seen:?}");
    let restarts = || town.run("get pod sick -o jsonpath={.status.containerStatuses[0].restartCount}");
    town.until("the sick one is restarted", restarts, |text| {
        text.parse::<u32>().is_ok_and(|count| count > 0)
    })
    .await;

    // AX-18: the address stays through scaling, deletions and another leader.
    let address = town.run("get svc hello -o jsonpath={.spec.clusterIP}");
    town.run("scale deployment hello --replicas=5");
    town.run("rollout status deployment hello --timeout=60s");
    town.run("scale deployment hello --replicas=3");
    town.run("delete pod -l app=hello --wait=false");
    let leader = town.lab.cluster.leader(PATIENCE).unwrap();
    town.lab.cluster.kill(&leader).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.lab.cluster.complete().unwrap();
    town.spread_over(&["node-1", "node-2", "node-3"]).await;
    assert_eq!(town.run("get svc hello -o jsonpath={.spec.clusterIP}"), address);

    // J5, A3-38: a worker falls off the network, with all that runs on it.
    let gone = Command::new("ip")
        .args(["-n", &format!("{name}-node-3"), "link", "set", "dev", "eth0", "down"])
        .output();
    assert!(gone.unwrap().status.success());
    town.spread_over(&["node-1", "node-2"]).await;
    let seen = town.answers("client", &format!("http://{address}"));
    assert!(seen.len() == 3 && seen.keys().all(|pod| pod.starts_with("hello-")), "{seen:?}");

    // AX-18: what a Service held is free again.
    let port = town.run("get svc hello -o jsonpath={.spec.ports[0].nodePort}");
    town.run("delete svc hello");
    let same = format!("create service nodeport other --tcp=80:8080 --node-port={port}");
    assert_eq!(town.run(&same), "service/other created\n");
    town.lab.down();
}
