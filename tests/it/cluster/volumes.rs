//! Volumes, variables and tokens as users meet them: stock kubectl, a whole cluster, real containers.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use chaos_tests::client::Client;
use serde_json::{Value, json};

use super::first_pod::{container_pid, hello, run_pod};
use super::{Lab, kubectl, kubectl_ok, kubectls, skip, skipped};
use crate::support::eventually;

const TOKENS: &str = "var/run/secrets/kubernetes.io/serviceaccount";

/// The root of a pod's container, as the host reaches it.
fn root(pod: &Value) -> PathBuf {
    let ip = pod["status"]["podIP"].as_str().unwrap();
    let pid = container_pid(ip).expect("a process of the pod");
    PathBuf::from(format!("/proc/{pid}/root"))
}

fn apply(program: &Path, lab: &Lab, object: &Value) {
    let mut child = Command::new(program)
        .args(["apply", "-f", "-"])
        .env("KUBECONFIG", lab.cluster.kubeconfig())
        .env("HOME", lab.cluster.directory())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "kubectl apply of {object:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gives_a_pod_files_variables_a_token_and_a_disk() {
    let test = "kubectl_gives_a_pod_files_variables_a_token_and_a_disk";
    if skipped(test) {
        return;
    }
    let programs = kubectls();
    let Some(program) = programs.last() else { return skip(test, "there is no kubectl") };
    let lab = Lab::up("it-volumes", 1, 1).await;
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
    let run = |args: &[&str]| kubectl_ok(program, &lab.cluster, args);
    files_and_variables(&run, &mut client).await;
    token(program, &lab, &mut client).await;
    disk(program, &lab, &mut client).await;
    own_disk(program, &lab, &mut client).await;
    lab.down();
}

async fn files_and_variables(run: &impl Fn(&[&str]) -> String, client: &mut Client) {
    run(&["create", "configmap", "settings", "--from-literal=colour=red", "--from-literal=SIZE=9"]);
    run(&["create", "secret", "generic", "login", "--from-literal=user=root"]);
    let mut pod = hello("files", None);
    let container = &mut pod["spec"]["containers"][0];
    container["envFrom"] = json!([{"configMapRef": {"name": "settings"}}]);
    container["env"] =
        json!([{"name": "USER", "valueFrom": {"secretKeyRef": {"name": "login", "key": "user"}}}]);
    container["volumeMounts"] = json!([
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "login", "mountPath": "/etc/login"},
        {"name": "settings", "mountPath": "/etc/one", "subPath": "colour"},
        {"name": "scratch", "mountPath": "/logs", "subPathExpr": "$(USER)/today"},
    ]);
    pod["spec"]["volumes"] = json!([
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "login", "secret": {"secretName": "login", "defaultMode": 0o400}},
        {"name": "scratch", "emptyDir": {}},
    ]);
    let (pod, _) = run_pod(client, &pod).await;
    let root = root(&pod);
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    assert_eq!((read("etc/settings/colour"), read("etc/login/user")), ("red".into(), "root".into()));
    assert_eq!(read("etc/one"), "red");
    let environment = fs::read(root.parent().unwrap().join("environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for variable in ["colour=red", "SIZE=9", "USER=root"] {
        assert!(environment.split('\0').any(|entry| entry == variable), "{variable} in {environment}");
    }
    assert!(root.join("logs").is_dir());
    run(&["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"blue"}}"#]);
    run(&["patch", "secret", "login", "-p", r#"{"stringData":{"user":"eve"}}"#]);
    eventually(|| (read("etc/settings/colour") == "blue" && read("etc/login/user") == "eve").then_some(()));
    assert_eq!(read("etc/one"), "red", "what was mounted alone stays, as in Kubernetes");
    run(&["delete", "pod", "files", "--wait"]);
}

async fn token(program: &Path, lab: &Lab, client: &mut Client) {
    kubectl_ok(program, &lab.cluster, &["create", "serviceaccount", "robot"]);
    let mut pod = hello("token", None);
    pod["spec"]["serviceAccountName"] = json!("robot");
    let (pod, _) = run_pod(client, &pod).await;
    let files = root(&pod).join(TOKENS);
    assert_eq!(fs::read_to_string(files.join("namespace")).unwrap(), "default");
    let text = fs::read_to_string(files.join("token")).unwrap();
    let certificate = lab.directory.path().join("ca-of-pod.crt");
    fs::write(&certificate, fs::read(files.join("ca.crt")).unwrap()).unwrap();
    let server = ["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"];
    let server = kubectl_ok(program, &lab.cluster, &server);
    let name = ["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.tls-server-name}"];
    let name = kubectl_ok(program, &lab.cluster, &name);
    let ask = |token: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(["--kubeconfig=/dev/null", "--server", &server, "--token", token]);
        command.arg("--certificate-authority").arg(&certificate);
        if !name.is_empty() {
            command.args(["--tls-server-name", &name]);
        }
        command.args(args).env("HOME", lab.cluster.directory()).output().unwrap()
    };
    let version = ask(&text, &["get", "--raw", "/version"]);
    assert!(version.status.success(), "{}", String::from_utf8_lossy(&version.stderr));
    let refused = String::from_utf8(ask(&text, &["get", "pods"]).stderr).unwrap();
    assert!(
        refused.contains("User \"system:serviceaccount:default:robot\" cannot list resource"),
        "{refused}"
    );
    let asked = kubectl_ok(program, &lab.cluster, &["create", "token", "robot"]);
    assert!(ask(asked.trim(), &["get", "--raw", "/version"]).status.success());
    kubectl_ok(program, &lab.cluster, &["delete", "pod", "token", "--wait"]);
    let late = String::from_utf8(ask(&text, &["get", "pods"]).stderr).unwrap();
    assert!(late.contains("Unauthorized") || late.contains("logged in"), "its pod is gone: {late}");
}

async fn disk(program: &Path, lab: &Lab, client: &mut Client) {
    let run = |args: &[&str]| kubectl_ok(program, &lab.cluster, args);
    let path = lab.directory.path().join("disk");
    apply(
        program,
        lab,
        &json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
                "hostPath": {"path": path, "type": "DirectoryOrCreate"}},
        }),
    );
    apply(
        program,
        lab,
        &json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
                "resources": {"requests": {"storage": "500Mi"}}},
        }),
    );
    let user = |name: &str| {
        let mut pod = hello(name, None);
        pod["spec"]["volumes"] = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "d", "mountPath": "/data"}]);
        pod
    };
    let (first, _) = run_pod(client, &user("first")).await;
    fs::write(root(&first).join("data/kept"), "by the first").unwrap();
    let claims = run(&["get", "pvc"]);
    assert!(
        claims.lines().nth(1).is_some_and(|row| row.starts_with("data   Bound    disk     1Gi        RWO")),
        "{claims}"
    );
    let volumes = run(&["get", "pv", "--no-headers"]);
    assert!(
        volumes.contains("RWO") && volumes.contains("Bound") && volumes.contains("default/data"),
        "{volumes}"
    );
    run(&["delete", "pod", "first", "--wait"]);
    let (second, _) = run_pod(client, &user("second")).await;
    assert_eq!(fs::read_to_string(root(&second).join("data/kept")).unwrap(), "by the first");
    run(&["delete", "pvc", "data", "--wait=false"]);
    assert!(run(&["get", "pvc", "data"]).contains("Terminating"), "a pod uses it");
    run(&["delete", "pod", "second", "--wait"]);
    eventually(|| (!kubectl(program, &lab.cluster, &["get", "pvc", "data"]).status.success()).then_some(()));
    eventually(|| run(&["get", "pv", "disk"]).contains("Released").then_some(()));
    assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "by the first", "kept for its owner");
    run(&["delete", "pv", "disk"]);
}

