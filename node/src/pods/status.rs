//! `v1.PodStatus` out of a record: phase, conditions and container states in exactly the kubelet's words.
//!
//! Pure. `PodScheduled` is not here: the control plane keeps it.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, PodCondition, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::qos;
use super::record::{ContainerRecord, Ended, Failure, InstanceState, PodRecord, RestartPolicy, Termination};

/// What the node adds to every status.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeFacts {
    pub(crate) internal_ip: IpAddr,
}

/// The status that the record stands for. `over` is set once nothing of the pod will run again.
pub(crate) fn pod_status(record: &PodRecord, node: NodeFacts, over: bool, now: Timestamp) -> PodStatus {
    if let Some(status) = record.last_status.as_ref().filter(|_| record.ended_before) {
        return status.clone();
    }
    if let Some(failure) = record.failure.as_ref().filter(|failure| failure.refused) {
        return refused(record, failure);
    }
    let init: Vec<ContainerStatus> =
        record.init_containers().iter().map(|c| container_status(record, c, over)).collect();
    let mut regular: Vec<ContainerStatus> =
        record.regular_containers().iter().map(|c| container_status(record, c, over)).collect();
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    let ephemeral: Vec<ContainerStatus> =
        record.ephemeral.iter().map(|c| container_status(record, c, over)).collect();
    let phase = phase(record, &init, &regular, over);
    let conditions = conditions(record, &init, &regular, phase, now);
    let host_ip = node.internal_ip.to_string();
    let pod_ip = match &record.sandbox {
        Some(sandbox) if sandbox.ready && record.host_network() => Some(host_ip.clone()),
        Some(sandbox) => sandbox.ip.map(|ip| ip.to_string()),
        None => None,
    };
    // A pod that ended keeps the address that it had, as the kubelet's status does.
    let last = record.last_status.as_ref();
    let pod_ip = pod_ip.or_else(|| last.filter(|_| over).and_then(|s| s.pod_ip.clone()));
    let failure = record.failure.as_ref();
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: failure.map(|f| f.reason.clone()),
        message: failure.map(|f| f.message.clone()),
        conditions: Some(conditions),
        container_statuses: Some(regular),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: Some(host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: host_ip }]),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        qos_class: Some(qos::class(record.spec()).as_str().to_owned()),
        start_time: Some(Time(seconds(record.accepted_at))),
        ..PodStatus::default()
    }
}

/// The status of a pod that the node did not take on.
fn refused(record: &PodRecord, failure: &Failure) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(failure.reason.clone()),
        message: Some(failure.message.clone()),
        qos_class: Some(qos::class(record.spec()).as_str().to_owned()),
        start_time: Some(Time(seconds(record.accepted_at))),
        ..PodStatus::default()
    }
}

