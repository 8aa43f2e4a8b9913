//! Lifecycle hooks against a listener that the test holds: what waits for a hook, what its failure does, and
//! what a new agent makes of one that the old agent had begun.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::Test;
use crate::control::Control;
use crate::host::{PATIENCE, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("hooks::a_post_start_hook_holds_the_pod_back", || run(a_post_start_hook_holds_the_pod_back())),
    ("hooks::a_failed_post_start_hook_restarts", || run(a_failed_post_start_hook_restarts())),
    ("hooks::pre_stop_comes_before_the_stop_signal", || run(pre_stop_comes_before_the_stop_signal())),
    ("hooks::a_failed_pre_stop_hook_holds_nothing_up", || run(a_failed_pre_stop_hook_holds_nothing_up())),
    ("hooks::pre_stop_ends_with_the_grace_period", || run(pre_stop_ends_with_the_grace_period())),
    ("hooks::without_grace_there_is_no_hook", || run(without_grace_there_is_no_hook())),
    ("hooks::an_unhealthy_container_has_its_hook", || run(an_unhealthy_container_has_its_hook())),
    ("hooks::commands_are_hooks_too", || run(commands_are_hooks_too())),
    ("hooks::hooks_survive_the_agent", || run(hooks_survive_the_agent())),
];

/// Where hooks go. What they ask is answered when the test wants it.
struct Listener(TcpListener);

impl Listener {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn hook(&self, path: &str) -> Value {
        let port = self.0.local_addr().unwrap().port();
        json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": path}})
    }

    /// The next hook: its path and its connection.
    async fn next(&self) -> (String, TcpStream) {
        let accepted = tokio::time::timeout(PATIENCE, self.0.accept()).await.expect("a hook in time");
        let (mut stream, _) = accepted.unwrap();
        let mut request = vec![0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        let text = String::from_utf8_lossy(&request[..read]).into_owned();
        (text.split(' ').nth(1).unwrap().to_owned(), stream)
    }

    async fn none_within(&self, time: Duration) {
        assert!(tokio::time::timeout(time, self.0.accept()).await.is_err(), "no hook was to run");
    }
}

/// Any answer will do: KIA-HOOK-014.
async fn answer(mut stream: TcpStream) {
    stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").await.unwrap();
}

/// Nobody listens there.
fn refused() -> Value {
    json!({"httpGet": {"host": "127.0.0.1", "port": 9, "path": "/x"}})
}

fn container<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    status.container_statuses.iter().flatten().find(|c| c.name == name).unwrap()
}

fn waits(status: &PodStatus, name: &str) -> Option<String> {
    container(status, name).state.as_ref()?.waiting.as_ref()?.reason.clone()
}

/// The program can be asked to end.
async fn serving(control: &Control, name: &str) {
    while control.logs(request(name)).await.unwrap_or_default() != "serving\n" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// KIA-HOOK-003, KIA-HOOK-004, KIA-HOOK-011, KIA-HOOK-012.
async fn a_post_start_hook_holds_the_pod_back() {
    let (host, control) = led_host().await;
    let listener = Listener::new().await;
    control.put(&pod("held", &["serve"], |pod| {
        let mut second = pod["spec"]["containers"][0].clone();
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": listener.hook("/started")});
        (second["name"], second["command"][2]) = ("d".into(), "sleep".into());
        second["command"].as_array_mut().unwrap().push("600000".into());
        pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    }));
    let (path, hook) = listener.next().await;
    assert_eq!(path, "/started");
    let made = |s: &PodStatus| container(s, "c").container_id.is_some();
    let (_, status) = control.status("held-uid", "the first container", made).await;
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waits(&status, "c").as_deref(), Some("ContainerCreating"));
    let (_, message) = control.logs(request("held")).await.unwrap_err();
    assert_eq!(message, "container \"c\" in pod \"held\" is waiting to start: ContainerCreating");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(host.containers(), 1, "the second container waits for the first one's hook");
    answer(hook).await;
    control.running("held-uid").await;
    assert_eq!(host.containers(), 2);
    assert!(!control.heard().said().iter().any(|s| s.contains("Hook")), "a hook that ends well says nothing");
    control.delete("held-uid", 0);
    control.gone("held-uid").await;
    host.finish().await;
}