/// A claim that names no class: a directory of the node, from its first pod to its deletion.
async fn own_disk(program: &Path, lab: &Lab, client: &mut Client) {
    let run = |args: &[&str]| kubectl_ok(program, &lab.cluster, args);
    let classes = run(&["get", "storageclass", "--no-headers"]);
    let words: Vec<&str> = classes.split_whitespace().collect();
    assert_eq!(
        words[..6],
        ["standard", "(default)", "local.barque.io", "Delete", "WaitForFirstConsumer", "true"]
    );
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "own"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    apply(program, lab, &claim);
    assert!(run(&["get", "pvc", "own", "--no-headers"]).contains("Pending"), "it waits for its first pod");
    let user = |name: &str| {
        let mut pod = hello(name, None);
        pod["spec"]["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
        pod["spec"]["volumes"] = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "own"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "d", "mountPath": "/data"}]);
        pod
    };
    let (first, _) = run_pod(client, &user("first")).await;
    let inside = root(&first).join("data");
    assert_eq!(
        (inside.metadata().unwrap().gid(), inside.metadata().unwrap().mode() & 0o7777),
        (2000, 0o2777)
    );
    fs::write(inside.join("kept"), "by the first").unwrap();
    let events = run(&["get", "events", "--field-selector=involvedObject.name=first"]);
    assert!(!events.contains("FailedMount"), "its volume comes after its node, as it should: {events}");
    let volume = run(&["get", "pvc", "own", "-o", "jsonpath={.spec.volumeName}"]);
    let kept = lab.cluster.directory().join("node-1/data/volumes").join(&volume);
    assert_eq!(fs::read_to_string(kept.join("kept")).unwrap(), "by the first");
    // It grows without its pods.
    let more = r#"{"spec": {"resources": {"requests": {"storage": "3Gi"}}}}"#;
    run(&["patch", "pvc", "own", "-p", more]);
    eventually(|| run(&["get", "pvc", "own", "--no-headers"]).contains("3Gi").then_some(()));
    let less = kubectl(program, &lab.cluster, &["patch", "pvc", "own", "-p", &more.replace('3', "2")]);
    let why = String::from_utf8_lossy(&less.stderr).into_owned();
    assert!(why.contains("field can not be less than status.capacity"), "{why}");
    // The data outlives the pod, and the agent.
    run(&["delete", "pod", "first", "--wait"]);
    lab.cluster.kill("node-1").unwrap();
    lab.cluster.complete().unwrap();
    let (second, _) = run_pod(client, &user("second")).await;
    assert_eq!(fs::read_to_string(root(&second).join("data/kept")).unwrap(), "by the first");
    let node = run(&["get", "node", "node-1", "-o", "jsonpath={.status.volumesInUse}"]);
    assert!(node.contains(&volume), "{node}");
    run(&["delete", "pod", "second", "--wait"]);
    run(&["delete", "pvc", "own", "--wait"]);
    eventually(|| (!kubectl(program, &lab.cluster, &["get", "pv", &volume]).status.success()).then_some(()));
    assert!(!kept.exists(), "the volume's object goes after its data");
}
