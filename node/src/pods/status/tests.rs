//! Records and the statuses that they stand for.

use std::sync::Arc;

use super::super::record::{Ended, Instance, SandboxRecord, Waiting};
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn record(spec: serde_json::Value) -> PodRecord {
    let pod = serde_json::json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
    let mut record = PodRecord::new(Arc::new(serde_json::from_value(pod).unwrap()), at(0));
    let ip = Some("10.244.1.2".parse().unwrap());
    record.sandbox = Some(SandboxRecord { id: "s".into(), ready: true, ip, netns: None });
    record
}

fn pair(policy: &str) -> PodRecord {
    record(
        serde_json::json!({"restartPolicy": policy, "containers": [{"name": "b", "image": "i"}, {"name": "a", "image": "i"}]}),
    )
}

fn set(record: &mut PodRecord, name: &str, state: InstanceState) {
    record.containers.get_mut(name).unwrap().current = Some(Instance {
        id: format!("{name}-id"),
        attempt: 1,
        image: "docker.io/library/i:latest".into(),
        image_id: "docker.io/library/i@sha256:0".into(),
        stop_signal: 15,
        state,
        stop: None,
        ready: true,
        started: true,
        post_start: false,
    });
}

fn running() -> InstanceState {
    InstanceState::Running { started_at: at(1) }
}

fn ended(code: i32) -> InstanceState {
    let reason = if code == 0 { "Completed" } else { "Error" };
    InstanceState::Exited(Termination {
        exit_code: code,
        reason: reason.into(),
        message: None,
        started_at: Some(at(1)),
        finished_at: at(2),
    })
}

fn status(record: &PodRecord, over: bool) -> PodStatus {
    pod_status(record, NodeFacts { internal_ip: "10.0.0.1".parse().unwrap() }, over, at(9))
}

fn told(status: &PodStatus) -> Vec<String> {
    let line = |c: &PodCondition| {
        let more = [c.reason.clone(), c.message.clone()].into_iter().flatten().collect::<Vec<_>>().join(" ");
        format!("{}={} {more}", c.type_, c.status).trim_end().to_owned()
    };
    status.conditions.iter().flatten().map(line).collect()
}

#[test]
fn a_fresh_pod_is_pending_and_creating() {
    let mut pod = pair("Always");
    pod.sandbox = None;
    let status = status(&pod, false);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        told(&status),
        [
            "PodReadyToStartContainers=False",
            "Initialized=True",
            "Ready=False ContainersNotReady containers with unready status: [a b]",
            "ContainersReady=False ContainersNotReady containers with unready status: [a b]",
        ]
    );
    let containers = status.container_statuses.unwrap();
    assert_eq!(containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a", "b"], "sorted by name");
    let waiting = containers[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    assert_eq!((containers[0].image.as_str(), containers[0].image_id.as_str()), ("i", ""));
}

#[test]
fn a_running_pod_has_addresses_and_is_ready() {
    let mut pod = pair("Always");
    set(&mut pod, "a", running());
    set(&mut pod, "b", running());
    let status = status(&pod, false);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.2"));
    assert_eq!(status.host_ips.as_ref().unwrap()[0].ip, "10.0.0.1");
    assert!(told(&status).iter().all(|line| line.ends_with("=True")), "{:?}", told(&status));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.container_id.as_deref(), Some("barque://a-id"));
    assert_eq!((container.ready, container.started, container.restart_count), (true, Some(true), 1));
}

/// KIA-RST-007, KIA-POD-028: a crash loop waits, and keeps what ended in lastState.
#[test]
fn crash_loops_wait_with_their_last_state() {
    let mut pod = pair("Always");
    set(&mut pod, "a", ended(0));
    set(&mut pod, "b", running());
    let before = status(&pod, false);
    let state = before.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
    assert_eq!(state.terminated.unwrap().reason.as_deref(), Some("Completed"));
    let message = "back-off 10s restarting failed container=a pod=p_default(u)";
    pod.containers.get_mut("a").unwrap().waiting =
        Some(Waiting { reason: "CrashLoopBackOff".into(), message: message.into() });
    let after = status(&pod, false);
    let container = &after.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.state.clone().unwrap().waiting.unwrap().message.as_deref(), Some(message));
    assert_eq!(container.last_state.clone().unwrap().terminated.unwrap().exit_code, 0);
    assert_eq!(container.container_id.as_deref(), Some("barque://a-id"));
    assert_eq!(after.phase.as_deref(), Some("Running"));
}

#[test]
fn phases_follow_policy() {
    for (policy, codes, phase) in [
        ("Always", [1, 0], "Running"),
        ("OnFailure", [0, 0], "Succeeded"),
        ("OnFailure", [1, 0], "Running"),
        ("Never", [0, 0], "Succeeded"),
        ("Never", [1, 0], "Failed"),
    ] {
        let mut pod = pair(policy);
        set(&mut pod, "a", ended(codes[0]));
        set(&mut pod, "b", ended(codes[1]));
        let over = pod.finished();
        assert_eq!(status(&pod, over).phase.as_deref(), Some(phase), "{policy} {codes:?}");
    }
    let mut pod = pair("Always");
    set(&mut pod, "a", ended(137));
    set(&mut pod, "b", ended(0));
    assert_eq!(status(&pod, true).phase.as_deref(), Some("Failed"), "a deleted pod's end");
    assert!(told(&status(&pod, true)).contains(&"Ready=False PodFailed".to_owned()));
}

