//! Volumes and variables out of the control plane's objects, in containers that really run.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use crate::Test;
use crate::control::Control;
use crate::host::{pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("volumes::variables_wait_for_their_objects", || run(variables_wait_for_their_objects())),
    ("volumes::files_follow_their_objects", || run(files_follow_their_objects())),
    ("volumes::files_follow_under_another_agent", || run(files_follow_under_another_agent())),
];

fn with_spec(name: &str, work: &[&str], container: Value, volumes: Value) -> Pod {
    pod(name, work, |pod| {
        for (key, value) in container.as_object().unwrap() {
            pod["spec"]["containers"][0][key] = value.clone();
        }
        pod["spec"]["volumes"] = volumes;
    })
}

fn waits(status: &PodStatus, reason: &str, message: &str) -> bool {
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let waiting = statuses.first().and_then(|s| s.state.as_ref()?.waiting.as_ref());
    waiting.is_some_and(|w| {
        w.reason.as_deref() == Some(reason) && w.message.as_deref().unwrap_or_default() == message
    })
}

async fn says(control: &Control, name: &str, wanted: &str) {
    let end = std::time::Instant::now() + crate::host::PATIENCE;
    loop {
        // An agent that is just being replaced does not answer.
        let answer = tokio::time::timeout(Duration::from_secs(1), control.logs(request(name))).await;
        let text = answer.ok().and_then(Result::ok).unwrap_or_default();
        if text.lines().any(|line| line == wanted) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{name} did not say {wanted:?} but {text:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn event(control: &Control, wanted: &str) {
    control.until(wanted, |h| h.said().contains(&wanted.to_owned()).then_some(())).await;
}

async fn variables_wait_for_their_objects() {
    let (host, control) = led_host().await;
    control.put(&with_spec(
        "vars",
        &["environment", "A", "B", "USER", "NONE"],
        json!({
            "envFrom": [{"configMapRef": {"name": "all"}}],
            "env": [
                {"name": "B", "value": "$(A)!"},
                {"name": "USER", "valueFrom": {"secretKeyRef": {"name": "login", "key": "user"}}},
                {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "all", "key": "no", "optional": true}}},
            ],
        }),
        Value::Null,
    ));
    let reason = "CreateContainerConfigError";
    for (message, kind, name, data) in [
        ("configmap \"all\" not found", "ConfigMap", "all", json!({"A": "1", "9": "x"})),
        ("secret \"login\" not found", "Secret", "login", json!({"other": "eA=="})),
        ("couldn't find key user in Secret default/login", "Secret", "login", json!({"user": "cm9vdA=="})),
    ] {
        control.status("vars-uid", message, |s| waits(s, reason, message)).await;
        event(&control, &format!("Warning Failed: Error: {message}")).await;
        control.give(kind, name, data);
    }
    let (_, status) = control.running("vars-uid").await;
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    says(&control, "vars", "A=1 B=1! USER=root NONE is not set").await;
    let skipped = "Warning InvalidEnvironmentVariableNames: Keys [9] from the EnvFrom configMap default/all were \
        skipped since they are considered invalid environment variable names.";
    event(&control, skipped).await;
    control.delete("vars-uid", 0);
    control.gone("vars-uid").await;
    host.finish().await;
}

async fn files_follow_their_objects() {
    let (host, control) = led_host().await;
    control.heard().token_seconds = 3;
    let volumes = json!([
        {"name": "m", "configMap": {"name": "m"}},
        {"name": "all", "projected": {"sources": [
            {"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "token"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]}},
    ]);
    let mounts = json!({"volumeMounts": [
        {"name": "m", "mountPath": "/etc/m"}, {"name": "all", "mountPath": "/all"}]});
    let files = ["follow", "/etc/m/k", "/all/s", "/all/token", "/all/labels"];
    let mut wanted = with_spec("files", &files, mounts, volumes);
    control.put(&wanted);
    event(
        &control,
        "Warning FailedMount: MountVolume.SetUp failed for volume \"m\" : configmap \"m\" not found",
    )
    .await;
    let creating = |s: &PodStatus| waits(s, "ContainerCreating", "");
    control.status("files-uid", "it waits", creating).await;
    control.give("ConfigMap", "m", json!({"k": "one"}));
    control.give("Secret", "s", json!({"s": "czE="}));
    control.running("files-uid").await;
    for line in [
        "/etc/m/k: one",
        "/all/s: s1",
        "/all/token: token 0 of default for files",
        "/all/labels: app=\"files\"",
    ] {
        says(&control, "files", line).await;
    }
    control.give("ConfigMap", "m", json!({"k": "two"}));
    control.give("Secret", "s", json!({"s": "czI="}));
    says(&control, "files", "/etc/m/k: two").await;
    says(&control, "files", "/all/s: s2").await;
    wanted.metadata.labels.as_mut().unwrap().insert("app".into(), "other".into());
    control.put(&wanted);
    says(&control, "files", "/all/labels: app=\"other\"").await;
    says(&control, "files", "/all/token: token 1 of default for files").await;
    let asked = control.heard().tokens[0].clone();
    assert_eq!((asked.pod_uid.as_str(), asked.expiration_seconds), ("files-uid", 3600));
    // Nothing there can be written, whatever the container asked for.
    let text = control.logs(request("files")).await.unwrap();
    assert!(text.contains("/etc/m cannot be written"), "{text}");
    // The object goes: what was mounted stays, and it is said.
    control.take_back("ConfigMap", "m");
    control
        .until("the missing object is told again", |h| {
            let failed = h.said().iter().filter(|s| s.contains("configmap \"m\" not found")).count();
            (failed >= 2).then_some(())
        })
        .await;
    let status = control.running("files-uid").await.1;
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    control.delete("files-uid", 0);
    control.gone("files-uid").await;
    host.finish().await;
}

async fn files_follow_under_another_agent() {
    let (mut host, control) = led_host().await;
    let volumes = json!([{"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}}]);
    let mounts = json!({"volumeMounts": [{"name": "s", "mountPath": "/s"}]});
    control.give("Secret", "s", json!({"k": "MQ=="}));
    control.put(&with_spec("kept", &["follow", "/s/k"], mounts, volumes));
    control.running("kept-uid").await;
    says(&control, "kept", "/s/k: 1").await;
    host.stop().await;
    let agent = host.spawn();
    control.give("Secret", "s", json!({"k": "Mg=="}));
    says(&control, "kept", "/s/k: 2").await;
    // Killed in the middle of updates: the next agent mends what it finds.
    for number in 3..9 {
        let value = ["Mw==", "NA=="][number % 2];
        control.give("Secret", "s", json!({"k": value}));
    }
    drop(agent);
    control.give("Secret", "s", json!({"k": "OQ=="}));
    host.start();
    says(&control, "kept", "/s/k: 9").await;
    let secrets = std::process::Command::new("grep")
        .args(["-rl", "--include=*.json", "OQ==", host.dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(secrets.stdout.is_empty(), "a secret lies in {}", String::from_utf8_lossy(&secrets.stdout));
    control.delete("kept-uid", 0);
    control.gone("kept-uid").await;
    host.finish().await;
}