fn container_status(record: &PodRecord, container: &Container, over: bool) -> ContainerStatus {
    let empty = ContainerRecord::default();
    let known = record.container(&container.name).unwrap_or(&empty);
    let waiting = |reason: &str, message: Option<&str>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: message.filter(|m| !m.is_empty()).map(str::to_owned),
        }),
        ..ContainerState::default()
    };
    let has_init = !record.init_containers().is_empty();
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let held = || match &known.waiting {
        Some(held) if !over => waiting(&held.reason, Some(&held.message)),
        _ => waiting(default_reason, None),
    };
    let before = known.last.as_ref().map(|e| terminated(&e.id, &e.termination));
    let hooking = known.current.as_ref().is_some_and(|i| i.post_start);
    let (state, last_state) = match known.current.as_ref().map(|i| (&i.id, &i.state)) {
        None => (held(), before),
        // KIA-HOOK-004: it counts as being created until its postStart hook has ended.
        Some((_, InstanceState::Running { .. })) if hooking => (held(), before),
        Some((_, InstanceState::Creating)) => (waiting(default_reason, None), before),
        Some((_, InstanceState::Running { started_at })) => (running(*started_at), before),
        Some((id, InstanceState::Exited(exit))) => {
            let restarts = !record.done() && record.restarts(&container.name, exit.exit_code);
            let again = restarts && known.waiting.is_some() && !over;
            if again { (held(), Some(terminated(id, exit))) } else { (terminated(id, exit), before) }
        }
    };
    let alive = state.running.is_some();
    let instance = known.current.as_ref().filter(|i| i.state != InstanceState::Creating);
    // An init container that is not kept running is ready when it is over; an ephemeral one never is.
    let name = &container.name;
    let ready = match (record.is_init(name) && !record.is_sidecar(name), record.is_ephemeral(name)) {
        (true, _) => known.succeeded(),
        (_, true) => false,
        _ => alive && instance.is_some_and(|i| i.ready && i.started),
    };
    ContainerStatus {
        name: container.name.clone(),
        ready,
        started: Some(alive && instance.is_some_and(|i| i.started)),
        restart_count: known.current.as_ref().map_or(known.restart_count, |i| i.attempt) as i32,
        image: instance.map_or_else(|| container.image.clone().unwrap_or_default(), |i| i.image.clone()),
        image_id: instance.map(|i| i.image_id.clone()).unwrap_or_default(),
        container_id: instance
            .map(|i| &i.id)
            .or(known.last.as_ref().map(|e: &Ended| &e.id))
            .map(|id| container_id(id)),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        resources: instance.and(container.resources.clone()),
        volume_mounts: mounts(container),
        ..ContainerStatus::default()
    }
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|m| !m.is_empty())?;
    let status = |m: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only.filter(|r| *r),
        recursive_read_only: m.read_only.filter(|r| *r).map(|_| "Disabled".to_owned()),
    };
    Some(mounts.iter().map(status).collect())
}

fn container_id(id: &str) -> String {
    format!("barque://{id}")
}

fn running(started_at: Timestamp) -> ContainerState {
    let running = ContainerStateRunning { started_at: Some(Time(seconds(started_at))) };
    ContainerState { running: Some(running), ..ContainerState::default() }
}

fn terminated(id: &str, exit: &Termination) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id: Some(container_id(id)),
        exit_code: exit.exit_code,
        reason: Some(exit.reason.clone()),
        message: exit.message.clone().filter(|m| !m.is_empty()),
        started_at: Some(Time(exit.started_at.map_or(Timestamp::UNIX_EPOCH, seconds))),
        finished_at: Some(Time(seconds(exit.finished_at))),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// Kubernetes times have whole seconds.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn last_exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.last_state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// Code of the instance that ended last, if none runs now.
fn ended_code(status: &ContainerStatus) -> Option<i32> {
    if is_running(status) { None } else { exit_code(status).or_else(|| last_exit_code(status)) }
}

fn phase(
    record: &PodRecord,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    over: bool,
) -> &'static str {
    let policy = record.restart_policy();
    if over && record.failure.is_some() {
        return "Failed";
    }
    let (sidecars, init): (Vec<&ContainerStatus>, Vec<_>) =
        init.iter().partition(|s| record.is_sidecar(&s.name));
    let failed_init = init.iter().any(|s| ended_code(s).is_some_and(|c| c != 0));
    let pending_init = init.iter().any(|s| ended_code(s).is_none());
    if failed_init && policy == RestartPolicy::Never {
        return "Failed";
    }
    // Sidecars that restart later do not take the pod back; those that have ended do not count.
    let pending_sidecar = !record.initialized
        && sidecars.iter().any(|s| s.started != Some(true) && (is_running(s) || ended_code(s).is_none()));
    let running = regular.iter().chain(sidecars.iter().copied()).filter(|s| is_running(s)).count();
    let codes: Vec<i32> = regular.iter().filter_map(ended_code).collect();
    let waiting = regular.iter().filter(|s| !is_running(s)).count() - codes.len();
    let all_succeeded = codes.iter().all(|c| *c == 0);
    match () {
        () if over && waiting > 0 => "Failed",
        () if pending_init || pending_sidecar || waiting > 0 => "Pending",
        () if running > 0 => "Running",
        () if over && all_succeeded => "Succeeded",
        () if over => "Failed",
        () if policy == RestartPolicy::Always => "Running",
        () if all_succeeded => "Succeeded",
        () if policy == RestartPolicy::Never => "Failed",
        () => "Running",
    }
}

