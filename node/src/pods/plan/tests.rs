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
        post_start: false,
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
    record.note_termination(at(second));
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
    assert_eq!(steps(&pod, 0), [Step::FreeVolumes]);
    pod.volumes_freed = true;
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
        current.stop = Some(Stop { deadline: at(5), pre_stop: false, killed: false });
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
        Some(Stop { deadline: at(3), pre_stop: false, killed: false });
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(1)), Plan { steps: vec![], wake_at: Some(at(3)) });
    assert_eq!(steps(&pod, 3), [Step::KillContainer { name: "a".into() }]);
}

fn current<'a>(record: &'a mut PodRecord, name: &str) -> &'a mut Instance {
    record.containers.get_mut(name).unwrap().current.as_mut().unwrap()
}

fn stop(name: &str, grace_seconds: i64) -> Step {
    Step::StopContainer { name: name.into(), grace_seconds }
}

/// KIA-HOOK-011: while a postStart hook runs, the containers after it are not made; those before it go on.
#[test]
fn a_post_start_hook_holds_the_next_containers_back() {
    let hook = serde_json::json!({"postStart": {"sleep": {"seconds": 1}}});
    let mut pod = record(serde_json::json!({"containers": [
        {"name": "a"}, {"name": "b", "lifecycle": hook}, {"name": "c"}]}));
    sandbox(&mut pod, true);
    assert_eq!(steps(&pod, 0), [start("a"), start("b")]);
    run(&mut pod, "a");
    run(&mut pod, "b");
    current(&mut pod, "b").post_start = true;
    assert_eq!(steps(&pod, 0), []);
    exit(&mut pod, "a", 1, 0);
    assert_eq!(steps(&pod, 0), [start("a")]);
    run(&mut pod, "a");
    current(&mut pod, "b").post_start = false;
    assert_eq!(steps(&pod, 0), [start("c")]);
}

/// KIA-HOOK-015, KIA-HOOK-020: the hook's time is the grace period; what obeys late still has two seconds.
#[test]
fn a_pre_stop_hook_ends_with_the_grace_period() {
    let mut pod = simple("Always");
    sandbox(&mut pod, true);
    run(&mut pod, "a");
    current(&mut pod, "a").stop = Some(Stop { deadline: at(5), pre_stop: true, killed: false });
    delete(&mut pod, 5, 0);
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(1)), Plan { steps: vec![], wake_at: Some(at(5)) });
    assert_eq!(steps(&pod, 5), [Step::EndHook { name: "a".into() }]);
    current(&mut pod, "a").stop = Some(Stop { deadline: at(7), pre_stop: false, killed: false });
    assert_eq!(steps(&pod, 6), []);
    assert_eq!(steps(&pod, 7), [Step::KillContainer { name: "a".into() }]);
    current(&mut pod, "a").stop = Some(Stop { deadline: at(5), pre_stop: true, killed: false });
    delete(&mut pod, 0, 1);
    assert_eq!(steps(&pod, 1), [Step::KillContainer { name: "a".into() }], "force does not wait for a hook");
}

#[test]
fn a_second_deletion_only_shortens_the_wait() {
    let mut pod = simple("Always");
    run(&mut pod, "a");
    delete(&mut pod, 30, 0);
    current(&mut pod, "a").stop = Some(Stop { deadline: at(30), pre_stop: false, killed: false });
    delete(&mut pod, 60, 1);
    assert_eq!(pod.terminating_until, Some(at(30)));
    delete(&mut pod, 4, 2);
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(3)), Plan { steps: vec![], wake_at: Some(at(4)) });
}

fn with_sidecars(policy: &str) -> PodRecord {
    let sidecar = |name: &str| serde_json::json!({"name": name, "restartPolicy": "Always"});
    record(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a"}],
        "initContainers": [sidecar("s"), {"name": "i"}, sidecar("t")]}))
}

