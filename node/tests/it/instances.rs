//! What the instances and the containers of a pod share, and what they do not.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use proto::node::LogsRequest;
use serde_json::{Value, json};

use crate::Test;
use crate::control::{Control, Heard};
use crate::host::{IMAGE, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("instances::a_restart_keeps_volumes_only", || run(a_restart_keeps_volumes_only())),
    ("instances::containers_share_network_and_memory", || run(containers_share_network_and_memory())),
    ("instances::one_container_waits_alone", || run(one_container_waits_alone())),
    ("instances::the_first_process_is_the_one_that_is_asked", || {
        run(the_first_process_is_the_one_that_is_asked())
    }),
];

fn work(name: &str, work: &[&str]) -> Value {
    let command: Vec<&str> = ["/barque", "work"].iter().chain(work).copied().collect();
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command})
}

fn container<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    status.container_statuses.iter().flatten().find(|c| c.name == name).unwrap()
}

async fn log(control: &Control, pod: &str, container: &str) -> String {
    let request = LogsRequest { container: container.into(), ..request(pod) };
    control.logs(request).await.unwrap_or_default()
}

/// KIA-INIT-013, KIA-RST-004, KIA-RST-014, KIA-POD-006.
async fn a_restart_keeps_volumes_only() {
    let (host, control) = led_host().await;
    control.put(&pod("again", &["remember", "/data/file", "/file"], |pod| {
        let spec = &mut pod["spec"];
        let mount = json!([{"name": "data", "mountPath": "/data"}]);
        spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        spec["restartPolicy"] = "OnFailure".into();
        spec["containers"][0]["volumeMounts"] = mount.clone();
        let mut init = work("i", &["append", "/data/file", "init"]);
        init["volumeMounts"] = mount;
        spec["initContainers"] = json!([init, work("j", &["append", "/file", "init"])]);
    }));
    // Instances end so soon that a status may show the one before as current and as last.
    let two_containers = |heard: &Heard| {
        let statuses = heard.statuses.get("again-uid")?.iter();
        let shown = statuses.flat_map(|(_, status)| status.container_statuses.iter().flatten());
        let ids: BTreeSet<&String> = shown.filter_map(|c| c.container_id.as_ref()).collect();
        (ids.len() > 1).then_some(())
    };
    control.until("a restart is another container", two_containers).await;
    let wanted = "/data/file: 3\n/file: 1\n";
    loop {
        let current = log(&control, "again", "c").await;
        let previous = control.logs(LogsRequest { previous: true, ..request("again") }).await;
        if current == wanted || previous.as_deref() == Ok(wanted) {
            break;
        }
        let restarts = container(&control.heard().statuses["again-uid"].last().unwrap().1, "c").restart_count;
        assert!(restarts < 4, "{current} {previous:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Init containers are not run again with a regular one.
    let heard = control.heard().said_of("again");
    assert_eq!(heard.iter().filter(|s| *s == "Normal Started: Started container i").count(), 1, "{heard:#?}");
    control.delete("again-uid", 0);
    control.gone("again-uid").await;
    host.finish().await;
}

/// KIA-POD-001, KIA-POD-002, KIA-POD-004, KIA-POD-034.
async fn containers_share_network_and_memory() {
    let (host, control) = led_host().await;
    control.put(&pod("shared", &["serve"], |pod| {
        let containers = pod["spec"]["containers"].as_array_mut().unwrap();
        containers.push(work("d", &["neighbour"]));
        containers.push(work("e", &["append", "/dev/shm/word", "e"]));
    }));
    control.status("shared-uid", "its containers", |s| container(s, "e").container_id.is_some()).await;
    let wanted = "8080 answers\n8080 is taken\nword: e\n";
    loop {
        let text = log(&control, "shared", "d").await;
        if text == wanted {
            break;
        }
        assert!(wanted.starts_with(&text), "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    control.delete("shared-uid", 0);
    control.gone("shared-uid").await;
    host.finish().await;
}

/// KIA-POD-017, KIA-POD-032, KIA-POD-033, KIA-RST-016.
async fn one_container_waits_alone() {
    let (host, control) = led_host().await;
    control.put(&pod("uneven", &["serve"], |pod| {
        let mut absent = work("d", &["serve"]);
        absent["image"] = "nowhere.example/x:1".into();
        absent["imagePullPolicy"] = "Never".into();
        let containers = pod["spec"]["containers"].as_array_mut().unwrap();
        containers.push(absent);
        containers.push(work("e", &["exit", "0"]));
        pod["spec"]["restartPolicy"] = "OnFailure".into();
    }));
    let waits = |s: &PodStatus| {
        let waiting = container(s, "d").state.as_ref().unwrap().waiting.as_ref();
        let ended = container(s, "e").state.as_ref().unwrap().terminated.is_some();
        ended && waiting.and_then(|w| w.reason.as_deref()) == Some("ErrImageNeverPull")
    };
    let (_, status) = control.status("uneven-uid", "a container without image", waits).await;
    assert!(container(&status, "c").state.as_ref().unwrap().running.is_some());
    assert_eq!(status.phase.as_deref(), Some("Pending"), "not all have been started");
    control.delete("uneven-uid", 0);
    control.gone("uneven-uid").await;
    host.finish().await;
}

/// KIA-RST-013, KIA-TERM-001, KIA-TERM-003.
async fn the_first_process_is_the_one_that_is_asked() {
    let (host, control) = led_host().await;
    control.put(&pod("shell", &["shell"], |pod| {
        let kill = json!(["/barque", "work", "kill", "1"]);
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": kill}}});
    }));
    let (_, status) = control.running("shell-uid").await;
    assert_eq!(
        container(&status, "c").restart_count,
        0,
        "KILL from inside does nothing to the first process"
    );
    while log(&control, "shell", "c").await != "here to stay\n" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    control.delete("shell-uid", 3);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(log(&control, "shell", "c").await, "here to stay\n", "the child was not asked");
    let last = control.gone("shell-uid").await;
    assert_eq!(container(&last, "c").state.clone().unwrap().terminated.unwrap().exit_code, 137);
    host.finish().await;
}
