//! Experiments on a cluster that somebody else made and goes on using.

use std::path::Path;
use std::process::{Child, Stdio};

use chaos_tests::client::Client;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{self, Lab};
use crate::support::{Ended, barque, eventually, run, text};

const FAULTS_THAT_END: &str = "
name: guest
cluster: {members: 1, nodes: 2}
workloads: [{kind: pods, clients: 1, rate: 3}]
faults:
  - {at: 500ms, fault: kill, of: node-1, for: 300ms}
  - {at: 2s, fault: drain, of: node-1, for: 500ms}
  - {at: 4s, fault: pause, of: leader, for: 500ms}
duration: 5s
";
const FAULTS_THAT_STAY: &str = "
name: guest
cluster: {members: 1, nodes: 2}
workloads: [{kind: pods, clients: 1, rate: 3}]
faults:
  - {at: 100ms, fault: isolate, of: node-1, for: 60s}
  - {at: 2s, fault: pause, of: leader, for: 60s}
duration: 2m
";

struct Visit<'a> {
    lab: &'a Lab,
    place: &'a Path,
}

impl Visit<'_> {
    fn words(&self, experiment: &str) -> Vec<String> {
        let (file, output) = (self.place.join("experiment.yaml"), self.place.join("reports"));
        std::fs::write(&file, experiment).unwrap();
        let options = &self.lab.options;
        let words = ["chaos", "run", text(&file), "--output", text(&output), "--dir", text(self.place)];
        let guest = ["--cluster", &options.name, "--data-dir", text(&options.data_dir)];
        words.into_iter().chain(guest).map(str::to_owned).collect()
    }

    fn run(&self, experiment: &str) -> Ended {
        let words = self.words(experiment);
        run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn begin(&self, experiment: &str) -> Child {
        let mut command = barque();
        command.args(self.words(experiment)).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().unwrap()
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Option<Value> {
        let mut client = Client::from_kubeconfig(&self.lab.cluster.kubeconfig()).unwrap();
        let (status, answer) = client.request(method, path, body.as_ref()).await.ok()?;
        assert!(status.is_success() || status == StatusCode::NOT_FOUND, "{path}: {status} {answer}");
        Some(answer)
    }

    /// Waits until the cluster is as it was: nothing of the experiment is there, and everything else.
    async fn is_whole(&self) {
        let is_whole = async || {
            let namespaces = self.ask(Method::GET, "/api/v1/namespaces", None).await?;
            let mut names =
                namespaces["items"].as_array()?.iter().map(|one| one["metadata"]["name"].as_str());
            let nodes = self.ask(Method::GET, "/api/v1/nodes", None).await?;
            let marked: Vec<bool> =
                nodes["items"].as_array()?.iter().map(|one| one["spec"]["unschedulable"] == true).collect();
            let mine =
                self.ask(Method::GET, "/apis/apps/v1/namespaces/default/deployments/mine", None).await?;
            let is_ready = |node: &Value| {
                let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
                conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            (names.all(|name| name.is_some_and(|name| !name.starts_with("barque-chaos")))
                && nodes["items"].as_array()?.iter().all(is_ready)
                && marked == [false, true]
                && mine["status"]["readyReplicas"] == 1)
                .then_some(())
        };
        let deadline = std::time::Instant::now() + cluster::PATIENCE;
        while is_whole().await.is_none() {
            assert!(
                std::time::Instant::now() < deadline,
                "the cluster is not whole: {:?}",
                self.lab.cluster.status()
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let left = std::fs::read_dir(self.place).unwrap().flatten().map(|entry| entry.file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with("barque-chaos")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cluster_is_broken_and_whole_again_also_when_the_experiment_is_killed() {
    if cluster::skipped("a_running_cluster_is_broken_and_whole_again_also_when_the_experiment_is_killed") {
        return;
    }
    let lab = Lab::up("it-guest", 1, 2).await;
    let place = tempfile::tempdir().unwrap();
    let visit = Visit { lab: &lab, place: place.path() };
    let mine = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mine"},
        "spec": {
            "selector": {"matchLabels": {"app": "mine"}},
            "template": {
                "metadata": {"labels": {"app": "mine"}},
                "spec": {"containers": [{"name": "main", "image": "barque/hello:1.0"}]},
            },
        },
    });
    visit.ask(Method::POST, "/apis/apps/v1/namespaces/default/deployments", Some(mine)).await.unwrap();
    let cordon = json!({"spec": {"unschedulable": true}});
    visit.ask(Method::PATCH, "/api/v1/nodes/node-2", Some(cordon)).await.unwrap();
    visit.is_whole().await;

    let ran = visit.run(FAULTS_THAT_END);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    for word in ["kill ×1", "drain ×1", "pause ×1", "one-instance"] {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
    visit.is_whole().await;

    let mut killed = visit.begin(FAULTS_THAT_STAY);
    let master = format!("/proc/{}/stat", lab.cluster.pid("master-1").unwrap());
    eventually(|| std::fs::read_to_string(&master).ok()?.contains(") T ").then_some(()));
    let second = visit.run(FAULTS_THAT_END);
    assert_eq!(second.code, Some(1), "{}", second.stdout);
    assert!(second.stderr.contains("is being broken by another experiment"), "{}", second.stderr);
    killed.kill().unwrap();
    killed.wait().unwrap();
    visit.is_whole().await;

    // What cannot be done to a cluster that runs already.
    let store = visit.run("name: store\nworkloads: [{kind: register}]\nduration: 1s\n");
    assert!(store.stderr.contains("needs `nodes` under `cluster`"), "{}", store.stderr);
    lab.down();
}
