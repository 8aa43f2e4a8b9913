//! Restarts: policies, back-off, previous logs, unhealthy containers.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use proto::node::LogsRequest;

use crate::Test;
use crate::host::{pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("restarts::crashes_back_off", || run(crashes_back_off())),
    ("restarts::policies_decide", || run(policies_decide())),
    ("restarts::unhealthy_containers_are_restarted", || run(unhealthy_containers_are_restarted())),
];

fn container(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

/// KIA-RST-005, KIA-RST-007, KIA-RST-010, KIA-RST-017.
async fn crashes_back_off() {
    let (host, control) = led_host().await;
    control.put(&pod("crasher", &["exit", "3"], |_| {}));
    let waiting = |s: &PodStatus| container(s).state.as_ref().unwrap().waiting.clone();
    let looping = |s: &PodStatus| {
        waiting(s).and_then(|w| w.reason).as_deref() == Some("CrashLoopBackOff")
            && container(s).restart_count >= 2
    };
    let (_, status) = control.status("crasher-uid", "a crash loop", looping).await;
    assert_eq!(
        waiting(&status).unwrap().message.unwrap(),
        "back-off 400ms restarting failed container=c pod=crasher_default(crasher-uid)"
    );
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let last = container(&status).last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    let starts: Vec<_> = {
        let heard = control.heard();
        let statuses = heard.statuses["crasher-uid"].iter();
        let mut ids: Vec<String> = statuses.filter_map(|(_, s)| container(s).container_id.clone()).collect();
        ids.dedup();
        ids
    };
    assert!(starts.len() >= 3, "each restart is another container: {starts:?}");
    let previous = LogsRequest { previous: true, ..request("crasher") };
    assert_eq!(control.logs(previous).await.unwrap(), "ending with 3\n");
    let said = control.heard().said();
    let backoff =
        "Warning BackOff: Back-off restarting failed container c in pod crasher_default(crasher-uid)";
    assert!(said.iter().any(|s| s == backoff), "{said:#?}");
    assert!(!said.iter().any(|s| s.contains("Killing")), "a container that ends by itself is not killed");
    control.delete("crasher-uid", 30);
    control.gone("crasher-uid").await;
    host.finish().await;
}

/// KIA-RST-001, KIA-RST-002.
async fn policies_decide() {
    let (host, control) = led_host().await;
    let with = |name: &str, policy: &str, code: &str| {
        pod(name, &["exit", code], |pod| pod["spec"]["restartPolicy"] = policy.into())
    };
    for (name, policy, code, phase) in [
        ("never-well", "Never", "0", "Succeeded"),
        ("never-ill", "Never", "1", "Failed"),
        ("on-failure-well", "OnFailure", "0", "Succeeded"),
    ] {
        control.put(&with(name, policy, code));
        let uid = format!("{name}-uid");
        let (_, status) = control.status(&uid, phase, |s| s.phase.as_deref() == Some(phase)).await;
        assert_eq!(container(&status).restart_count, 0);
    }
    control.put(&with("on-failure-ill", "OnFailure", "1"));
    control.status("on-failure-ill-uid", "a restart", |s| container(s).restart_count > 0).await;
    control.put(&with("always-well", "Always", "0"));
    control.status("always-well-uid", "a restart", |s| container(s).restart_count > 0).await;
    for name in ["never-well", "never-ill", "on-failure-well", "on-failure-ill", "always-well"] {
        let uid = format!("{name}-uid");
        control.delete(&uid, 30);
        control.gone(&uid).await;
    }
    host.finish().await;
}

async fn unhealthy_containers_are_restarted() {
    let (host, control) = led_host().await;
    let probe = |port: u16| serde_json::json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 1});
    control.put(&pod("healthy", &["serve"], |pod| {
        pod["spec"]["containers"][0]["readinessProbe"] =
            serde_json::json!({"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1, "initialDelaySeconds": 1});
        pod["spec"]["containers"][0]["livenessProbe"] = probe(8080);
        pod["spec"]["containers"][0]["livenessProbe"]["initialDelaySeconds"] = 1.into();
    }));
    control.put(&pod("unhealthy", &["serve"], |pod| {
        pod["spec"]["containers"][0]["livenessProbe"] = probe(9);
        // Not before the program can take a signal: as pid 1 it would not notice TERM.
        pod["spec"]["containers"][0]["livenessProbe"]["initialDelaySeconds"] = 1.into();
    }));
    control.running("healthy-uid").await;
    let unready =
        |s: &PodStatus| container(s).state.as_ref().unwrap().running.is_some() && !container(s).ready;
    control.status("healthy-uid", "running before ready", unready).await;
    let (_, status) = control.status("unhealthy-uid", "a restart", |s| container(s).restart_count > 0).await;
    assert_eq!(container(&status).last_state.clone().unwrap().terminated.unwrap().exit_code, 0);
    let said = control.heard().said();
    for event in [
        "Normal Killing: Container c failed liveness probe, will be restarted",
        "Warning Unhealthy: Liveness probe failed: dial tcp",
    ] {
        assert!(said.iter().any(|s| s.starts_with(event)), "{event} in {said:#?}");
    }
    for uid in ["healthy-uid", "unhealthy-uid"] {
        control.delete(uid, 30);
        control.gone(uid).await;
    }
    host.finish().await;
}
