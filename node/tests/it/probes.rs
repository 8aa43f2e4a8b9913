//! Probes of every kind against real containers.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde_json::{Value, json};

use crate::Test;
use crate::host::{eventually, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("probes::commands_ask_inside", || run(commands_ask_inside())),
    ("probes::a_startup_probe_comes_first", || run(a_startup_probe_comes_first())),
    ("probes::an_ending_container_is_not_probed", || run(an_ending_container_is_not_probed())),
    ("probes::gates_hold_readiness_back", || run(gates_hold_readiness_back())),
];

fn container(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

fn exec(command: &[&str]) -> Value {
    let command: Vec<&str> = ["/barque", "work"].iter().chain(command).copied().collect();
    json!({"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1})
}

fn condition(status: &PodStatus, name: &str) -> String {
    status.conditions.iter().flatten().find(|c| c.type_ == name).unwrap().status.clone()
}

/// KIA-PRB-005, KIA-PRB-014, KIA-PRB-022.
async fn commands_ask_inside() {
    let (host, control) = led_host().await;
    let probed = |name: &str, probe: Value| {
        pod(name, &["serve"], |pod| {
            pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
            let container = &mut pod["spec"]["containers"][0];
            container["env"] = json!([{"name": "CODE", "value": "0"}]);
            container["livenessProbe"] = probe;
        })
    };
    control.put(&probed("well", exec(&["exit", "$(CODE)"])));
    control.put(&probed("ill", exec(&["exit", "7"])));
    control.put(&probed("late", exec(&["sleep", "600000"])));
    control.put(&probed(
        "odd",
        json!({"exec": {"command": ["/no/such"]}, "periodSeconds": 1, "failureThreshold": 1}),
    ));
    for (name, event) in [
        ("ill", "Warning Unhealthy: Liveness probe failed: ending with 7"),
        ("late", "Warning Unhealthy: Liveness probe failed: command \"/barque work sleep 600000\" timed out"),
        ("odd", "Warning Unhealthy: Liveness probe failed: exec: \"/no/such\":"),
    ] {
        let uid = format!("{name}-uid");
        control.status(&uid, "a restart", |s| container(s).restart_count > 0).await;
        let said = control.heard().said_of(name);
        assert!(said.iter().any(|s| s.starts_with(event)), "{event} in {said:#?}");
    }
    let (_, status) = control.running("well-uid").await;
    assert_eq!(container(&status).restart_count, 0);
    // KIA-EVT-024: what goes well leaves no trace.
    assert!(!control.heard().said_of("well").iter().any(|s| s.contains("robe")));
    for name in ["well", "ill", "late", "odd"] {
        let uid = format!("{name}-uid");
        control.delete(&uid, 0);
        control.gone(&uid).await;
    }
    host.finish().await;
}

/// KIA-PRB-007, KIA-PRB-008, KIA-PRB-015, KIA-PRB-016, KIA-PRB-017.
async fn a_startup_probe_comes_first() {
    let (host, control) = led_host().await;
    let file =
        |path: &str| json!({"exec": {"command": ["/barque", "work", "exists", path]}, "periodSeconds": 1});
    control.put(&pod("starting", &["serve"], |pod| {
        pod["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": host.dir.path()}}]);
        let container = &mut pod["spec"]["containers"][0];
        container["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        container["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
        container["startupProbe"] = file("/host/ready");
        container["startupProbe"]["failureThreshold"] = 100.into();
        container["livenessProbe"] =
            json!({"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 1});
        container["readinessProbe"] = json!({"httpGet": {"port": "web", "path": "/"}, "periodSeconds": 1});
    }));
    let said =
        |start: &str| control.heard().said_of("starting").iter().filter(|s| s.starts_with(start)).count();
    eventually("two failures", || said("Warning Unhealthy: Startup probe failed") >= 2);
    let status = control.heard().statuses["starting-uid"].last().unwrap().1.clone();
    let state = (container(&status).started, container(&status).ready, container(&status).restart_count);
    assert_eq!(state, (Some(false), false, 0));
    assert_eq!(
        (said("Warning Unhealthy: Liveness"), said("Warning Unhealthy: Readiness")),
        (0, 0),
        "not asked yet"
    );
    std::fs::write(host.dir.path().join("ready"), "").unwrap();
    control.status("starting-uid", "started", |s| container(s).started == Some(true)).await;
    // Only now is the liveness probe asked, which fails.
    control.status("starting-uid", "a restart", |s| container(s).restart_count == 1).await;
    assert_eq!(said("Warning Unhealthy: Liveness"), 1);
    control.delete("starting-uid", 0);
    control.gone("starting-uid").await;

    control.put(&pod("never", &["serve"], |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
        pod["spec"]["containers"][0]["startupProbe"] = file("/no/such");
        pod["spec"]["containers"][0]["startupProbe"]["failureThreshold"] = 2.into();
    }));
    control.status("never-uid", "a restart", |s| container(s).restart_count == 1).await;
    let said = control.heard().said_of("never");
    let killing = "Normal Killing: Container c failed startup probe, will be restarted";
    assert!(said.contains(&killing.to_owned()), "{said:#?}");
    assert!(said.iter().filter(|s| s.contains("Startup probe failed")).count() >= 2, "{said:#?}");
    control.delete("never-uid", 0);
    control.gone("never-uid").await;
    host.finish().await;
}

/// KIA-PRB-013, KIA-PRB-019: real requests, until the container is asked to end.
async fn an_ending_container_is_not_probed() {
    let (host, control) = led_host().await;
    control.put(&pod("leaving", &["serve-on"], |pod| {
        pod["spec"]["containers"][0]["livenessProbe"] =
            json!({"httpGet": {"port": 8080, "path": "/health"}, "periodSeconds": 1});
    }));
    control.running("leaving-uid").await;
    let log = || async { control.logs(request("leaving")).await.unwrap_or_default() };
    while log().await.matches("GET /health").count() < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    control.delete("leaving-uid", 4);
    while !log().await.contains("asked to end") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let text = log().await;
    let (_, after) = text.split_once("asked to end").unwrap();
    assert!(!after.contains("GET"), "{text}");
    control.gone("leaving-uid").await;
    host.finish().await;
}

/// KIA-POD-023.
async fn gates_hold_readiness_back() {
    let (host, control) = led_host().await;
    let mut gated = pod("gated", &["serve"], |pod| {
        pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/open"}]);
    });
    control.put(&gated);
    let ready = |s: &PodStatus| condition(s, "ContainersReady") == "True";
    let (_, status) = control.status("gated-uid", "its containers", ready).await;
    assert_eq!(condition(&status, "Ready"), "False");
    let open = json!({"conditions": [{"type": "example.com/open", "status": "True"}]});
    gated.status = Some(serde_json::from_value(open).unwrap());
    control.put(&gated);
    control.status("gated-uid", "the gate", |s| condition(s, "Ready") == "True").await;
    control.delete("gated-uid", 0);
    control.gone("gated-uid").await;
    host.finish().await;
}