/// KIA-HOOK-005, KIA-HOOK-006, KIA-HOOK-008, KIA-HOOK-013.
async fn a_failed_post_start_hook_restarts() {
    let (host, control) = led_host().await;
    control.put(&pod("unhooked", &["serve"], |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": refused()});
    }));
    let error = "Get \"http://127.0.0.1:9/x\": dial tcp 127.0.0.1:9: connect: connection refused";
    let reason = format!("PostStartHookError: {error}");
    let uid = "unhooked-uid";
    control.status(uid, "the failure", |s| waits(s, "c").as_ref() == Some(&reason)).await;
    let looping = |s: &PodStatus| waits(s, "c").as_deref() == Some("CrashLoopBackOff");
    let (_, status) = control.status(uid, "a crash loop", looping).await;
    assert!(container(&status, "c").last_state.as_ref().unwrap().terminated.is_some());
    let event = format!(
        "Warning FailedPostStartHook: Http lifecycle hook (/x) for Container \"c\" in Pod \
         \"unhooked_default(unhooked-uid)\" failed - error: {error}, message: \"\""
    );
    let said = control.heard().said_of("unhooked");
    assert!(said.contains(&event), "{said:#?}");
    assert!(said.contains(&"Normal Killing: FailedPostStartHook".to_owned()), "{said:#?}");
    control.delete(uid, 0);
    control.gone(uid).await;
    host.finish().await;
}

/// KIA-HOOK-015, KIA-HOOK-019, KIA-HOOK-022.
async fn pre_stop_comes_before_the_stop_signal() {
    let (host, control) = led_host().await;
    let listener = Listener::new().await;
    control.put(&pod("leaving", &["serve"], |pod| {
        let mut second = pod["spec"]["containers"][0].clone();
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": listener.hook("/c")});
        second["name"] = "d".into();
        second["command"] = json!(["/barque", "work", "count", "100"]);
        second["lifecycle"] = json!({"preStop": listener.hook("/d")});
        pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    }));
    control.running("leaving-uid").await;
    serving(&control, "leaving").await;
    control.delete("leaving-uid", 30);
    let mut hooks = [listener.next().await, listener.next().await];
    hooks.sort_by(|a, b| a.0.cmp(&b.0));
    let [(c, first), (d, second)] = hooks;
    assert_eq!((c.as_str(), d.as_str()), ("/c", "/d"), "both run at the same time");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(host.containers(), 2, "the stop signal waits");
    answer(first).await;
    let ended = |name: &'static str| {
        move |s: &PodStatus| container(s, name).state.as_ref().unwrap().terminated.is_some()
    };
    let (_, status) = control.status("leaving-uid", "the first end", ended("c")).await;
    assert!(!ended("d")(&status), "a slow hook delays its own container only");
    answer(second).await;
    let last = control.gone("leaving-uid").await;
    for name in ["c", "d"] {
        let exit = container(&last, name).state.clone().unwrap().terminated.unwrap();
        assert_eq!(exit.exit_code, 0, "asked, not killed");
    }
    host.finish().await;
}

/// KIA-HOOK-016, KIA-EVT-020.
async fn a_failed_pre_stop_hook_holds_nothing_up() {
    let (host, control) = led_host().await;
    control.put(&pod("careless", &["serve"], |pod| {
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": refused()});
    }));
    control.running("careless-uid").await;
    serving(&control, "careless").await;
    let deleted = control.delete("careless-uid", 30);
    let last = control.gone("careless-uid").await;
    assert!(deleted.elapsed() < Duration::from_secs(10), "{:?}", deleted.elapsed());
    assert_eq!(container(&last, "c").state.clone().unwrap().terminated.unwrap().exit_code, 0);
    let said = control.heard().said_of("careless");
    let event = "Warning FailedPreStopHook: Http lifecycle hook (/x) for Container \"c\"";
    assert!(said.iter().any(|s| s.starts_with(event)), "{said:#?}");
    host.finish().await;
}

