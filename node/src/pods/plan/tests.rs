//! Scripts: what is desired and observed, and the steps that follow.

use std::sync::Arc;

use super::super::record::{Instance, InstanceState, SandboxRecord, Stop, Termination};
use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn record(spec: serde_json::Value) -> PodRecord {
    let pod = serde_json::json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
    PodRecord::new(Arc::new(serde_json::from_value(pod).unwrap()), at(0))
}

fn simple(policy: &str) -> PodRecord {
    record(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}))
}

fn sandbox(record: &mut PodRecord, ready: bool) {
    record.sandbox = Some(SandboxRecord { id: "s".into(), ready, ip: None, netns: None });
}

fn instance(state: InstanceState) -> Option<Instance> {
    Some(Instance {
        id: "i".into(),
        attempt: 0,
        image: String::new(),
        image_id: String::new(),
        stop_signal: 15,
        state,
        stop: None,
        ready: true,
        started: true,
    })
}

fn run(record: &mut PodRecord, name: &str) {
    record.containers.get_mut(name).unwrap().current = instance(InstanceState::Running { started_at: at(0) });
}

fn exit(record: &mut PodRecord, name: &str, code: i32, second: i64) {
    let termination = Termination {
        exit_code: code,
        reason: "Error".into(),
        message: None,
        started_at: Some(at(0)),
        finished_at: at(second),
    };
    record.containers.get_mut(name).unwrap().current = instance(InstanceState::Exited(termination));
}

fn steps(record: &PodRecord, second: i64) -> Vec<Step> {
    plan(record, &BackoffConfig::default(), at(second)).steps
}

fn start(name: &str) -> Step {
    Step::StartContainer { name: name.into() }
}

fn delete(record: &mut PodRecord, grace: i64, second: i64) {
    let mut pod = (*record.pod).clone();
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(second)));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    record.pod = Arc::new(pod);
    record.terminating_since.get_or_insert(at(second));
}

#[test]
fn sandbox_first_then_containers_in_order() {
    let mut pod = simple("Always");
    assert_eq!(steps(&pod, 0), [Step::CreateSandbox]);
    pod.sandbox_retry_at = Some(at(5));
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(1)), Plan { steps: vec![], wake_at: Some(at(5)) });
    sandbox(&mut pod, true);
    assert_eq!(steps(&pod, 0), [start("a"), start("b")]);
    run(&mut pod, "a");
    assert_eq!(steps(&pod, 0), [start("b")]);
    run(&mut pod, "b");
    assert_eq!(steps(&pod, 0), []);
}

/// KIA-INIT-001, KIA-INIT-008, KIA-INIT-009.
#[test]
fn init_containers_run_one_by_one() {
    let spec = |policy: &str| {
        serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a"}],
            "initContainers": [{"name": "i"}, {"name": "j"}]})
    };
    let mut pod = record(spec("Always"));
    sandbox(&mut pod, true);
    assert_eq!(steps(&pod, 0), [start("i")]);
    run(&mut pod, "i");
    assert_eq!(steps(&pod, 0), []);
    exit(&mut pod, "i", 1, 0);
    assert_eq!(steps(&pod, 0), [start("i")]);
    exit(&mut pod, "i", 0, 0);
    assert_eq!(steps(&pod, 0), [start("j")]);
    exit(&mut pod, "j", 0, 0);
    assert_eq!(steps(&pod, 0), [start("a")]);
    let mut pod = record(spec("Never"));
    sandbox(&mut pod, true);
    exit(&mut pod, "i", 1, 0);
    assert_eq!(steps(&pod, 0), [Step::DeleteSandbox], "nothing of the pod will ever run");
    pod.sandbox = None;
    assert_eq!(steps(&pod, 0), []);
}

