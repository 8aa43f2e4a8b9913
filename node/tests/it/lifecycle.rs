//! A pod from being bound to being gone: status, events, network, logs, graceful end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{NodeStatus, PodStatus};
use proto::node::{LogsRequest, stream_frame};

use crate::Test;
use crate::control::{Authority, Control};
use crate::host::{Host, PATIENCE, pod, run};

/// This machine's, in the API's words.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

pub(crate) const TESTS: &[Test] = &[
    ("lifecycle::a_node_registers", || run(a_node_registers())),
    ("lifecycle::conditions_beat_together", || run(conditions_beat_together())),
    ("lifecycle::a_pod_runs_answers_and_ends", || run(a_pod_runs_answers_and_ends())),
    ("lifecycle::logs_follow_to_the_end", || run(logs_follow_to_the_end())),
    ("lifecycle::grace_ends_in_kill", || run(grace_ends_in_kill())),
    ("lifecycle::init_containers_and_volumes", || run(init_containers_and_volumes())),
    ("lifecycle::refusals_are_said", || run(refusals_are_said())),
    ("lifecycle::what_containers_use_is_told", || run(what_containers_use_is_told())),
    ("lifecycle::removal_has_no_grace", || run(removal_has_no_grace())),
];

pub(crate) async fn led_host() -> (Host, Control) {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    control.lead(1, &host.pod_cidr);
    host.start();
    (host, control)
}

pub(crate) fn request(pod: &str) -> LogsRequest {
    LogsRequest {
        namespace: "default".into(),
        pod: pod.into(),
        pod_uid: format!("{pod}-uid"),
        container: "c".into(),
        ..LogsRequest::default()
    }
}

async fn a_node_registers() {
    let (host, control) = led_host().await;
    let node = control.until("Hello", |h| h.node.clone()).await;
    let labels = node.metadata.labels.unwrap();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        assert_eq!(
            (labels[&format!("{prefix}/os")].as_str(), &labels[&format!("{prefix}/arch")][..]),
            ("linux", ARCHITECTURE)
        );
    }
    assert_eq!(labels["kubernetes.io/hostname"], host.config.node_name);
    let ready = |h: &crate::control::Heard| {
        let status = h.node_status.clone()?;
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        ready.then_some(status)
    };
    let status = control.until("the node is ready", ready).await;
    let conditions: Vec<(&str, &str)> = status
        .conditions
        .iter()
        .flatten()
        .map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(
        conditions,
        [
            ("MemoryPressure", "KubeletHasSufficientMemory"),
            ("DiskPressure", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "KubeletHasSufficientPID"),
            ("Ready", "KubeletReady"),
        ]
    );
    check_health(&host, &status);
    assert!(
        status.images.unwrap()[0].names.as_ref().unwrap().contains(&"docker.io/barque/hello:1.0".to_owned())
    );
    assert_eq!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10250);
    let reasons: Vec<String> = control
        .until("events", |h| {
            let own: Vec<_> = h.events.iter().filter(|event| event.component == "kubelet").collect();
            (own.len() >= 6).then(|| own.iter().map(|event| event.reason.clone()).collect())
        })
        .await;
    assert_eq!(
        reasons,
        [
            "Starting",
            "NodeAllocatableEnforced",
            "NodeHasSufficientMemory",
            "NodeHasNoDiskPressure",
            "NodeHasSufficientPID",
            "NodeReady"
        ]
    );
    control.until("heartbeats", |h| (h.heartbeats > 2).then_some(())).await;
    host.finish().await;
}