/// KIA-HOOK-020: the hook's time is the grace period's; the container is still asked, not only killed.
async fn pre_stop_ends_with_the_grace_period() {
    let (host, control) = led_host().await;
    let listener = Listener::new().await;
    control.put(&pod("endless", &["serve"], |pod| {
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": listener.hook("/")});
    }));
    control.running("endless-uid").await;
    serving(&control, "endless").await;
    let deleted = control.delete("endless-uid", 1);
    let (_, hook) = listener.next().await;
    let last = control.gone("endless-uid").await;
    assert!((1..5).contains(&deleted.elapsed().as_secs()), "{:?}", deleted.elapsed());
    assert_eq!(container(&last, "c").state.clone().unwrap().terminated.unwrap().exit_code, 0);
    drop(hook);
    host.finish().await;
}

/// KIA-HOOK-021; and a process that ends by itself has no hook: KIA-HOOK-017.
async fn without_grace_there_is_no_hook() {
    let (host, control) = led_host().await;
    let listener = Listener::new().await;
    let hooked = |name: &str, work: &[&str]| {
        pod(name, work, |pod| {
            pod["spec"]["restartPolicy"] = "Never".into();
            pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": listener.hook("/")});
        })
    };
    control.put(&hooked("forced", &["stubborn"]));
    control.put(&hooked("short", &["exit", "0"]));
    control.running("forced-uid").await;
    control.status("short-uid", "its end", |s| s.phase.as_deref() == Some("Succeeded")).await;
    let deleted = Instant::now();
    for uid in ["forced-uid", "short-uid"] {
        control.delete(uid, 0);
        control.gone(uid).await;
    }
    assert!(deleted.elapsed() < Duration::from_secs(10), "{:?}", deleted.elapsed());
    listener.none_within(Duration::from_millis(100)).await;
    host.finish().await;
}

/// KIA-HOOK-017, KIA-HOOK-018, KIA-PRB-011, KIA-PRB-021, KIA-TERM-009.
async fn an_unhealthy_container_has_its_hook() {
    let (host, control) = led_host().await;
    let listener = Listener::new().await;
    control.put(&pod("sick", &["serve"], |pod| {
        let container = &mut pod["spec"]["containers"][0];
        container["lifecycle"] = json!({"preStop": listener.hook("/")});
        container["livenessProbe"] = json!({"tcpSocket": {"port": 9}, "initialDelaySeconds": 1,
            "periodSeconds": 1, "failureThreshold": 2});
    }));
    for restarts in 0..2 {
        let (_, hook) = listener.next().await;
        let (_, status) = control.running("sick-uid").await;
        assert!(container(&status, "c").restart_count <= restarts);
        answer(hook).await;
        let again = move |s: &PodStatus| container(s, "c").restart_count > restarts;
        control.status("sick-uid", "a restart", again).await;
    }
    let said = control.heard().said_of("sick");
    let unhealthy =
        said.iter().filter(|s| s.starts_with("Warning Unhealthy: Liveness probe failed: ")).count();
    let killing = "Normal Killing: Container c failed liveness probe, will be restarted";
    let killed = said.iter().filter(|s| *s == killing).count();
    assert_eq!(
        (unhealthy, killed),
        (4, 2),
        "every attempt is told, each new instance begins anew: {said:#?}"
    );
    // KIA-EVT-018, KIA-RST-010.
    let at = said.iter().position(|s| s == killing).unwrap();
    let next: Vec<&str> = said[at + 1..].iter().take(3).map(|s| s.split(':').next().unwrap()).collect();
    assert_eq!(next, ["Normal Pulled", "Normal Created", "Normal Started"], "{said:#?}");
    control.delete("sick-uid", 0);
    control.gone("sick-uid").await;
    host.finish().await;
}

