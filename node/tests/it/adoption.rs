//! The agent comes and goes; containers stay, and what happened meanwhile is told truthfully.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;

use crate::Test;
use crate::control::{Authority, Control};
use crate::host::{AgentProcess, Host, PATIENCE, eventually, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("adoption::running_containers_are_adopted", || run(running_containers_are_adopted())),
    ("adoption::ends_in_between_are_seen", || run(ends_in_between_are_seen())),
    ("adoption::what_belongs_to_no_pod_is_removed", || run(what_belongs_to_no_pod_is_removed())),
    ("adoption::lost_checkpoints_start_anew", || run(lost_checkpoints_start_anew())),
    ("adoption::a_stop_that_was_only_written_down_is_sent", || {
        run(a_stop_that_was_only_written_down_is_sent())
    }),
    ("adoption::killed_agents_leak_nothing", || run(killed_agents_leak_nothing())),
    ("adoption::hooks_run_whenever_the_agent_dies", || run(hooks_run_whenever_the_agent_dies())),
];

fn identity(status: &PodStatus) -> (String, String, Option<String>) {
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let started = container.state.as_ref().unwrap().running.as_ref().unwrap().started_at.clone().unwrap();
    (container.container_id.clone().unwrap(), started.0.to_string(), status.pod_ip.clone())
}

async fn running_containers_are_adopted() {
    let (mut host, control) = led_host().await;
    control.put(&pod("stays", &["serve"], |_| {}));
    let (_, before) = control.running("stays-uid").await;
    host.stop().await;
    // Nobody answers while the agent starts: it must find its pods without being told.
    control.hang_up();
    control.heard().statuses.clear();
    host.start();
    let (_, after) = control.running("stays-uid").await;
    assert_eq!(identity(&before), identity(&after));
    let restarts = after.container_statuses.as_ref().unwrap()[0].restart_count;
    assert_eq!(restarts, 0);
    let all = control.heard().statuses["stays-uid"].clone();
    assert!(all.iter().all(|(_, s)| identity(s) == identity(&before)), "no other status in between");
    // It is really watched again: its end is seen, and its log goes on.
    assert_eq!(control.logs(request("stays")).await.unwrap(), "serving\n");
    control.delete("stays-uid", 30);
    control.gone("stays-uid").await;
    host.finish().await;
}

async fn ends_in_between_are_seen() {
    let (mut host, control) = led_host().await;
    control.put(&pod("sleeper", &["sleep", "300"], |pod| pod["spec"]["restartPolicy"] = "Never".into()));
    control.running("sleeper-uid").await;
    host.stop().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    host.start();
    let done = |s: &PodStatus| s.phase.as_deref() == Some("Succeeded");
    let (_, status) = control.status("sleeper-uid", "its end", done).await;
    let ended = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.exit_code, 0);
    assert_eq!(control.logs(request("sleeper")).await.unwrap(), "sleeping\nawake\n");
    control.delete("sleeper-uid", 30);
    control.gone("sleeper-uid").await;
    host.finish().await;
}

async fn what_belongs_to_no_pod_is_removed() {
    let (mut host, control) = led_host().await;
    control.put(&pod("orphan", &["serve"], |_| {}));
    control.running("orphan-uid").await;
    host.stop().await;
    // Another leader, which does not know the pod: deleted while this node was away.
    let authority = Authority::new();
    let other = Control::start(&authority).await;
    host.config.control_addresses = vec![other.address];
    host.config.join_token = Some(authority.token());
    std::fs::remove_dir_all(host.dir.path().join("data/pki")).unwrap();
    host.start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(host.dir.path().join("data/pods/orphan-uid").exists(), "nothing ends before a leader has spoken");
    other.lead(2, &host.pod_cidr);
    other.gone("orphan-uid").await;
    host.finish().await;
}

async fn lost_checkpoints_start_anew() {
    let (mut host, control) = led_host().await;
    control.put(&pod("forgotten", &["serve"], |_| {}));
    let (_, before) = control.running("forgotten-uid").await;
    host.stop().await;
    std::fs::write(host.dir.path().join("data/pods/forgotten-uid/checkpoint.json"), "{").unwrap();
    control.heard().statuses.clear();
    host.start();
    let (_, after) = control.running("forgotten-uid").await;
    assert_ne!(identity(&before).0, identity(&after).0);
    control.delete("forgotten-uid", 30);
    tokio::time::timeout(PATIENCE, control.gone("forgotten-uid")).await.unwrap();
    host.finish().await;
}

/// An agent died between recording a stop and sending its signal: TERM must still come, not only KILL.
async fn a_stop_that_was_only_written_down_is_sent() {
    for killed in [false, true] {
        let (mut host, control) = led_host().await;
        // The agent repeats the stop before it hears of the deletion: nothing may be started in between.
        control.put(&pod("asked", &["serve"], |pod| pod["spec"]["restartPolicy"] = "Never".into()));
        control.running("asked-uid").await;
        serving(&control, "asked").await;
        host.stop().await;
        let path = host.dir.path().join("data/pods/asked-uid/checkpoint.json");
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let deadline = (jiff::Timestamp::now() + Duration::from_secs(30)).to_string();
        let stop = &mut record["containers"]["c"]["current"]["stop"];
        assert!(stop.is_null(), "the agent itself has not asked");
        *stop = serde_json::json!({"deadline": deadline, "killed": killed});
        std::fs::write(&path, record.to_string()).unwrap();
        control.mark_deleted("asked-uid", 30);
        host.start();
        let last = control.gone("asked-uid").await;
        let ended = last.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!(ended.exit_code, if killed { 137 } else { 0 });
        host.finish().await;
    }
}