/// What a healthy node's status says, in the kubelet's words and units.
fn check_health(host: &Host, status: &NodeStatus) {
    let messages: Vec<&str> =
        status.conditions.iter().flatten().filter_map(|condition| condition.message.as_deref()).collect();
    assert_eq!(
        messages,
        [
            "kubelet has sufficient memory available",
            "kubelet has no disk pressure",
            "kubelet has sufficient PID available",
            "kubelet is posting ready status",
        ]
    );
    let keys =
        ["cpu", "ephemeral-storage", "hugepages-1Gi", "hugepages-2Mi", "memory", "pods"].map(str::to_owned);
    for amounts in [&status.capacity, &status.allocatable] {
        let amounts = amounts.as_ref().unwrap();
        assert_eq!(amounts.keys().cloned().collect::<Vec<_>>(), keys);
        assert_eq!(amounts["pods"].0, "110");
        assert!(amounts["memory"].0.ends_with("Ki"), "{amounts:?}");
    }
    assert!(status.capacity.as_ref().unwrap()["ephemeral-storage"].0.ends_with("Ki"));
    let addresses = status.addresses.iter().flatten().map(|a| (a.type_.as_str(), a.address.as_str()));
    let addresses: Vec<(&str, &str)> = addresses.collect();
    assert_eq!(addresses, [("InternalIP", "127.0.0.1"), ("Hostname", host.config.node_name.as_str())]);
    let info = status.node_info.as_ref().unwrap();
    assert_eq!((info.operating_system.as_str(), info.architecture.as_str()), ("linux", ARCHITECTURE));
    let (runtime, kernel) = (&info.container_runtime_version, &info.kernel_version);
    assert!(runtime.starts_with("barque://") && info.kubelet_version.starts_with('v'), "{info:?}");
    assert_eq!(*kernel, std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    for id in [&info.boot_id, &info.machine_id, &info.system_uuid, &info.os_image] {
        assert!(!id.is_empty(), "{info:?}");
    }
}

/// A fresh node is not ready before it has a network; its other conditions are told with the first status. Then
/// they beat together, and the times of their flips stay.
async fn conditions_beat_together() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    host.config.node_status_update_frequency = Duration::from_millis(200);
    host.config.node_status_report_frequency = Duration::from_secs(1);
    host.start();
    let first = control.until("Hello", |h| h.node.clone()).await.status.unwrap().conditions.unwrap();
    let ready = first.last().unwrap();
    assert_eq!((ready.type_.as_str(), ready.status.as_str()), ("Ready", "False"));
    assert_eq!(ready.reason.as_deref(), Some("KubeletNotReady"));
    assert!(first[..3].iter().all(|condition| condition.status == "False"), "{first:?}");
    control.lead(1, &host.pod_cidr);
    let conditions = |h: &crate::control::Heard| {
        let conditions = h.node_status.clone()?.conditions?;
        (conditions[3].status == "True").then_some(conditions)
    };
    let ready = control.until("it is ready", conditions).await;
    let beat = |h: &crate::control::Heard| {
        conditions(h).filter(|now| now[0].last_heartbeat_time != ready[0].last_heartbeat_time)
    };
    let later = control.until("a heartbeat", beat).await;
    for (now, before) in later.iter().zip(&ready) {
        assert_eq!(now.last_heartbeat_time, later[0].last_heartbeat_time, "{}", now.type_);
        assert_eq!(now.last_transition_time, before.last_transition_time, "{}", now.type_);
    }
    host.finish().await;
}

async fn a_pod_runs_answers_and_ends() {
    let (host, control) = led_host().await;
    control.until("the node is known", |h| h.node_status.clone()).await;
    let mut took = Vec::new();
    for name in ["web", "web2", "web3", "web4"] {
        let bound = control.put(&pod(name, &["serve"], |_| {}));
        let (at, _) = control.running(&format!("{name}-uid")).await;
        took.push(at.duration_since(bound).as_millis());
    }
    println!("bound to Running, one after the other: {took:?} ms");
    let (_, status) = control.running("web-uid").await;
    check_running(&status);
    assert_eq!(get(&status), format!("you are ::ffff:{}\n", host.pod_cidr.replace(".0/24", ".1")));
    let said: Vec<String> = control.heard().said_of("web").into_iter().take(3).collect();
    assert_eq!(
        said,
        [
            "Normal Pulled: Container image \"barque/hello:1.0\" already present on machine",
            "Normal Created: Created container c",
            "Normal Started: Started container c",
        ]
    );
    let created = control.heard().events.iter().find(|e| e.reason == "Created").cloned().unwrap();
    assert_eq!(created.regarding.unwrap().field_path, "spec.containers{c}");
    let deleted = control.delete("web-uid", 30);
    let last = control.gone("web-uid").await;
    println!("deleted to gone: {} ms", deleted.elapsed().as_millis());
    assert!(deleted.elapsed() < Duration::from_secs(5), "a pod that obeys TERM needs no grace");
    let ended = last.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (0, Some("Completed")));
    assert_eq!(last.phase.as_deref(), Some("Succeeded"));
    assert!(control.heard().said().contains(&"Normal Killing: Stopping container c".to_owned()));
    for uid in ["web2-uid", "web3-uid", "web4-uid"] {
        control.delete(uid, 30);
        control.gone(uid).await;
    }
    host.finish().await;
}

fn check_running(status: &PodStatus) {
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let id = container.container_id.as_deref().unwrap();
    assert!(id.starts_with("barque://") && id.len() == "barque://".len() + 64, "{id}");
    assert!(container.image_id.starts_with("docker.io/barque/hello@sha256:"), "{}", container.image_id);
    assert_eq!((container.restart_count, container.ready, container.started), (0, true, Some(true)));
    let conditions: Vec<&str> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(conditions, ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]);
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
}

