//! A pod's life as kubectl shows it: init containers and sidecars, restarts, hooks, deadlines, debugging, ends.

use std::path::Path;
use std::time::{Duration, Instant};

use chaos_tests::cluster::{Cluster, until};
use serde_json::{Value, json};

use super::{Lab, PATIENCE, kubectl_ok, kubectls, skip, skipped};

/// The image's program, asked for something that ends at once, well or not.
const WELL: [&str; 2] = ["/barque", "--version"];
const ILL: [&str; 2] = ["/barque", "no-such-command"];

fn container(name: &str, command: &[&str]) -> Value {
    let mut container = json!({"name": name, "image": "barque/hello:1.0"});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    container
}

fn pod(name: &str, containers: Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 5, "containers": containers},
    });
    change(&mut pod["spec"]);
    pod
}

struct Kubectl<'a> {
    program: &'a Path,
    cluster: &'a Cluster,
    directory: &'a Path,
}

impl Kubectl<'_> {
    fn ok(&self, args: &[&str]) -> String {
        kubectl_ok(self.program, self.cluster, args)
    }

    fn apply(&self, pod: &Value) {
        let file = self.directory.join("pod.json");
        std::fs::write(&file, pod.to_string()).unwrap();
        self.ok(&["apply", "-f", file.to_str().unwrap()]);
    }

    /// READY, STATUS and RESTARTS of a pod, as `get pod` shows them.
    fn row(&self, name: &str) -> [String; 3] {
        let row = self.ok(&["get", "pod", name, "--no-headers"]);
        // A status may have spaces in it: RESTARTS is the first number after READY.
        let words: Vec<&str> = row.split_whitespace().collect();
        let count = words[2..].iter().position(|w| w.parse::<u32>().is_ok()).unwrap() + 2;
        [words[1].to_owned(), words[2..count].join(" "), words[count].to_owned()]
    }

    fn shows(&self, name: &str, wanted: impl Fn(&[String; 3]) -> bool) -> [String; 3] {
        let seen = until(PATIENCE, || Some(self.row(name)).filter(|row| wanted(row)));
        seen.unwrap_or_else(|| panic!("{:?}\n{}", self.row(name), self.ok(&["describe", "pod", name])))
    }

    fn status(&self, name: &str, status: &str) -> [String; 3] {
        self.shows(name, |row| row[1] == status)
    }

    fn told(&self, name: &str, message: &str) {
        let told = until(PATIENCE, || self.ok(&["describe", "pod", name]).contains(message).then_some(()));
        assert!(told.is_some(), "{message:?} in\n{}", self.ok(&["describe", "pod", name]));
    }
}

/// The newest kubectl, which is enough: columns and words are the server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_whole_life_as_kubectl_shows_it() {
    let test = "a_pods_whole_life_as_kubectl_shows_it";
    if skipped(test) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(test, "no kubectl on PATH") };
    let lab = Lab::up("it-life", 1, 1).await;
    let kubectl = Kubectl { program: &program, cluster: &lab.cluster, directory: lab.directory.path() };
    initialisation(&kubectl);
    restarts(&kubectl);
    hooks(&kubectl);
    ends(&kubectl);
    debugging(&kubectl);
    lab.down();
}

/// KIA-INIT-004, KIA-INIT-006, KIA-INIT-009, KIA-INIT-011.
fn initialisation(kubectl: &Kubectl<'_>) {
    let both = json!([container("a", &[]), container("b", &WELL)]);
    let mut sidecar = container("s", &["/barque", "hello", "--port", "9090"]);
    sidecar["restartPolicy"] = "Always".into();
    kubectl.apply(&pod("initialised", both.clone(), |spec| {
        spec["initContainers"] = json!([container("i", &WELL), sidecar, container("j", &WELL)]);
    }));
    // The second container ends well again and again: ready are the sidecar and the first.
    assert_eq!(kubectl.status("initialised", "CrashLoopBackOff")[0], "2/3");
    let events = kubectl.ok(&[
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=initialised",
        "-o",
        "jsonpath={range .items[*]}{.reason} {.involvedObject.fieldPath}{\"\\n\"}{end}",
    ]);
    let mut started: Vec<&str> = events.lines().filter_map(|l| l.strip_prefix("Started ")).collect();
    started.dedup();
    let wanted =
        ["spec.initContainers{i}", "spec.initContainers{s}", "spec.initContainers{j}", "spec.containers{a}"];
    assert_eq!(started[..4], wanted, "{events}");
    assert!(events.lines().any(|l| l.starts_with("BackOff")), "{events}");
    kubectl.apply(&pod("stuck", both, |spec| {
        spec["restartPolicy"] = "Never".into();
        spec["initContainers"] = json!([container("i", &ILL)]);
    }));
    assert_eq!(kubectl.status("stuck", "Init:Error")[0], "0/2");
    kubectl.ok(&["delete", "pod", "initialised", "stuck"]);
}

