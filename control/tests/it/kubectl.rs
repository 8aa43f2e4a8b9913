//! Stock kubectl against the API: what a user types, and what must be seen.
//!
//! Runs the kubectl on the PATH (or `$BARQUE_KUBECTL`) and the oldest and newest of the versions that lie
//! beside it as `kubectl.1.NN`. Without any, the tests say so and pass. Rows: KIA-CLI-008, 009, 012 to 016,
//! 018 to 020, 023, 026, 030, 039, 042, 043, 048, 049, KIA-CLIX-001, KIA-API-023, 025.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::client::{Client, PODS};
use crate::server::TestServer;

/// No command takes longer, not even on a busy machine.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

const HELLO: &str = "apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {app: hello}}
spec:
  containers:
  - name: hello
    image: barque/hello:1.0
    ports: [{name: http, containerPort: 8080}]
";

/// Every kubectl worth trying; empty if the machine has none.
fn binaries() -> Vec<PathBuf> {
    let first = std::env::var_os("BARQUE_KUBECTL").map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file())
    });
    let Some(first) = first else { return Vec::new() };
    let first = first.canonicalize().unwrap_or(first);
    let beside = first.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let mut versions: Vec<(u32, PathBuf)> = beside
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let minor = path.file_name()?.to_str()?.strip_prefix("kubectl.1.")?.parse().ok()?;
            Some((minor, path))
        })
        .collect();
    versions.sort();
    match versions.as_slice() {
        [] => vec![first],
        [only] => vec![only.1.clone()],
        [oldest, .., newest] => vec![oldest.1.clone(), newest.1.clone()],
    }
}

pub(crate) struct Kubectl {
    binary: PathBuf,
    home: TempDir,
}

pub(crate) struct Output {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Kubectl {
    fn new(binary: &Path, server: &TestServer) -> Self {
        let home = tempfile::tempdir().unwrap();
        let admin = server.admin();
        let encode = |text: &str| STANDARD.encode(text);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}", server.address),
                "certificate-authority-data": encode(&admin.ca_pem)}}],
            "users": [{"name": "test", "user": {
                "client-certificate-data": encode(&admin.certificate_pem),
                "client-key-data": encode(&admin.key_pem)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(home.path().join("config"), config.to_string()).unwrap();
        Self { binary: binary.to_owned(), home }
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(line.split_whitespace())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"))
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, line: &str) -> Output {
        let output = tokio::time::timeout(COMMAND_TIMEOUT, self.command(line).output());
        let output = output.await.unwrap_or_else(|_| panic!("{line}: no end")).unwrap();
        Output {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed; gives what it printed.
    pub(crate) async fn ok(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert!(output.ok, "{:?} {line}: {}{}", self.binary, output.stdout, output.stderr);
        output.stdout
    }

    /// Runs a command that must fail with that text.
    pub(crate) async fn fails(&self, line: &str, text: &str) {
        let output = self.run(line).await;
        assert!(!output.ok, "{:?} {line}: {}", self.binary, output.stdout);
        assert!(output.stderr.contains(text), "{:?} {line}: {}", self.binary, output.stderr);
    }

    async fn columns(&self, line: &str) -> Vec<String> {
        let output = self.ok(line).await;
        let header = output.lines().next().unwrap_or_default();
        header.split("   ").map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    }
}

/// Runs a script with every version at once, each against a server of its own.
pub(crate) async fn with_each<F, Fut>(script: F)
where
    F: Fn(Arc<Kubectl>, Arc<TestServer>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    with_each_on(TestServer::start, script).await;
}

/// As [`with_each`], with servers made in some other way.
pub(crate) async fn with_each_on<F, Fut, S>(start: impl Fn() -> S, script: F)
where
    F: Fn(Arc<Kubectl>, Arc<TestServer>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
    S: Future<Output = TestServer>,
{
    let binaries = binaries();
    if binaries.is_empty() {
        println!("skipped: no kubectl on the PATH and none named by BARQUE_KUBECTL");
    }
    let mut scripts = JoinSet::new();
    for binary in binaries {
        let server = Arc::new(start().await);
        let kubectl = Arc::new(Kubectl::new(&binary, &server));
        scripts.spawn(script(kubectl, server));
    }
    while let Some(ended) = scripts.join_next().await {
        ended.unwrap();
    }
}

fn node() -> Value {
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "KubeletReady", "message": "ok",
            "lastHeartbeatTime": "2024-01-01T00:00:00Z", "lastTransitionTime": "2024-01-01T00:00:00Z"})
    };
    let resources = json!({"cpu": "2", "memory": "4Gi", "pods": "110"});
    json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [condition("MemoryPressure", "False"), condition("Ready", "True")],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "Hostname", "address": "n1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {"machineID": "m", "systemUUID": "s", "bootID": "b", "kernelVersion": "6.1",
                "osImage": "Linux", "containerRuntimeVersion": "barque://0.1", "kubeletVersion": "v1.33.0",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"},
        },
    })
}