fn get(status: &PodStatus) -> String {
    let address = format!("{}:8080", status.pod_ip.as_ref().unwrap());
    let end = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect(&address) {
            Ok(stream) => break stream,
            // It runs; it may not listen yet.
            Err(error) => assert!(Instant::now() < end, "{address}: {error}"),
        }
    };
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

async fn logs_follow_to_the_end() {
    let (host, control) = led_host().await;
    control.put(&pod("talker", &["count", "5"], |_| {}));
    control.running("talker-uid").await;
    let mut frames = control.open_logs(LogsRequest { follow: true, ..request("talker") });
    let mut text = String::new();
    let mut deleted = false;
    loop {
        let frame = tokio::time::timeout(PATIENCE, frames.recv()).await.unwrap().unwrap();
        match frame.frame.unwrap() {
            stream_frame::Frame::Stdout(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            stream_frame::Frame::End(_) => break,
            other => panic!("{other:?}"),
        }
        if text.contains("line 20\n") && !deleted {
            control.delete("talker-uid", 30);
            deleted = true;
        }
    }
    let expected: String = (0..text.lines().count()).map(|n| format!("line {n}\n")).collect();
    assert_eq!(text, expected, "every line once, in order");
    control.gone("talker-uid").await;
    let (code, message) = control.logs(request("talker")).await.unwrap_err();
    assert_eq!((code, message.as_str()), (404, "pods \"talker\" not found"));
    host.finish().await;
}

/// KIA-TERM-004, KIA-TERM-006, KIA-TERM-007, KIA-RST-012.
async fn grace_ends_in_kill() {
    let (host, control) = led_host().await;
    control.put(&pod("stubborn", &["stubborn"], |_| {}));
    control.running("stubborn-uid").await;
    let tail = LogsRequest { tail_lines: Some(1), ..request("stubborn") };
    while control.logs(tail.clone()).await.unwrap() != "here to stay\n" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let deleted = control.delete("stubborn-uid", 1);
    let last = control.gone("stubborn-uid").await;
    let took = deleted.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&took), "{took:?}");
    let ended = last.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("Error")));
    assert_eq!(last.phase.as_deref(), Some("Failed"));
    host.finish().await;
}

async fn init_containers_and_volumes() {
    let (host, control) = led_host().await;
    let append = |name: &str| {
        serde_json::json!({"name": name, "image": crate::host::IMAGE,
            "command": ["/barque", "work", "append", "/data/file", name],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]})
    };
    control.put(&pod("initialised", &["show", "WHO"], |pod| {
        let spec = &mut pod["spec"];
        spec["volumes"] = serde_json::json!([{"name": "data", "emptyDir": {"medium": "Memory"}}]);
        spec["restartPolicy"] = "Never".into();
        spec["initContainers"] = serde_json::json!([append("first"), append("second")]);
        let main = &mut spec["containers"][0];
        main["env"] = serde_json::json!([
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "WHO", "value": "I am $(NAME)"}]);
    }));
    let uid = "initialised-uid";
    let done = |s: &PodStatus| s.phase.as_deref() == Some("Succeeded");
    let (_, status) = control.status(uid, "the pod has succeeded", done).await;
    let ended = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.message.as_deref(), Some("all shown"));
    let ip = status.pod_ip.clone().unwrap();
    let text = control.logs(request("initialised")).await.unwrap();
    assert!(
        text.starts_with("WHO=I am initialised\nhostname=initialised\n# Kubernetes-managed hosts file."),
        "{text}"
    );
    assert!(text.contains(&format!("{ip}\tinitialised\n")), "{text}");
    let second = LogsRequest { container: "second".into(), ..request("initialised") };
    assert_eq!(control.logs(second).await.unwrap(), "first\nsecond\n");
    let waiting = control.heard().statuses[uid].iter().any(|(_, s)| {
        let waiting = s.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.clone();
        waiting.and_then(|w| w.reason).as_deref() == Some("PodInitializing")
    });
    assert!(waiting, "containers wait while the pod is initialised");
    control.delete(uid, 30);
    control.gone(uid).await;
    host.finish().await;
}

