//! Pods with users of their own (`hostUsers: false`).

use std::collections::BTreeSet;
use std::fs;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::Test;
use crate::host::{Host, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("users::each_pod_has_ids_of_its_own", || run(each_pod_has_ids_of_its_own())),
    ("users::without_ids_a_pod_waits", || run(without_ids_a_pod_waits())),
    ("users::files_of_the_pod_are_its_users", || run(files_of_the_pod_are_its_users())),
];

fn own_users(name: &str, work: &[&str], change: impl FnOnce(&mut serde_json::Value)) -> Pod {
    pod(name, work, |pod| {
        pod["spec"]["hostUsers"] = false.into();
        change(pod);
    })
}

/// The host's numbers of the users that containers run as.
fn users(host: &Host) -> BTreeSet<u32> {
    let user = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    };
    host.processes().into_iter().map(user).collect()
}

fn ranges(host: &Host) -> BTreeSet<String> {
    let entries = fs::read_dir(host.dir.path().join("data/users")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// WS-NS-02, KIA-ISO-001.
async fn each_pod_has_ids_of_its_own() {
    let (mut host, control) = led_host().await;
    for name in ["one", "two"] {
        control.put(&own_users(name, &["serve"], |_| {}));
        control.running(&format!("{name}-uid")).await;
    }
    control.put(&pod("plain", &["serve"], |_| {}));
    control.running("plain-uid").await;
    assert_eq!(users(&host), BTreeSet::from([0, 65536, 131_072]));
    // A new agent knows whose they are.
    host.stop().await;
    host.start();
    control.put(&own_users("three", &["serve"], |_| {}));
    control.running("three-uid").await;
    assert_eq!(users(&host), BTreeSet::from([0, 65536, 131_072, 196_608]));
    for name in ["one", "two", "three", "plain"] {
        control.delete(&format!("{name}-uid"), 0);
        control.gone(&format!("{name}-uid")).await;
    }
    assert_eq!(ranges(&host), BTreeSet::new());
    host.finish().await;
}

async fn without_ids_a_pod_waits() {
    let (mut host, control) = led_host().await;
    host.stop().await;
    host.config.max_pods = 1;
    host.start();
    control.put(&own_users("first", &["serve"], |_| {}));
    control.running("first-uid").await;
    control.put(&own_users("second", &["serve"], |_| {}));
    let said = "Warning FailedCreatePodSandBox: Failed to create pod sandbox: no range of user ids is left for \
                the pod: all 1 from 65536 belong to others";
    control.until(said, |h| h.said_of("second").contains(&said.to_owned()).then_some(())).await;
    control.delete("first-uid", 0);
    control.gone("first-uid").await;
    control.running("second-uid").await;
    assert_eq!(users(&host), BTreeSet::from([65536]));
    control.delete("second-uid", 0);
    control.gone("second-uid").await;
    host.finish().await;
}

async fn files_of_the_pod_are_its_users() {
    let (host, control) = led_host().await;
    let dir = host.dir.path().join("of-host");
    fs::create_dir(&dir).unwrap();
    control.put(&own_users("files", &["append", "/data/file", "word"], |pod| {
        let spec = &mut pod["spec"];
        spec["restartPolicy"] = "Never".into();
        spec["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
        spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let mut root = spec["containers"][0].clone();
        root["name"] = "root".into();
        root["command"] = json!(["/barque", "work", "append", "/host/file", "word"]);
        root["securityContext"] = json!({"runAsUser": 0});
        root["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
        spec["volumes"].as_array_mut().unwrap().push(json!({"name": "host", "hostPath": {"path": dir}}));
        let mut said = spec["containers"][0].clone();
        said["name"] = "said".into();
        said["command"] = json!(["/barque", "work", "say", "5"]);
        let containers = spec["containers"].as_array_mut().unwrap();
        containers.extend([root, said]);
    }));
    let over = |s: &k8s_openapi::api::core::v1::PodStatus| s.phase.as_deref() == Some("Succeeded");
    let (_, status) = control.status("files-uid", "its end", over).await;
    use std::os::unix::fs::MetadataExt as _;
    let owner = |path: &std::path::Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    let volume = host.dir.path().join("data/pods/files-uid/volumes/data");
    assert_eq!(owner(&volume.join("file")), (1000, 2000), "on disk as without a user namespace");
    assert_eq!(owner(&dir.join("file")), (0, 1000));
    let said = status.container_statuses.unwrap().into_iter().find(|c| c.name == "said").unwrap();
    assert_eq!(said.state.unwrap().terminated.unwrap().message.as_deref(), Some("xxxxx"));
    assert_eq!(control.logs(request("files")).await.unwrap(), "word\n");
    control.delete("files-uid", 0);
    control.gone("files-uid").await;
    host.finish().await;
}