/// Waits until the program can take signals: as pid 1 it would not notice TERM before.
async fn serving(control: &Control, name: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        match control.logs(request(name)).await.as_deref() {
            Ok("serving\n") => return,
            // Not written yet; or the agent has just begun and has not looked at the container yet.
            Ok("") | Err((400, _)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => panic!("{name} was started more than once, or not at all: {other:?}"),
        }
        assert!(Instant::now() < end, "{name} does not begin to serve");
    }
}

/// The agent is killed at moments that move through a pod's start and end.
async fn killed_agents_leak_nothing() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let host = Host::new(&authority, &[&control]);
    control.lead(1, &host.pod_cidr);
    let mut agent = host.spawn();
    control.until("the node is known", |h| h.node_status.clone()).await;
    println!("idle agent: {} KiB resident", resident_kib(agent.pid()));
    for round in 0..12u64 {
        let name = format!("victim{round}");
        let uid = format!("{name}-uid");
        control.put(&pod(&name, &["serve"], |_| {}));
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        agent = kill_and_spawn(&host, &control, agent).await;
        // The killed agent may already have said that the pod runs; only the new one can answer what comes.
        control.until("a new session", |h| (!h.sessions.is_empty()).then_some(())).await;
        control.running(&uid).await;
        assert_eq!(host.containers(), 1, "round {round}: one container, whenever the agent died");
        serving(&control, &name).await;
        control.delete(&uid, 30);
        tokio::time::sleep(Duration::from_millis(2 * round)).await;
        agent = kill_and_spawn(&host, &control, agent).await;
        control.gone(&uid).await;
        control.remove(&uid);
    }
    // The killed agent may have told of the last end already, and its successor still be at it: it finishes first.
    let pods = host.dir.path().join("data/pods");
    eventually("the last agent has cleaned up", || std::fs::read_dir(&pods).unwrap().next().is_none());
    drop(agent);
    host.assert_clean();
}

/// The same with a sidecar and hooks: each hook runs at least once, what waits for it waits, and the stop signal
/// comes after it.
async fn hooks_run_whenever_the_agent_dies() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let host = Host::new(&authority, &[&control]);
    control.lead(1, &host.pod_cidr);
    let mut agent = host.spawn();
    control.until("the node is known", |h| h.node_status.clone()).await;
    let dir = host.dir.path().join("shared");
    std::fs::create_dir(&dir).unwrap();
    for round in 0..8u64 {
        let name = format!("hooked{round}");
        let uid = format!("{name}-uid");
        let file = format!("/host/{name}");
        let append =
            |word: &str| serde_json::json!({"exec": {"command": ["/barque", "work", "append", file, word]}});
        control.put(&pod(&name, &["serve"], |pod| {
            let mount = serde_json::json!([{"name": "host", "mountPath": "/host"}]);
            pod["spec"]["volumes"] = serde_json::json!([{"name": "host", "hostPath": {"path": dir}}]);
            let container = &mut pod["spec"]["containers"][0];
            container["volumeMounts"] = mount;
            container["lifecycle"] =
                serde_json::json!({"postStart": append("start"), "preStop": append("stop")});
            let mut sidecar = container.clone();
            sidecar["name"] = "s".into();
            sidecar["restartPolicy"] = "Always".into();
            sidecar["command"] = serde_json::json!(["/barque", "work", "count", "100"]);
            sidecar["lifecycle"] =
                serde_json::json!({"postStart": append("s-start"), "preStop": append("s-stop")});
            pod["spec"]["initContainers"] = serde_json::json!([sidecar]);
        }));
        tokio::time::sleep(Duration::from_millis(15 * round)).await;
        agent = kill_and_spawn(&host, &control, agent).await;
        control.until("a new session", |h| (!h.sessions.is_empty()).then_some(())).await;
        control.running(&uid).await;
        assert_eq!(host.containers(), 2, "round {round}");
        serving(&control, &name).await;
        control.delete(&uid, 30);
        tokio::time::sleep(Duration::from_millis(10 * round)).await;
        agent = kill_and_spawn(&host, &control, agent).await;
        let last = control.gone(&uid).await;
        let ended = last.container_statuses.as_ref().unwrap()[0].state.clone().unwrap().terminated;
        let code = ended.map(|ended| ended.exit_code);
        assert_eq!(code, Some(0), "round {round}: asked, not killed: {last:?}");
        let text = std::fs::read_to_string(dir.join(&name)).unwrap();
        let mut words: Vec<&str> = text.lines().collect();
        words.dedup();
        assert_eq!(words, ["s-start", "start", "stop", "s-stop"], "round {round}: {text}");
        control.remove(&uid);
    }
    let pods = host.dir.path().join("data/pods");
    eventually("the last agent has cleaned up", || std::fs::read_dir(&pods).unwrap().next().is_none());
    drop(agent);
    host.assert_clean();
}

async fn kill_and_spawn(host: &Host, control: &Control, agent: AgentProcess) -> AgentProcess {
    drop(agent);
    control.until("the dead agent's session ended", |h| h.sessions.is_empty().then_some(())).await;
    host.spawn()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

/// Used by the other tests' set-up, too: a host whose replicas do not lead.
pub(crate) async fn leaderless(count: usize) -> (Host, Vec<Control>) {
    let authority = Authority::new();
    let mut replicas = Vec::new();
    for _ in 0..count {
        replicas.push(Control::start(&authority).await);
    }
    let mut host = Host::new(&authority, &replicas.iter().collect::<Vec<_>>());
    host.start();
    (host, replicas)
}