#[test]
fn sidecars_start_in_order_and_are_kept_up() {
    let mut pod = with_sidecars("Never");
    sandbox(&mut pod, true);
    assert_eq!(steps(&pod, 0), [start("s")]);
    run(&mut pod, "s");
    current(&mut pod, "s").started = false;
    assert_eq!(steps(&pod, 0), [], "its startup probe gates the next");
    current(&mut pod, "s").started = true;
    assert_eq!(steps(&pod, 0), [start("i")]);
    exit(&mut pod, "i", 0, 0);
    assert_eq!(steps(&pod, 0), [start("t")]);
    run(&mut pod, "t");
    assert_eq!(steps(&pod, 0), [start("a")]);
    run(&mut pod, "a");
    pod.initialized = true;
    exit(&mut pod, "s", 0, 0);
    assert_eq!(steps(&pod, 0), [start("s")], "whatever the pod's policy and the code");
    pod.containers.get_mut("a").unwrap().current = None;
    assert_eq!(steps(&pod, 0), [start("s"), start("a")], "an initialised pod does not wait for it");
}

#[test]
fn sidecars_end_last_and_backwards() {
    let mut pod = with_sidecars("Never");
    sandbox(&mut pod, true);
    for name in ["s", "t"] {
        run(&mut pod, name);
    }
    exit(&mut pod, "i", 0, 0);
    exit(&mut pod, "a", 0, 5);
    pod.initialized = true;
    assert_eq!(steps(&pod, 5), [stop("t", 30)], "the work is done");
    exit(&mut pod, "t", 143, 6);
    assert_eq!(steps(&pod, 6), [stop("s", 29)]);
    exit(&mut pod, "s", 143, 6);
    assert_eq!(steps(&pod, 6), [Step::DeleteSandbox]);

    let mut pod = with_sidecars("Always");
    sandbox(&mut pod, true);
    for name in ["s", "t", "a"] {
        run(&mut pod, name);
    }
    exit(&mut pod, "i", 0, 0);
    delete(&mut pod, 10, 0);
    assert_eq!(steps(&pod, 0), [stop("a", 10)]);
    current(&mut pod, "a").stop = Some(Stop { deadline: at(10), pre_stop: false, killed: true });
    assert_eq!(steps(&pod, 9), [], "what may need them still runs");
    assert_eq!(steps(&pod, 10), [stop("t", 2), stop("s", 2)], "no time is left for an order");
}

#[test]
fn a_pod_is_active_for_so_long() {
    let mut pod = record(serde_json::json!({"activeDeadlineSeconds": 10, "terminationGracePeriodSeconds": 3,
        "containers": [{"name": "a"}]}));
    sandbox(&mut pod, true);
    run(&mut pod, "a");
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(4)), Plan { steps: vec![], wake_at: Some(at(10)) });
    assert_eq!(steps(&pod, 10), [Step::FailPod]);
    let failure = super::super::record::Failure {
        reason: "r".into(),
        message: "m".into(),
        at: at(10),
        ..Default::default()
    };
    pod.failure = Some(failure);
    assert_eq!(steps(&pod, 10), [stop("a", 3)]);
    exit(&mut pod, "a", 143, 11);
    assert_eq!(steps(&pod, 11), [Step::DeleteSandbox]);
    pod.sandbox = None;
    assert_eq!(steps(&pod, 11), [Step::FreeVolumes]);
    pod.volumes_freed = true;
    assert_eq!(steps(&pod, 11), []);
}

/// KIA-HOOK-008: what went wrong is shown for a moment, then the crash loop.
#[test]
fn another_reason_is_shown_before_the_back_off() {
    let mut pod = record(serde_json::json!({"containers": [{"name": "a"}]}));
    sandbox(&mut pod, true);
    exit(&mut pod, "a", 1, 0);
    let known = pod.containers.get_mut("a").unwrap();
    known.crashes.advance(at(0), &BackoffConfig::default());
    known.waiting =
        Some(super::super::record::Waiting { reason: "RunContainerError".into(), message: String::new() });
    assert_eq!(plan(&pod, &BackoffConfig::default(), at(0)), Plan { steps: vec![], wake_at: Some(at(1)) });
    assert_eq!(steps(&pod, 1), [Step::NoteBackoff { name: "a".into() }]);
}