/// A node, a pod running on it, and an Event about the pod.
async fn furnish(client: &Client) {
    client.post("/api/v1/nodes", &node()).await.expect(201);
    let mut pod = serde_saphyr::from_str::<Value>(HELLO).unwrap();
    pod["spec"]["nodeName"] = json!("n1");
    let created = client.post(PODS, &pod).await.expect(201);
    let started = json!({"startedAt": "2024-01-01T00:00:00Z"});
    let status = json!({"status": {
        "phase": "Running", "hostIP": "10.0.0.7", "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}],
        "startTime": "2024-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "hello", "ready": true, "started": true, "restartCount": 0,
            "image": "barque/hello:1.0", "imageID": "sha256:1", "containerID": "barque://1",
            "state": {"running": started}}],
    }});
    let path = format!("{PODS}/hello/status");
    client.merge(&path, &status).await.expect(200);
    let event = json!({
        "metadata": {"name": "hello.0123456789abcdef"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "hello", "namespace": "default",
            "uid": created["metadata"]["uid"]},
        "reason": "Scheduled", "type": "Normal", "message": "Successfully assigned default/hello to n1",
        "source": {"component": "default-scheduler"}, "count": 1,
        "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z",
    });
    client.post("/api/v1/namespaces/default/events", &event).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading() {
    with_each(async |kubectl, server| {
        furnish(&Client::admin(&server)).await;
        assert!(kubectl.ok("version").await.contains("v1.33."));
        let resources = kubectl.ok("api-resources").await;
        let words = |name: &str| -> Vec<String> {
            let line = resources.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("pods "), ["pods", "po", "v1", "true", "Pod"]);
        assert_eq!(words("nodes "), ["nodes", "no", "v1", "false", "Node"]);
        assert_eq!(kubectl.columns("get nodes").await, ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
        let nodes = kubectl.ok("get no").await;
        assert!(nodes.contains("n1     Ready    <none>"), "{nodes}");
        let columns = kubectl.columns("get pods").await;
        assert_eq!(columns, ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        let wide = kubectl.ok("get po hello -o wide").await;
        assert!(
            wide.lines().next().unwrap().ends_with("IP           NODE   NOMINATED NODE   READINESS GATES"),
            "{wide}"
        );
        assert!(wide.contains("hello   1/1     Running   0") && wide.contains("10.244.0.5   n1"), "{wide}");
        let yaml = kubectl.ok("get pod hello -o yaml").await;
        assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\nmetadata:\n"), "{yaml}");
        let json: Value = serde_json::from_str(&kubectl.ok("get pod hello -o json").await).unwrap();
        assert_eq!(json["spec"]["restartPolicy"], "Always");
        let path = kubectl.ok("get pod hello -o jsonpath={.status.podIP}").await;
        assert_eq!(path, "10.244.0.5");
        kubectl.fails("get containers", "the server doesn't have a resource type \"containers\"").await;
        kubectl.fails("get pod nobody", "Error from server (NotFound): pods \"nobody\" not found").await;
        kubectl.fails("logs nobody", "pods \"nobody\" not found").await;
        assert!(kubectl.ok("logs hello").await.starts_with("n1 hello hello follow=false"));
        assert!(
            kubectl.ok("logs hello --tail=3 -f").await.contains("follow=true previous=false tail=Some(3)")
        );
        kubectl.fails("logs hello -c x", "container x is not valid for pod hello").await;
    })
    .await;
}

/// Columns are as wide as their widest text; what counts is the texts.
fn squeezed(text: &str) -> String {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn describing_and_events() {
    with_each(async |kubectl, server| {
        furnish(&Client::admin(&server)).await;
        let pod = squeezed(&kubectl.ok("describe pod hello").await);
        for line in [
            "Priority: 0",
            "Node: n1/10.0.0.7",
            "Status: Running",
            "IP: 10.244.0.5",
            "Port: 8080/TCP",
            "QoS Class: BestEffort",
        ] {
            assert!(pod.contains(line), "{line}: {pod}");
        }
        let event = "Scheduled";
        assert!(pod.contains("Events:") && pod.contains(event) && pod.contains("default-scheduler"), "{pod}");
        let node = squeezed(&kubectl.ok("describe node n1").await);
        for line in [
            "PodCIDR: 10.244.0.0/24",
            "Non-terminated Pods: (1 in total)",
            "Allocated resources:",
            "default hello",
        ] {
            assert!(node.contains(line), "{line}: {node}");
        }
        let columns = kubectl.columns("get events").await;
        assert_eq!(columns, ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
        let events = kubectl.ok("get ev -o wide").await;
        assert!(events.contains("pod/hello") && events.contains("hello.0123456789abcdef"), "{events}");
        assert!(kubectl.ok("get ev --field-selector type=Normal").await.contains("Scheduled"));
        // Newer ones warn that there are two groups of events.
        let none = kubectl.run("get ev --field-selector type=normal").await;
        assert!(none.stderr.ends_with("No resources found in default namespace.\n"), "{}", none.stderr);
        let explained = kubectl.ok("explain pod.spec.nodeName").await;
        assert!(explained.contains("nodeName <string>"), "{explained}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing() {
    with_each(async |kubectl, server| {
        let hello = kubectl.file("hello.yaml", HELLO);
        assert_eq!(kubectl.ok(&format!("apply -f {hello}")).await, "pod/hello created\n");
        assert_eq!(kubectl.ok(&format!("apply -f {hello}")).await, "pod/hello unchanged\n");
        let newer = kubectl.file("newer.yaml", &HELLO.replace("hello:1.0", "hello:1.1"));
        assert_eq!(kubectl.ok(&format!("apply -f {newer}")).await, "pod/hello configured\n");
        let moved = kubectl.file("moved.yaml", &HELLO.replace("8080", "8081"));
        kubectl.fails(&format!("apply -f {moved}"), "pod updates may not change fields other than").await;
        kubectl.fails(&format!("create -f {hello}"), "Error from server (AlreadyExists)").await;
        let odd = kubectl
            .file("odd.yaml", &HELLO.replace("image:", "imagee:").replace("name: hello,", "name: odd,"));
        kubectl.fails(&format!("create -f {odd}"), "unknown field \"spec.containers[0].imagee\"").await;
        let warned = kubectl.run(&format!("apply --validate=warn -f {newer}")).await;
        assert!(warned.ok, "{}", warned.stderr);
        assert_eq!(kubectl.ok("label pod hello tier=web").await, "pod/hello labeled\n");
        let labelled = kubectl.ok("get pods -l tier=web --show-labels").await;
        assert!(labelled.contains("app=hello,tier=web"), "{labelled}");
        let two = format!(
            "{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: b}}\n",
            HELLO.replace("name: hello,", "name: second,")
        );
        let two = kubectl.file("two.yaml", &two);
        assert_eq!(
            kubectl.ok(&format!("create -f {two}")).await,
            "pod/second created\nconfigmap/c created\n"
        );
        assert_eq!(
            kubectl.ok(&format!("delete -f {two}")).await.replace(" from default namespace", ""),
            "pod \"second\" deleted\nconfigmap \"c\" deleted\n"
        );
        // Typed commands send Kubernetes protobuf from 1.32 on.
        assert_eq!(kubectl.ok("create configmap d --from-literal=a=b").await, "configmap/d created\n");
        assert_eq!(kubectl.ok("get cm d -o jsonpath={.data.a}").await, "b");
        assert_eq!(kubectl.ok("create namespace other").await, "namespace/other created\n");
        assert_eq!(kubectl.ok("create secret generic s --from-literal=a=b").await, "secret/s created\n");
        assert_eq!(kubectl.ok("get secret s -o jsonpath={.data.a}").await, "Yg==");
        assert_eq!(kubectl.ok("create serviceaccount robot").await, "serviceaccount/robot created\n");
        assert_eq!(kubectl.ok("get sa robot -o name").await, "serviceaccount/robot\n");
        let created = kubectl.ok("create deployment web --image=lab/hello:1.0 --replicas=0 -o json").await;
        let created: Value = serde_json::from_str(&created).unwrap();
        assert_eq!(created["spec"]["template"]["spec"]["containers"][0]["image"], "lab/hello:1.0");
        assert_eq!(created["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
        assert!(kubectl.ok("describe deployment web").await.contains("25% max unavailable"));
        assert_eq!(
            kubectl.ok("create deployment hello --image=lab/hello:1.0").await,
            "deployment.apps/hello created\n"
        );
        kubectl.ok("scale deployment web --replicas=1").await;
        assert_eq!(kubectl.ok("get deployment web -o jsonpath={.spec.replicas}").await, "1");
        kubectl.ok("create role r --verb=get,list --resource=pods").await;
        assert!(kubectl.ok("describe role r").await.contains("[get list]"));
        let deleted = kubectl.ok("delete pod hello").await;
        assert!(deleted.starts_with("pod \"hello\" deleted"), "{deleted}");
        let none = kubectl.run("get pods").await;
        assert_eq!(none.stderr, "No resources found in default namespace.\n");
        assert_eq!(Client::admin(&server).call(Method::GET, PODS, &Value::Null).await.code.as_u16(), 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching() {
    with_each(async |kubectl, server| {
        let client = Client::admin(&server);
        let mut watch = kubectl.command("get pods -w").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        furnish(&client).await;
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains("Running")) {
            let line = tokio::time::timeout(COMMAND_TIMEOUT, lines.next_line()).await;
            seen.push(line.expect("a line in time").unwrap().expect("the watch goes on"));
        }
        assert!(seen[0].starts_with("NAME"), "{seen:?}");
        assert_eq!(seen.iter().filter(|line| line.starts_with("NAME")).count(), 1, "{seen:?}");
        client.delete(&format!("{PODS}/hello"), &json!({"gracePeriodSeconds": 0})).await.expect(200);
        watch.kill().await.unwrap();
    })
    .await;
}