/// KIA-INIT-004, KIA-INIT-009, KIA-INIT-017.
#[test]
fn init_containers_show_in_conditions_and_phase() {
    let spec = |policy: &str| {
        serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a"}],
            "initContainers": [{"name": "i"}, {"name": "j"}]})
    };
    let mut pod = record(spec("Always"));
    set(&mut pod, "i", running());
    let during = status(&pod, false);
    assert_eq!(during.phase.as_deref(), Some("Pending"));
    assert_eq!(
        told(&during)[1],
        "Initialized=False ContainersNotInitialized containers with incomplete status: [i j]"
    );
    let waiting = during.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
    set(&mut pod, "i", ended(0));
    set(&mut pod, "j", ended(0));
    let after = status(&pod, false);
    assert_eq!(told(&after)[1], "Initialized=True");
    assert!(after.init_container_statuses.unwrap()[0].ready);
    let mut failed = record(spec("Never"));
    set(&mut failed, "i", ended(1));
    assert_eq!(status(&failed, true).phase.as_deref(), Some("Failed"));
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let mut pod = pair("Always");
    pod.last_status =
        Some(pod_status(&pod, NodeFacts { internal_ip: "10.0.0.1".parse().unwrap() }, false, at(3)));
    let later = status(&pod, false);
    assert!(later.conditions.iter().flatten().all(|c| c.last_transition_time == Some(Time(at(3)))));
    assert_eq!(Some(later), pod.last_status, "the same record is the same status");
    set(&mut pod, "a", running());
    set(&mut pod, "b", running());
    let ready = status(&pod, false);
    let moved = |t: &str| {
        ready.conditions.iter().flatten().find(|c| c.type_ == t).unwrap().last_transition_time.clone()
    };
    assert_eq!(moved("Ready"), Some(Time(at(9))));
    assert_eq!(moved("Initialized"), Some(Time(at(3))));
}

#[test]
fn the_count_of_a_restarted_node_goes_on() {
    let pod = serde_json::json!({"metadata": {"name": "p", "uid": "u"},
        "spec": {"containers": [{"name": "a"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "a", "image": "", "imageID": "",
            "ready": true, "restartCount": 4, "containerID": "barque://x"}]}});
    let record = PodRecord::new(Arc::new(serde_json::from_value(pod).unwrap()), at(0));
    assert_eq!(record.containers["a"].restart_count, 5);
    let mut container = ContainerRecord { restart_count: 5, ..ContainerRecord::default() };
    assert!(container.retire().is_none());
    let last = Ended {
        id: "x".into(),
        attempt: 4,
        termination: Termination {
            exit_code: 1,
            reason: "Error".into(),
            message: None,
            started_at: None,
            finished_at: at(0),
        },
    };
    container.last = Some(last);
    assert_eq!(container.restart_count, 5);
}

#[test]
fn sidecars_count_for_readiness_but_not_for_the_end() {
    let mut pod =
        record(serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}],
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}]}));
    set(&mut pod, "s", running());
    pod.containers.get_mut("s").unwrap().current.as_mut().unwrap().started = false;
    assert_eq!(
        told(&status(&pod, false))[1],
        "Initialized=False ContainersNotInitialized containers with incomplete status: [s]"
    );
    let current = pod.containers.get_mut("s").unwrap().current.as_mut().unwrap();
    (current.started, current.ready) = (true, false);
    set(&mut pod, "a", running());
    pod.initialized = true;
    let both = status(&pod, false);
    assert_eq!(both.phase.as_deref(), Some("Running"));
    assert_eq!(
        told(&both)[3],
        "ContainersReady=False ContainersNotReady containers with unready status: [s]"
    );
    set(&mut pod, "a", ended(0));
    assert_eq!(status(&pod, false).phase.as_deref(), Some("Running"), "the sidecar still ends");
    set(&mut pod, "s", ended(137));
    assert_eq!(status(&pod, true).phase.as_deref(), Some("Succeeded"));
}

/// KIA-HOOK-004.
#[test]
fn a_container_whose_post_start_hook_runs_is_being_created() {
    let mut pod = record(serde_json::json!({"containers": [{"name": "a", "image": "i"}]}));
    set(&mut pod, "a", running());
    pod.containers.get_mut("a").unwrap().current.as_mut().unwrap().post_start = true;
    let status = status(&pod, false);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let container = &status.container_statuses.unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!((waiting.reason.as_deref(), container.ready), (Some("ContainerCreating"), false));
}

#[test]
fn a_pod_that_the_node_ended_says_why() {
    let mut pod = pair("Always");
    let failure = super::super::record::Failure {
        reason: "DeadlineExceeded".into(),
        message: "m".into(),
        at: at(3),
        ..Default::default()
    };
    pod.failure = Some(failure);
    set(&mut pod, "a", ended(0));
    set(&mut pod, "b", ended(0));
    let status = status(&pod, true);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"), Some("m"))
    );
}