/// One condition before its transition time is known.
struct Verdict {
    type_: &'static str,
    /// `None`: true. Else reason and message of its falsehood.
    problem: Option<(&'static str, Option<String>)>,
    /// A reason beside truth.
    reason: Option<&'static str>,
}

fn conditions(
    record: &PodRecord,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    phase: &str,
    now: Timestamp,
) -> Vec<PodCondition> {
    let sandbox_ready = record.sandbox.as_ref().is_some_and(|s| s.ready);
    let to_start = (!sandbox_ready).then_some(("", None));
    let incomplete = |s: &&ContainerStatus| match record.is_sidecar(&s.name) {
        true => s.started != Some(true),
        false => !s.ready,
    };
    // Once a regular container was begun the pod stays initialised.
    let incomplete = init.iter().filter(|_| !record.initialized).filter(incomplete);
    let incomplete: Vec<&str> = incomplete.map(|s| s.name.as_str()).collect();
    let initialized = (!incomplete.is_empty() && phase != "Succeeded").then(|| {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        ("ContainersNotInitialized", Some(message))
    });
    let sidecars = init.iter().filter(|s| record.is_sidecar(&s.name));
    let unready = sidecars.chain(regular).filter(|s| !s.ready);
    let unready: Vec<&str> = unready.map(|s| s.name.as_str()).collect();
    let containers_ready = match phase {
        "Succeeded" => Some(("PodCompleted", None)),
        "Failed" => Some(("PodFailed", None)),
        _ if unready.is_empty() => None,
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            Some(("ContainersNotReady", Some(message)))
        }
    };
    let ready = containers_ready.clone().or_else(|| unmet_gates(record));
    let verdicts = [
        Verdict { type_: "PodReadyToStartContainers", problem: to_start, reason: None },
        Verdict {
            type_: "Initialized",
            problem: initialized,
            reason: (phase == "Succeeded").then_some("PodCompleted"),
        },
        Verdict { type_: "Ready", problem: ready, reason: None },
        Verdict { type_: "ContainersReady", problem: containers_ready, reason: None },
    ];
    let disruption = record.failure.as_ref().filter(|failure| failure.disrupted).map(|failure| {
        let verdict =
            Verdict { type_: "DisruptionTarget", problem: None, reason: Some("TerminationByKubelet") };
        PodCondition { message: Some(failure.message.clone()), ..condition(record, verdict, now) }
    });
    let verdicts = verdicts.into_iter().map(|verdict| condition(record, verdict, now));
    disruption.into_iter().chain(verdicts).collect()
}

fn unmet_gates(record: &PodRecord) -> Option<(&'static str, Option<String>)> {
    let set = record.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let problems: Vec<String> = record
        .spec()
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| match set.iter().find(|c| c.type_ == gate.condition_type) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => None,
        })
        .collect();
    (!problems.is_empty()).then(|| ("ReadinessGatesNotReady", Some(problems.join(", "))))
}

fn condition(record: &PodRecord, verdict: Verdict, now: Timestamp) -> PodCondition {
    let status = if verdict.problem.is_none() { "True" } else { "False" };
    let (reason, message) = match verdict.problem {
        Some((reason, message)) => (Some(reason), message),
        None => (verdict.reason, None),
    };
    let before = record.last_status.as_ref().and_then(|s| s.conditions.as_ref());
    let before = before.and_then(|cs| cs.iter().find(|c| c.type_ == verdict.type_ && c.status == status));
    let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(seconds(now)));
    PodCondition {
        type_: verdict.type_.to_owned(),
        status: status.to_owned(),
        reason: reason.filter(|r| !r.is_empty()).map(str::to_owned),
        message,
        last_probe_time: None,
        last_transition_time: Some(since),
        observed_generation: None,
    }
}

#[cfg(test)]
mod tests;