async fn refusals_are_said() {
    let (host, control) = led_host().await;
    let image = |name: &str, image: &str, policy: &str| {
        pod(name, &["serve"], |pod| {
            pod["spec"]["containers"][0]["image"] = image.into();
            pod["spec"]["containers"][0]["imagePullPolicy"] = policy.into();
        })
    };
    control.put(&image("absent", "nowhere.example/x:1", "IfNotPresent"));
    control.put(&image("never", "nowhere.example/x:1", "Never"));
    control.put(&image("invalid", "Not An Image", "IfNotPresent"));
    control.put(&pod("blocky", &["serve"], |pod| {
        pod["spec"]["containers"][0]["volumeDevices"] =
            serde_json::json!([{"name": "disk", "devicePath": "/dev/disk"}]);
    }));
    control.put(&pod("lost", &["serve"], |pod| {
        pod["spec"]["containers"][0]["command"] = serde_json::json!(["/no/such/program"]);
    }));
    control.put(&pod("cloned", &["serve"], |pod| {
        pod["spec"]["volumes"] = serde_json::json!([{"name": "v", "gitRepo": {"repository": "x"}}]);
    }));
    let waits = |reason: &'static str| {
        move |s: &PodStatus| {
            let state = s.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap();
            state.waiting.as_ref().and_then(|w| w.reason.as_deref()) == Some(reason)
        }
    };
    for (uid, reason) in [
        ("absent-uid", "ErrImagePull"),
        ("absent-uid", "ImagePullBackOff"),
        ("never-uid", "ErrImageNeverPull"),
        ("invalid-uid", "InvalidImageName"),
        ("blocky-uid", "CreateContainerConfigError"),
        ("lost-uid", "RunContainerError"),
    ] {
        control.status(uid, reason, waits(reason)).await;
    }
    let (_, message) = control.logs(request("absent")).await.unwrap_err();
    assert!(message.starts_with("container \"c\" in pod \"absent\" is waiting to start: "), "{message}");
    for event in [
        "Warning Failed: Error: ErrImagePull",
        "Normal BackOff: Back-off pulling image \"nowhere.example/x:1\"",
        "Warning ErrImageNeverPull: Container image \"nowhere.example/x:1\" is not present with pull policy of Never",
        "Warning Failed: Error: block volume devices: not supported by this version of the node agent",
        "Warning FailedMount: MountVolume.SetUp failed for volume \"v\" : volumes of type gitRepo are not supported: \
         clone the repository in an init container into an emptyDir instead",
    ] {
        control.until(event, |h| h.said().contains(&event.to_owned()).then_some(())).await;
    }
    for uid in ["absent-uid", "never-uid", "invalid-uid", "blocky-uid", "lost-uid", "cloned-uid"] {
        control.delete(uid, 30);
        control.gone(uid).await;
    }
    host.finish().await;
}

async fn removal_has_no_grace() {
    let (host, control) = led_host().await;
    control.put(&pod("removed", &["stubborn"], |_| {}));
    control.running("removed-uid").await;
    let removed = Instant::now();
    control.remove("removed-uid");
    control.gone("removed-uid").await;
    assert!(removed.elapsed() < Duration::from_secs(5), "{:?}", removed.elapsed());
    host.finish().await;
}

async fn what_containers_use_is_told() {
    let (host, control) = led_host().await;
    control.put(&pod("busy", &["spin"], |_| {}));
    control.put(&pod("idle", &["serve"], |_| {}));
    control.running("busy-uid").await;
    control.running("idle-uid").await;
    let of = |usage: &proto::node::Usage, uid: &str| {
        let own = usage.pods.iter().find(|own| own.uid == uid)?;
        (own.window_ms >= 200).then(|| own.containers[0].clone())
    };
    // A whole core is more than it may get here.
    let (busy, idle, node) = control
        .until("what both use", |h| {
            let usage = h.usage.as_ref()?;
            let (busy, idle) = (of(usage, "busy-uid")?, of(usage, "idle-uid")?);
            (busy.cpu_nano > 100_000_000).then(|| (busy, idle, usage.clone()))
        })
        .await;
    assert!(idle.cpu_nano < busy.cpu_nano / 2, "{idle:?} {busy:?}");
    assert!(idle.memory_bytes > 100_000 && idle.memory_bytes < 64 << 20, "{idle:?}");
    assert!(node.cpu_nano >= busy.cpu_nano && node.memory_bytes > idle.memory_bytes, "{node:?}");
    assert_eq!((busy.name.as_str(), node.pods.len()), ("c", 2));
    control.delete("busy-uid", 0);
    control.gone("busy-uid").await;
    control.until("it is told no more", |h| of(h.usage.as_ref()?, "busy-uid").is_none().then_some(())).await;
    control.delete("idle-uid", 0);
    control.gone("idle-uid").await;
    host.finish().await;
}
