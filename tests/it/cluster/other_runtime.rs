//! A node whose pods run through another container runtime: the agent is pointed at the socket of `barque cri`, and
//! kubectl, old and new, sees no difference.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use chaos_tests::client::Client;
use serde_json::json;

use super::by_hand::{CGROUP, Given, HOSTS, Hosts};
use super::first_pod::{hello, run_pod};
use super::forward::{free_port, get, local};
use super::stage::{Live, SLEEP, scripts};
use super::{TURN, kubectls, skip, skipped};
use crate::support::eventually;

/// How kubectl is run against the cluster.
struct Kubectl<'a> {
    program: &'a Path,
    kubeconfig: &'a Path,
}

impl Kubectl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        let home = self.kubeconfig.parent().unwrap();
        command.args(args).env("KUBECONFIG", self.kubeconfig).env("HOME", home).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?} {args:?}: {stderr}", self.program);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// One master, and a node with the runtime's server and an agent that is pointed at it. The pods' range is what
/// the control plane says; the agent tells the runtime.
fn start(hosts: &mut Hosts, given: &Given) {
    let (master, node) = (HOSTS[0], HOSTS[3]);
    let socket = hosts.path("cri.sock");
    let control = json!({
        "name": master.0,
        "dataDir": hosts.path(master.0),
        "tokenFile": given.token,
        "listenAddress": "0.0.0.0:6443",
        "initialMembers": {master.0: format!("{}:6443", master.1)},
    });
    let runtime = json!({
        "socket": socket,
        "dataDir": hosts.path("cri"),
        "runDir": hosts.path("cri-run"),
        "cgroupRoot": format!("{CGROUP}/cri"),
        "podCidr": "",
        "builtinImage": true,
    });
    let mut agent = hosts.node(node.0, given, &[&format!("{}:6443", master.1)]);
    agent["builtinImage"] = json!(false);
    agent["containerRuntimeEndpoint"] = json!(format!("unix://{}", socket.display()));
    // The agent waits for its runtime.
    hosts.start(node.0, "node", &agent);
    hosts.start(node.0, "cri", &runtime);
    hosts.start(master.0, "control", &control);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_sees_no_difference_with_another_runtime() {
    let test = "kubectl_sees_no_difference_with_another_runtime";
    if skipped(test) {
        return;
    }
    let all = kubectls();
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        return skip(test, "no kubectl on PATH");
    };
    let _turn = TURN.lock().await;
    let mut hosts = Hosts::make(&HOSTS);
    let given = hosts.given(&format!("{}:6443", HOSTS[0].1));
    start(&mut hosts, &given);
    let kubeconfig = given.kubeconfig;
    let mut client = Client::from_kubeconfig(&kubeconfig).unwrap();
    let nodes = hosts.until_ready(&mut client, 1).await;
    let annotation = &nodes[0]["metadata"]["annotations"]["kubeadm.alpha.kubernetes.io/cri-socket"];
    assert_eq!(annotation, &json!(format!("unix://{}", hosts.path("cri.sock").display())));
    let mut programs = vec![first, last];
    programs.dedup();
    let mut web = hello("web", None);
    web["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    run_pod(&mut client, &web).await;
    run_pod(&mut client, &scripts("shell", "n1", &[("main", SLEEP, json!({}))])).await;
    let failing = scripts("failing", "n1", &[("main", "echo tried; exit 3", json!({}))]);
    let pods = "/api/v1/namespaces/default/pods";
    client.request(http::Method::POST, pods, Some(&failing)).await.unwrap();
    for program in programs {
        uses(&Kubectl { program, kubeconfig: &kubeconfig });
    }
    let kubectl = Kubectl { program: last, kubeconfig: &kubeconfig };
    eventually(|| {
        let count = kubectl.ok(&["get", "pod", "failing", "-o", "jsonpath={..restartCount}"]);
        (count.parse::<u32>().unwrap() >= 2).then_some(())
    });
    assert_eq!(kubectl.ok(&["logs", "failing", "--previous"]), "tried\n");
    kubectl.ok(&["delete", "pod", "--all"]);
    let left = fs::read_dir(hosts.path("cri").join("sandboxes")).unwrap().count();
    assert_eq!(left, 0, "sandboxes are left\n{}", hosts.logs());
}

fn uses(kubectl: &Kubectl<'_>) {
    assert_eq!(kubectl.ok(&["exec", "shell", "--", "hostname"]), "shell\n");
    let failed = kubectl.run(&["exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(failed.status.code(), Some(42), "{failed:?}");
    assert_eq!(failed.stdout, b"out\n");
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"), "{failed:?}");
    let (mut shell, mut keys) = Live::on_terminal(kubectl.command(&["exec", "-it", "shell", "--", "sh"]));
    // The window is looked at some times in a second only.
    std::io::Write::write_all(&mut keys, b"sleep 1; stty size; echo ready-$((40+2)); exit 7\r").unwrap();
    shell.await_text("ready-42");
    shell.await_text("33 111");
    assert_eq!(shell.ended(), Some(7), "{:?}", shell.text());
    let port = free_port();
    let mut forward = Live::start(kubectl.command(&["port-forward", "web", &format!("{port}:8080")]));
    forward.await_text(&format!("Forwarding from 127.0.0.1:{port} -> 8080\n"));
    let answer = eventually(|| get(local(port)));
    assert!(answer.contains("this is web."), "{answer}");
    forward.interrupt();
    forward.ended();
    assert!(kubectl.ok(&["logs", "web"]).lines().count() > 0);
    let wide = kubectl.ok(&["get", "nodes", "-o", "wide"]);
    assert!(wide.contains("barque://"), "{wide}");
}