/// KIA-RST-009, KIA-RST-016, KIA-POD-032.
fn restarts(kubectl: &Kubectl<'_>) {
    kubectl.apply(&pod("looping", json!([container("a", &[]), container("b", &ILL)]), |_| {}));
    let row = kubectl.status("looping", "CrashLoopBackOff");
    assert_eq!(row[0], "1/2", "the sibling goes on");
    let message = kubectl.ok(&[
        "get",
        "pod",
        "looping",
        "-o",
        "jsonpath={.status.containerStatuses[1].state.waiting.message}",
    ]);
    assert!(message.contains("restarting failed container=b pod=looping_default("), "{message}");
    kubectl.ok(&["delete", "pod", "looping"]);
}

/// KIA-HOOK-004 to KIA-HOOK-008.
fn hooks(kubectl: &Kubectl<'_>) {
    let mut hooked = container("hello", &[]);
    hooked["lifecycle"] = json!({"postStart": {"exec": {"command": ILL}}});
    kubectl.apply(&pod("hooked", json!([hooked]), |_| {}));
    let command = "command '/barque no-such-command' exited with 2:";
    kubectl.status("hooked", &format!("PostStartHookError: {command}"));
    kubectl.status("hooked", "CrashLoopBackOff");
    kubectl.told("hooked", "FailedPostStartHook");
    kubectl.told(
        "hooked",
        "Exec lifecycle hook ([/barque no-such-command]) for Container \"hello\" in Pod \"hooked_default(",
    );
    let mut slow = container("hello", &[]);
    slow["lifecycle"] = json!({"postStart": {"sleep": {"seconds": 3}}, "preStop": {"sleep": {"seconds": 2}}});
    slow["readinessProbe"] = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    kubectl.apply(&pod("slow", json!([slow]), |_| {}));
    assert_eq!(kubectl.status("slow", "ContainerCreating")[0], "0/1");
    kubectl.shows("slow", |row| row[0] == "1/1" && row[1] == "Running");
    let deleted = Instant::now();
    kubectl.ok(&["delete", "pod", "slow", "--wait=false"]);
    kubectl.status("slow", "Terminating");
    kubectl.ok(&["wait", "--for=delete", "pod/slow", "--timeout=30s"]);
    assert!(deleted.elapsed() >= Duration::from_secs(2), "the hook was waited for");
    kubectl.ok(&["delete", "pod", "hooked"]);
}

/// KIA-TERM-011, and pods that may be active for so long only.
fn ends(kubectl: &Kubectl<'_>) {
    kubectl.apply(&pod("limited", json!([container("hello", &[])]), |spec| {
        spec["activeDeadlineSeconds"] = 2.into();
    }));
    let why = "jsonpath={.status.phase} {.status.reason}";
    let failed = until(PATIENCE, || {
        (kubectl.ok(&["get", "pod", "limited", "-o", why]) == "Failed DeadlineExceeded").then_some(())
    });
    assert!(failed.is_some(), "{}", kubectl.ok(&["get", "pod", "limited", "-o", "yaml"]));
    kubectl.told("limited", "Pod was active on the node longer than the specified deadline");
    let mut held = container("hello", &[]);
    held["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 500}}});
    kubectl.apply(&pod("held", json!([held]), |spec| spec["terminationGracePeriodSeconds"] = 600.into()));
    kubectl.status("held", "Running");
    let deleted = Instant::now();
    kubectl.ok(&["delete", "pod", "held", "--wait=false"]);
    kubectl.status("held", "Terminating");
    kubectl.ok(&["delete", "pod", "held", "--grace-period=2"]);
    assert!(deleted.elapsed() < PATIENCE, "a second deletion shortens the wait");
    kubectl.apply(&pod("forced", json!([container("hello", &[])]), |_| {}));
    kubectl.status("forced", "Running");
    kubectl.ok(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
    kubectl.ok(&["delete", "pod", "limited"]);
}

/// KIA-POD-046.
fn debugging(kubectl: &Kubectl<'_>) {
    kubectl.apply(&pod("seen", json!([container("hello", &[])]), |_| {}));
    kubectl.status("seen", "Running");
    kubectl.ok(&[
        "debug",
        "seen",
        "--image=barque/hello:1.0",
        "--target=hello",
        "-c",
        "debugger",
        "--",
        "/barque",
        "--version",
    ]);
    let ended = until(PATIENCE, || {
        let code = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
        (kubectl.ok(&["get", "pod", "seen", "-o", code]) == "0").then_some(())
    });
    assert!(ended.is_some(), "{}", kubectl.ok(&["get", "pod", "seen", "-o", "yaml"]));
    assert!(kubectl.ok(&["logs", "seen", "-c", "debugger"]).starts_with("barque "));
    assert_eq!(kubectl.row("seen")[..2], ["1/1", "Running"]);
    kubectl.ok(&["delete", "pod", "seen"]);
}
