//! Services of type `LoadBalancer` on real nodes: an address for everybody outside, held by one node, and by another soon
//! after that one is cut off; who may call; whom a node's health check speaks of.
//!
//! Rows: A3-29, A3-31, KIA-SVC-005, 009, 012, 013, 014.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Lab, PATIENCE, kubectl_ok, kubectls, measured, skip, skipped};

struct Town {
    lab: Lab,
    program: PathBuf,
}

impl Town {
    fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&self.program, &self.lab.cluster, &args)
    }

    fn patch(&self, spec: &str) {
        let patch = format!("{{\"spec\":{spec}}}");
        kubectl_ok(
            &self.program,
            &self.lab.cluster,
            &["patch", "service", "hello", "--type=merge", "-p", &patch],
        );
    }

    /// Runs a program on a node's host.
    fn on(&self, node: &str, args: &[&str]) -> String {
        let host = format!("{}-{node}", self.lab.options.name);
        let output = Command::new("ip").args(["-n", &host]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Unplugs a node's only link, or plugs it in again: its processes and routes stay.
    fn plug(&self, node: &str, state: &str) {
        let own = self.on(node, &["-o", "link", "show", "dev", "eth0"]);
        let index =
            own.split("@if").nth(1).and_then(|rest| rest.split(':').next()).expect("the other end's index");
        let all = Command::new("ip").args(["-o", "link"]).output().unwrap();
        let all = String::from_utf8(all.stdout).unwrap();
        let line = all.lines().find(|line| line.starts_with(&format!("{index}: "))).expect("the other end");
        let name = line.split(": ").nth(1).and_then(|name| name.split('@').next()).expect("its name");
        let done = Command::new("ip").args(["link", "set", "dev", name, state]).status().unwrap();
        assert!(done.success(), "{name} {state}");
    }

    fn holders(&self, address: &str) -> Vec<String> {
        let nodes = ["node-1", "node-2", "node-3"];
        let has = |node: &&&str| {
            self.on(node, &["addr", "show", "dev", "eth0"]).contains(&format!("inet {address}/32"))
        };
        nodes.iter().filter(has).map(|node| (*node).to_owned()).collect()
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {}", self.run("get svc,pods -o wide"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What somebody who is no part of the cluster hears.
fn call(url: &str, seconds: &str) -> Option<String> {
    let output = Command::new("curl").args(["-s", "-m", seconds, url]).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn hello(url: &str) -> Option<String> {
    call(url, "0.3").filter(|answer| answer.contains("this is hello-"))
}

fn code(url: &str) -> String {
    let output = Command::new("curl")
        .args(["-s", "-m", "1", "-o", "/dev/null", "-w", "%{http_code}", url])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_an_address_for_everybody_and_keeps_it_when_its_node_is_gone() {
    let test = "a_service_has_an_address_for_everybody_and_keeps_it_when_its_node_is_gone";
    if skipped(test) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(test, "there is no kubectl on PATH") };
    for needed in ["/usr/bin/curl", "/usr/sbin/ip"] {
        if !std::path::Path::new(needed).exists() {
            return skip(test, &format!("there is no {needed}"));
        }
    }
    let town = Town { lab: Lab::up_balanced("it-balancers", 3, 3).await, program };
    town.run("create deployment hello --image=barque/hello:1.0 --replicas=3");
    town.run("expose deployment hello --type=LoadBalancer --port 8080");
    town.run("rollout status deployment hello --timeout=60s");
    let address = || town.run("get svc hello -o jsonpath={.status.loadBalancer.ingress[0].ip}");
    let address = town.until("an address", || Some(address()).filter(|text| !text.is_empty())).await;
    let row = town.run("get svc hello");
    assert!(row.lines().count() == 2 && row.contains(&address), "{row}");
    let url = format!("http://{address}:8080");
    town.until("an answer from outside", || hello(&url)).await;
    let held = town.until("one holder", || Some(town.holders(&address)).filter(|held| held.len() == 1)).await;

    // The masters' leader dies: the address stays where it is.
    let leader = town.lab.cluster.leader(PATIENCE).unwrap();
    town.lab.cluster.kill(&leader).unwrap();
    for _ in 0..20 {
        assert!(call(&url, "5").is_some(), "the address answers while masters elect");
    }
    town.lab.cluster.complete().unwrap();
    assert_eq!(town.holders(&address), held);

    moves(&town, &url, &address, &held[0]).await;
    callers(&town, &url).await;
    local(&town, &url, &address).await;

    // It goes with the Service, and is there for the next one.
    town.run("delete service hello");
    town.until("nobody holds it", || town.holders(&address).is_empty().then_some(())).await;
    assert!(call(&url, "0.3").is_none());
    town.run("expose deployment hello --name=again --type=LoadBalancer --port 8080");
    let again = || town.run("get svc again -o jsonpath={.status.loadBalancer.ingress[0].ip}");
    town.until("the same address", || (again() == address).then_some(())).await;
    town.until("an answer", || hello(&url)).await;
    town.lab.down();
}

/// Its node is cut off without a word.
async fn moves(town: &Town, url: &str, address: &str, holder: &str) {
    town.plug(holder, "down");
    let cut = Instant::now();
    let mut announced = None;
    town.until("another node holds it", || {
        let others = town.holders(address).into_iter().any(|node| node != holder);
        if others && announced.is_none() {
            announced = Some(cut.elapsed());
        }
        announced
    })
    .await;
    // Endpoints of the dead node are drawn until it counts as unreachable, so what is asked for is any answer.
    town.until("an answer", || hello(url)).await;
    measured(&format!(
        "an address of Services left a node that was cut off after {:?}; an answer after {:?}",
        announced.unwrap(),
        cut.elapsed()
    ));
    assert!(announced.unwrap() < Duration::from_secs(5), "{announced:?}");
    town.plug(holder, "up");
    // It hears that the address is another's now.
    town.until("one holder again", || {
        let held = town.holders(address);
        (held.len() == 1 && held[0] != holder).then_some(())
    })
    .await;
    town.run("wait node --all --for=condition=Ready --timeout=60s");
}

/// Only some may call.
async fn callers(town: &Town, url: &str) {
    town.patch("{\"loadBalancerSourceRanges\":[\"203.0.113.0/24\",\"198.51.100.7/32\"]}");
    town.until("others are not let in", || call(url, "0.3").is_none().then_some(())).await;
    for _ in 0..5 {
        assert!(call(url, "0.3").is_none());
    }
    town.patch("{\"loadBalancerSourceRanges\":[\"203.0.113.0/24\",\"10.0.0.0/8\"]}");
    town.until("now they are", || hello(url)).await;
    town.patch("{\"loadBalancerSourceRanges\":null}");
}

/// One endpoint: the address goes where it is, and callers are seen as they are.
async fn local(town: &Town, url: &str, address: &str) {
    town.run("scale deployment hello --replicas=1");
    town.run("rollout status deployment hello --timeout=60s");
    let nodes = || {
        town.run("get endpointslices -l kubernetes.io/service-name=hello -o jsonpath={.items[*].endpoints[*].nodeName}")
    };
    let node = town
        .until("one endpoint", || Some(nodes()).filter(|text| text.split_whitespace().count() == 1))
        .await;
    town.patch("{\"externalTrafficPolicy\":\"Local\"}");
    town.until("its node holds it", || (town.holders(address) == [node.clone()]).then_some(())).await;
    let answer = town.until("an answer", || hello(url)).await;
    let gateway = address.rsplit_once('.').map(|(network, _)| format!("{network}.1")).unwrap();
    assert!(answer.contains(&gateway), "the caller is seen as it is: {answer}");
    let port = town.run("get svc hello -o jsonpath={.spec.healthCheckNodePort}");
    for other in ["node-1", "node-2", "node-3"] {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let at = kubectl_ok(&town.program, &town.lab.cluster, &["get", "node", other, "-o", path]);
        let expected = if other == node { "200" } else { "503" };
        let health = format!("http://{at}:{port}");
        town.until("the health of a node", || (code(&health) == expected).then_some(())).await;
    }
    town.patch("{\"externalTrafficPolicy\":\"Cluster\"}");
}