/// KIA-HOOK-003, KIA-HOOK-005 to KIA-HOOK-010, KIA-HOOK-015, KIA-EVT-019.
async fn commands_are_hooks_too() {
    let (host, control) = led_host().await;
    let exec = |command: &[&str]| {
        let command = [&["/barque", "work"], command].concat();
        json!({"exec": {"command": command}})
    };
    let say = |name: &str, path: &str| exec(&["append", path, name]);
    control.put(&pod("ran", &["serve"], |pod| {
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        let first = &mut pod["spec"]["containers"][0];
        first["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        first["lifecycle"] =
            json!({"postStart": say("started", "/data/file"), "preStop": exec(&["stop", "1"])});
        let mut second = first.clone();
        second["name"] = "d".into();
        second["command"] = json!(["/barque", "work", "append", "/data/file", "second"]);
        second["lifecycle"] = json!({});
        pod["spec"]["restartPolicy"] = "OnFailure".into();
        pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    }));
    let uid = "ran-uid";
    let over = |s: &PodStatus| container(s, "d").state.as_ref().unwrap().terminated.is_some();
    control.status(uid, "the second container's end", over).await;
    let log = proto::node::LogsRequest { container: "d".into(), ..request("ran") };
    assert_eq!(control.logs(log).await.unwrap(), "started\nsecond\n");
    serving(&control, "ran").await;
    control.delete(uid, 30);
    let last = control.gone(uid).await;
    // The hook itself ended the program: nothing was left to be asked.
    assert_eq!(container(&last, "c").state.clone().unwrap().terminated.unwrap().exit_code, 0);
    let said = control.heard().said_of("ran");
    assert!(!said.iter().any(|s| s.contains("Hook")), "{said:#?}");

    control.put(&pod("broken", &["serve"], |pod| {
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": exec(&["fail-when-served"])});
    }));
    // KIA-HOOK-010: the program obeyed, and that is all that counts.
    let ended = |s: &PodStatus| s.phase.as_deref() == Some("Succeeded");
    control.status("broken-uid", "its end", ended).await;
    let command = "/barque work fail-when-served";
    let event = format!(
        "Warning FailedPostStartHook: Exec lifecycle hook ([{command}]) for Container \"c\" in Pod \
         \"broken_default(broken-uid)\" failed - error: command '{command}' exited with 1: , message: \
         \"served\\n\""
    );
    let said = control.heard().said_of("broken");
    assert!(said.contains(&event), "{said:#?}");
    // While it is being ended the status says why. Only the newest status is sent, so this one takes its time.
    control.put(&pod("holding", &["stubborn"], |pod| {
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": exec(&["count-to", "1"])});
    }));
    let reason = "PostStartHookError: command '/barque work count-to 1' exited with 1: ";
    control.status("holding-uid", "why it is ended", |s| waits(s, "c").as_deref() == Some(reason)).await;

    control.put(&pod("missing", &["serve"], |pod| {
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["/no/such"]}}});
    }));
    control.running("missing-uid").await;
    serving(&control, "missing").await;
    for uid in ["broken-uid", "holding-uid", "missing-uid"] {
        control.delete(uid, 30);
        control.gone(uid).await;
    }
    let said = control.heard().said_of("missing");
    let event = "Warning FailedPreStopHook: Exec lifecycle hook ([/no/such]) for Container \"c\"";
    assert!(said.iter().any(|s| s.starts_with(event)), "{said:#?}");
    host.finish().await;
}

/// A hook that had begun is begun again by the next agent: it runs at least once, and what waits for it waits.
async fn hooks_survive_the_agent() {
    let (mut host, control) = led_host().await;
    let listener = Listener::new().await;
    control.put(&pod("kept", &["serve"], |pod| {
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"postStart": listener.hook("/start"), "preStop": listener.hook("/stop")});
    }));
    let (_, abandoned) = listener.next().await;
    host.stop().await;
    drop(abandoned);
    host.start();
    let (path, hook) = listener.next().await;
    assert_eq!(path, "/start");
    answer(hook).await;
    let (_, status) = control.running("kept-uid").await;
    assert_eq!(container(&status, "c").restart_count, 0);
    serving(&control, "kept").await;
    control.delete("kept-uid", 30);
    let (_, abandoned) = listener.next().await;
    host.stop().await;
    drop(abandoned);
    host.start();
    let (path, hook) = listener.next().await;
    assert_eq!((path.as_str(), host.containers()), ("/stop", 1));
    answer(hook).await;
    let last = control.gone("kept-uid").await;
    assert_eq!(container(&last, "c").state.clone().unwrap().terminated.unwrap().exit_code, 0);
    host.finish().await;
}