#[test]
fn crashes_wait_and_are_noted_once() {
    let mut pod = simple("Always");
    sandbox(&mut pod, true);
    run(&mut pod, "b");
    exit(&mut pod, "a", 1, 0);
    assert_eq!(steps(&pod, 0), [start("a")], "the first restart does not wait");
    pod.containers.get_mut("a").unwrap().crashes.advance(at(0), &BackoffConfig::default());
    let noted = plan(&pod, &BackoffConfig::default(), at(1));
    assert_eq!(noted, Plan { steps: vec![Step::NoteBackoff { name: "a".into() }], wake_at: Some(at(10)) });
    let reason = super::super::record::Waiting { reason: "CrashLoopBackOff".into(), message: String::new() };
    pod.containers.get_mut("a").unwrap().waiting = Some(reason);
    assert_eq!(steps(&pod, 9), []);
    assert_eq!(steps(&pod, 10), [start("a")]);
}

#[test]
fn finished_pods_lose_their_sandbox_only() {
    let mut pod = simple("Never");
    sandbox(&mut pod, true);
    exit(&mut pod, "a", 0, 0);
    run(&mut pod, "b");
    assert_eq!(steps(&pod, 0), [], "the sibling goes on");
    exit(&mut pod, "b", 1, 0);
    assert_eq!(steps(&pod, 0), [Step::DeleteSandbox]);
    let mut pod = simple("OnFailure");
    sandbox(&mut pod, true);
    exit(&mut pod, "a", 0, 0);
    exit(&mut pod, "b", 1, 0);
    assert_eq!(steps(&pod, 0), [start("b")]);
}

/// KIA-TERM-001, KIA-TERM-005, KIA-TERM-007.
#[test]
fn deletion_stops_all_kills_late_and_cleans_up() {
    let mut pod = simple("Always");
    sandbox(&mut pod, true);
    run(&mut pod, "a");
    run(&mut pod, "b");
    delete(&mut pod, 5, 0);
    let stop = |name: &str| Step::StopContainer { name: name.into(), grace_seconds: 5 };
    assert_eq!(steps(&pod, 0), [stop("a"), stop("b")]);
    for name in ["a", "b"] {
        let current = pod.containers.get_mut(name).unwrap().current.as_mut().unwrap();
        current.stop = Some(Stop { deadline: at(5), killed: false });
    }
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(1)), Plan { steps: vec![], wake_at: Some(at(5)) });
    exit(&mut pod, "a", 0, 1);
    assert_eq!(steps(&pod, 5), [Step::KillContainer { name: "b".into() }]);
    delete(&mut pod, 2, 3);
    assert_eq!(steps(&pod, 2), [Step::KillContainer { name: "b".into() }], "a shorter grace counts");
    exit(&mut pod, "b", 137, 5);
    assert_eq!(steps(&pod, 5), [Step::DeleteSandbox, Step::Release, Step::Finish]);
    pod.sandbox = None;
    pod.released = true;
    assert_eq!(steps(&pod, 5), [Step::Finish]);
}

#[test]
fn removal_gives_no_grace_and_unstarted_pods_just_end() {
    let mut pod = simple("Always");
    pod.removed = true;
    assert_eq!(steps(&pod, 0), [Step::Release, Step::Finish]);
    sandbox(&mut pod, true);
    run(&mut pod, "a");
    assert_eq!(steps(&pod, 0), [Step::StopContainer { name: "a".into(), grace_seconds: 0 }]);
}

#[test]
fn a_dead_sandbox_is_replaced() {
    let mut pod = simple("Always");
    sandbox(&mut pod, false);
    run(&mut pod, "a");
    assert_eq!(steps(&pod, 0), [Step::KillContainer { name: "a".into() }]);
    exit(&mut pod, "a", 137, 0);
    assert_eq!(steps(&pod, 0), [Step::DeleteSandbox]);
}

#[test]
fn unhealthy_containers_are_killed_when_their_grace_is_over() {
    let mut pod = simple("Always");
    sandbox(&mut pod, true);
    run(&mut pod, "a");
    run(&mut pod, "b");
    pod.containers.get_mut("a").unwrap().current.as_mut().unwrap().stop =
        Some(Stop { deadline: at(3), killed: false });
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(1)), Plan { steps: vec![], wake_at: Some(at(3)) });
    assert_eq!(steps(&pod, 3), [Step::KillContainer { name: "a".into() }]);
}
