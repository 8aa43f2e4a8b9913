//! The order of a pod's containers: init containers, sidecars, the end of all of them; and pods that may be
//! active for so long only.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use proto::node::LogsRequest;
use serde_json::{Value, json};

use crate::Test;
use crate::host::{IMAGE, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("order::sidecars_live_around_the_others", || run(sidecars_live_around_the_others())),
    ("order::deletion_asks_the_init_container", || run(deletion_asks_the_init_container())),
    ("order::a_pod_is_active_for_so_long", || run(a_pod_is_active_for_so_long())),
    ("order::a_second_deletion_shortens_the_wait", || run(a_second_deletion_shortens_the_wait())),
    ("order::an_ephemeral_container_looks_into_another", || run(an_ephemeral_container_looks_into_another())),
    ("order::messages_share_what_a_pod_may_say", || run(messages_share_what_a_pod_may_say())),
];

fn work(name: &str, work: &[&str]) -> Value {
    let command: Vec<&str> = ["/barque", "work"].iter().chain(work).copied().collect();
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command})
}

fn init<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    status.init_container_statuses.iter().flatten().find(|c| c.name == name).unwrap()
}

fn main(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

async fn sidecars_live_around_the_others() {
    let (host, control) = led_host().await;
    control.put(&pod("escorted", &["sleep", "1200"], |pod| {
        pod["spec"]["restartPolicy"] = "Never".into();
        let mut sidecar = work("s", &["serve"]);
        sidecar["restartPolicy"] = "Always".into();
        sidecar["startupProbe"] = json!({"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1});
        pod["spec"]["initContainers"] = json!([sidecar, work("i", &["exit", "0"])]);
    }));
    let uid = "escorted-uid";
    let (_, status) = control.running(uid).await;
    assert!(init(&status, "s").ready && init(&status, "s").started == Some(true));
    assert!(init(&status, "i").state.as_ref().unwrap().terminated.is_some());
    let (_, last) = control.status(uid, "its end", |s| s.phase.as_deref() == Some("Succeeded")).await;
    let end = |c: &ContainerStatus| c.state.clone().unwrap().terminated.unwrap();
    assert_eq!(end(main(&last)).exit_code, 0);
    assert_eq!(end(init(&last, "s")).exit_code, 0, "it obeyed the stop signal");
    assert!(end(init(&last, "s")).finished_at >= end(main(&last)).finished_at);
    let told = control.heard().said_of("escorted");
    let order: Vec<&str> =
        told.iter().map(String::as_str).filter(|s| s.contains("Started") || s.contains("Killing")).collect();
    assert_eq!(
        order,
        [
            "Normal Started: Started container s",
            "Normal Started: Started container i",
            "Normal Started: Started container c",
            "Normal Killing: Stopping container s",
        ]
    );
    // KIA-POD-022, KIA-INIT-017: once initialised, always so.
    let statuses = control.heard().statuses[uid].clone();
    let mut initialized: Vec<String> = statuses
        .iter()
        .map(|(_, s)| {
            s.conditions.iter().flatten().find(|c| c.type_ == "Initialized").unwrap().status.clone()
        })
        .collect();
    initialized.dedup();
    assert_eq!(initialized, ["False", "True"]);
    control.delete(uid, 30);
    control.gone(uid).await;
    host.finish().await;
}

/// KIA-INIT-015, KIA-INIT-016.
async fn deletion_asks_the_init_container() {
    let (host, control) = led_host().await;
    control.put(&pod("early", &["serve"], |pod| {
        pod["spec"]["initContainers"] = json!([work("i", &["serve"])]);
    }));
    control.status("early-uid", "the init container", |s| init(s, "i").container_id.is_some()).await;
    let log = LogsRequest { container: "i".into(), ..request("early") };
    while control.logs(log.clone()).await.unwrap_or_default() != "serving\n" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let deleted = control.delete("early-uid", 30);
    let last = control.gone("early-uid").await;
    assert!(deleted.elapsed() < Duration::from_secs(10), "{:?}", deleted.elapsed());
    assert_eq!(init(&last, "i").state.clone().unwrap().terminated.unwrap().exit_code, 0);
    assert!(main(&last).container_id.is_none(), "the regular container never ran");
    assert_eq!(last.phase.as_deref(), Some("Failed"));
    host.finish().await;
}

async fn a_pod_is_active_for_so_long() {
    let (host, control) = led_host().await;
    control.put(&pod("limited", &["serve"], |pod| {
        pod["spec"]["activeDeadlineSeconds"] = 2.into();
    }));
    control.running("limited-uid").await;
    let failed = |s: &PodStatus| s.phase.as_deref() == Some("Failed");
    let (_, status) = control.status("limited-uid", "its end", failed).await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    let message = "Pod was active on the node longer than the specified deadline";
    assert_eq!(status.message.as_deref(), Some(message));
    assert_eq!(main(&status).state.clone().unwrap().terminated.unwrap().exit_code, 0, "it was asked to end");
    let event = format!("Normal DeadlineExceeded: {message}");
    control.until(&event, |h| h.said_of("limited").contains(&event).then_some(())).await;
    control.delete("limited-uid", 30);
    control.gone("limited-uid").await;
    host.finish().await;
}

/// KIA-TERM-011: and what was already asked to stop is killed at the nearer time.
async fn a_second_deletion_shortens_the_wait() {
    let (host, control) = led_host().await;
    control.put(&pod("slow", &["stubborn"], |_| {}));
    control.running("slow-uid").await;
    while control.logs(request("slow")).await.unwrap_or_default() != "here to stay\n" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let deleted = control.delete("slow-uid", 600);
    while !control.logs(request("slow")).await.unwrap_or_default().contains("no\n") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    control.delete("slow-uid", 1);
    let last = control.gone("slow-uid").await;
    assert!(deleted.elapsed() < Duration::from_secs(20), "{:?}", deleted.elapsed());
    assert_eq!(main(&last).state.clone().unwrap().terminated.unwrap().exit_code, 137);
    host.finish().await;
}

/// KIA-POD-046.
async fn an_ephemeral_container_looks_into_another() {
    let (host, control) = led_host().await;
    let mut seen = pod("seen", &["serve"], |_| {});
    control.put(&seen);
    control.running("seen-uid").await;
    let uid = "seen-uid";
    let add = |pod: &mut k8s_openapi::api::core::v1::Pod, container: Value| {
        let container = serde_json::from_value(container).unwrap();
        pod.spec.as_mut().unwrap().ephemeral_containers.get_or_insert_default().push(container);
    };
    let mut looker = work("d", &["commands"]);
    looker["targetContainerName"] = "c".into();
    add(&mut seen, looker);
    add(&mut seen, work("alone", &["commands"]));
    control.put(&seen);
    let statuses = |s: &PodStatus| s.ephemeral_container_statuses.clone().unwrap_or_default();
    let over = |s: &PodStatus| {
        let ended = |c: &ContainerStatus| c.state.as_ref().unwrap().terminated.is_some();
        statuses(s).len() == 2 && statuses(s).iter().all(ended)
    };
    let (_, status) = control.status(uid, "the ephemeral containers' end", over).await;
    assert_eq!((status.phase.as_deref(), main(&status).ready), (Some("Running"), true));
    let log = |container: &str| {
        let request = LogsRequest { container: container.into(), ..request("seen") };
        control.logs(request)
    };
    let (target, alone) = (log("d").await.unwrap(), log("alone").await.unwrap());
    assert!(
        target.starts_with("1: /barque work serve\n") && target.contains("/barque work commands\n"),
        "{target}"
    );
    assert_eq!(alone, "1: /barque work commands\n");
    let event = |e: &proto::node::Event| {
        e.regarding.as_ref().is_some_and(|r| r.field_path == "spec.ephemeralContainers{d}")
    };
    assert!(control.heard().events.iter().any(event));
    assert_eq!(statuses(&status).iter().map(|c| c.restart_count).sum::<i32>(), 0, "they are not restarted");
    let mut lost = work("lost", &["commands"]);
    lost["targetContainerName"] = "d".into();
    add(&mut seen, lost);
    control.put(&seen);
    let said = "Warning Failed: Error: unable to find target container \"d\"";
    control.until(said, |h| h.said_of("seen").contains(&said.to_owned()).then_some(())).await;
    control.delete(uid, 30);
    control.gone(uid).await;
    host.finish().await;
}

/// A pod's containers have 12 KiB for their termination messages together, and 4 KiB each at most.
async fn messages_share_what_a_pod_may_say() {
    let (host, control) = led_host().await;
    control.put(&pod("verbose", &["say", "5000"], |pod| {
        pod["spec"]["restartPolicy"] = "Never".into();
        let mut logged = work("l", &["count-to", "200"]);
        logged["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
        pod["spec"]["containers"].as_array_mut().unwrap().push(logged);
        let path = json!("/tmp/said");
        let mut elsewhere = work("p", &["say", "2500", "/tmp/said"]);
        elsewhere["terminationMessagePath"] = path;
        for more in [elsewhere, work("q", &["exit", "0"])] {
            pod["spec"]["containers"].as_array_mut().unwrap().push(more);
        }
    }));
    let (_, status) =
        control.status("verbose-uid", "its end", |s| s.phase.as_deref() == Some("Failed")).await;
    let messages: Vec<String> = status
        .container_statuses
        .iter()
        .flatten()
        .map(|c| c.state.clone().unwrap().terminated.unwrap().message.unwrap_or_default())
        .collect();
    let [c, l, p, q] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!((c.len(), p.len(), q.as_str()), (3072, 2500, ""), "a quarter of what four may say");
    assert!(l.starts_with("line 120\n") && l.ends_with("line 199\n"), "{l}");
    control.delete("verbose-uid", 30);
    control.gone("verbose-uid").await;
    host.finish().await;
}
