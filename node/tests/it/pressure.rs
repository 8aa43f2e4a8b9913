//! A node that runs short of memory or disk, and pods that exceed their own storage limits: real memory, a real
//! small disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use node::images;
use serde_json::{Value, json};

use crate::Test;
use crate::control::{Authority, Control, Heard};
use crate::host::{Host, pod, run};

pub(crate) const TESTS: &[Test] = &[
    ("pressure::memory_is_taken_back_from_who_has_too_much", || {
        run(memory_is_taken_back_from_who_has_too_much());
    }),
    ("pressure::a_soft_threshold_leaves_time", || run(a_soft_threshold_leaves_time())),
    ("pressure::a_full_disk_costs_images_then_pods", || run(a_full_disk_costs_images_then_pods())),
    ("pressure::storage_limits_are_kept", || run(storage_limits_are_kept())),
];

/// A host whose agent looks often and does not start yet.
async fn watchful_host(change: impl FnOnce(&mut Host)) -> (Host, Control) {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    host.config.eviction_monitoring_interval = Duration::from_millis(100);
    host.config.eviction_pressure_transition_period = Duration::from_secs(4);
    host.config.eviction_hard = BTreeMap::new();
    change(&mut host);
    control.lead(1, &host.pod_cidr);
    (host, control)
}

fn is_under(heard: &Heard, condition: &str) -> Option<bool> {
    let conditions = heard.node_status.as_ref()?.conditions.as_ref()?;
    Some(conditions.iter().find(|c| c.type_ == condition)?.status == "True")
}

async fn under(control: &Control, condition: &str, wanted: bool) {
    let what = format!("{condition} is {wanted}");
    control.until(&what, |h| (is_under(h, condition)? == wanted).then_some(())).await;
}

fn with_request(name: &str, work: &[&str], memory: &str) -> Pod {
    pod(name, work, |pod| {
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
    })
}

fn has_failed(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed")
}

async fn failed(control: &Control, name: &str) -> PodStatus {
    control.status(&format!("{name}-uid"), &format!("{name} has failed"), has_failed).await.1
}

fn disruption(status: &PodStatus) -> Option<(String, String)> {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget")?;
    assert_eq!(found.status, "True");
    Some((found.reason.clone()?, found.message.clone()?))
}

async fn end(control: &Control, names: &[&str]) {
    for name in names {
        control.delete(&format!("{name}-uid"), 0);
    }
    for name in names {
        control.gone(&format!("{name}-uid")).await;
    }
}

async fn memory_is_taken_back_from_who_has_too_much() {
    let (mut host, control) = watchful_host(|host| {
        host.config.capacity.insert("memory".into(), "1500Mi".into());
        host.config.eviction_hard.insert("memory.available".into(), "700Mi".into());
    })
    .await;
    host.start();
    control.put(&with_request("modest", &["hoard", "20"], "100Mi"));
    let mut needed = pod("needed", &["hoard", "60"], |_| ());
    needed.spec.as_mut().unwrap().priority = Some(2_000_000_000);
    control.put(&needed);
    for name in ["modest", "needed"] {
        control.running(&format!("{name}-uid")).await;
    }
    let status = control.until("a status", |h| h.node_status.clone()).await;
    let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
    assert_eq!(capacity["memory"].0, "1536000Ki");
    assert_eq!(allocatable["memory"].0, "819200Ki", "what pods would be evicted for is not theirs");
    control.put(&pod("hog", &["hoard", "1000"], |_| ()));
    let status = failed(&control, "hog").await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let message = status.message.clone().unwrap();
    let begin = "The node was low on resource: memory. Threshold quantity: 700Mi, available: ";
    assert!(message.starts_with(begin), "{message}");
    assert!(message.contains("Container c was using "), "{message}");
    assert!(message.ends_with(", request is 0, has larger consumption of memory. "), "{message}");
    assert_eq!(disruption(&status), Some(("TerminationByKubelet".to_owned(), message.clone())));
    under(&control, "MemoryPressure", true).await;
    // Best-effort pods are not taken on meanwhile; others are.
    control.put(&pod("late", &["hoard", "1"], |_| ()));
    control.put(&with_request("asking", &["hoard", "1"], "10Mi"));
    let refused = failed(&control, "late").await;
    assert_eq!(refused.reason.as_deref(), Some("Evicted"));
    let message = "The node had condition: [MemoryPressure]. ";
    assert_eq!(refused.message, Some(format!("Pod was rejected: {message}")));
    assert_eq!(refused.container_statuses, None);
    control.running("asking-uid").await;
    under(&control, "MemoryPressure", false).await;
    control.put(&pod("later", &["hoard", "1"], |_| ()));
    control.running("later-uid").await;
    check_memory_events(&control, &host, message);
    for name in ["modest-uid", "needed-uid"] {
        let last = control.heard().statuses[name].last().unwrap().1.clone();
        assert_eq!(last.phase.as_deref(), Some("Running"), "{name}");
    }
    end(&control, &["modest", "needed", "hog", "late", "later", "asking"]).await;
    host.finish().await;
}

fn check_memory_events(control: &Control, host: &Host, refusal: &str) {
    let heard = control.heard();
    let name = &host.config.node_name;
    let of_node = heard.said_of(name);
    for told in [
        "Warning EvictionThresholdMet: Attempting to reclaim memory".to_owned(),
        format!("Normal NodeHasInsufficientMemory: Node {name} status is now: NodeHasInsufficientMemory"),
    ] {
        assert!(of_node.contains(&told), "{told}: {of_node:?}");
    }
    let sufficient = of_node.iter().filter(|told| told.contains("NodeHasSufficientMemory")).count();
    assert_eq!(sufficient, 2, "at the start and after the pressure: {of_node:?}");
    let evicted =
        heard.said_of("hog").into_iter().find(|told| told.starts_with("Warning Evicted: ")).unwrap();
    assert!(evicted.contains("low on resource: memory"), "{evicted}");
    assert!(heard.said_of("late").contains(&format!("Warning Evicted: {refusal}")));
}

async fn a_soft_threshold_leaves_time() {
    let (mut host, control) = watchful_host(|host| {
        host.config.capacity.insert("memory".into(), "1500Mi".into());
        // Only what all pods together may use counts below; it has the hard threshold's value.
        host.config.eviction_hard.insert("memory.available".into(), "1Mi".into());
        host.config.eviction_soft.insert("pid.available".into(), "100%".into());
        host.config.eviction_soft_grace_period.insert("pid.available".into(), "1s".into());
        host.config.eviction_max_pod_grace_period = 3;
    })
    .await;
    host.start();
    // The condition comes at once, and takes nothing new on; this one comes before the first look.
    under(&control, "PIDPressure", true).await;
    let mut needed = pod("needed", &["serve"], |_| ());
    needed.spec.as_mut().unwrap().priority = Some(2_000_000_000);
    control.put(&needed);
    control.running("needed-uid").await;
    control.put(&pod("refused", &["serve"], |_| ()));
    let refused = failed(&control, "refused").await;
    assert_eq!(refused.message.as_deref(), Some("Pod was rejected: The node had condition: [PIDPressure]. "));
    host.stop().await;
    host.config.eviction_soft.clear();
    host.config.eviction_soft_grace_period.clear();
    host.start();
    under(&control, "PIDPressure", false).await;
    control.put(&pod("slow", &["stubborn"], |_| ()));
    let (begun, _) = control.running("slow-uid").await;
    host.stop().await;
    host.config.eviction_soft.insert("pid.available".into(), "100%".into());
    host.config.eviction_soft_grace_period.insert("pid.available".into(), "1s".into());
    host.start();
    let (ended, status) = control.status("slow-uid", "slow has failed", has_failed).await;
    assert!(ended.duration_since(begun) >= Duration::from_secs(4), "{:?}", ended.duration_since(begun));
    let message = status.message.unwrap();
    assert!(message.starts_with("The node was low on resource: pids. Threshold quantity: "), "{message}");
    let heard = control.heard().statuses["needed-uid"].last().unwrap().1.clone();
    assert_eq!(heard.phase.as_deref(), Some("Running"), "critical pods stay");
    end(&control, &["needed", "refused", "slow"]).await;
    host.finish().await;
}

/// A small disk that goes with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let (kind, none) = (Some("tmpfs"), nix::mount::MsFlags::empty());
        nix::mount::mount(kind, at, kind, none, Some("size=700m,nr_inodes=100k")).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

fn available(at: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(at).unwrap();
    stat.blocks_available() * stat.fragment_size()
}

fn filler(name: &str, megabytes: &str) -> Pod {
    pod(name, &["fill", "/v/file", megabytes], |pod| {
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    })
}

async fn a_full_disk_costs_images_then_pods() {
    let mut small = None;
    let (mut host, control) = watchful_host(|host| {
        let content = host.dir.path().join("content");
        std::fs::write(&content, vec![7; 60 << 20]).unwrap();
        let layout = host.dir.path().join("unused");
        images::build_builtin(&content, "lab/unused:1.0", &layout).unwrap();
        host.config.image_archives = vec![layout];
        host.config.images.gc_minimum_age = Duration::ZERO;
        small = Some(SmallDisk::mount(&host.config.data_dir));
    })
    .await;
    let disk = host.config.data_dir.clone();
    host.start();
    control.until("the node is known", |h| h.node_status.clone()).await;
    host.stop().await;
    let threshold = available(&disk) - (30 << 20);
    host.config.eviction_hard.insert("nodefs.available".into(), threshold.to_string());
    host.start();
    let has_unused = |h: &Heard| {
        let images = h.node_status.as_ref()?.images.clone()?;
        Some(images.iter().flat_map(|i| i.names.clone().unwrap()).any(|name| name.contains("lab/unused")))
    };
    assert_eq!(has_unused(&control.heard()), Some(true));
    control.put(&filler("first", "60"));
    control.running("first-uid").await;
    control.until("the unused image is gone", |h| has_unused(h).filter(|has| !has)).await;
    under(&control, "DiskPressure", false).await;
    let last = control.heard().statuses["first-uid"].last().unwrap().1.clone();
    assert_eq!(last.phase.as_deref(), Some("Running"), "images were enough");
    control.put(&filler("second", "150"));
    let status = failed(&control, "second").await;
    let message = status.message.unwrap();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold "), "{message}");
    under(&control, "DiskPressure", true).await;
    let node = host.config.node_name.clone();
    let told = format!("Normal NodeHasDiskPressure: Node {node} status is now: NodeHasDiskPressure");
    control.until("it is told", |h| h.said_of(&node).contains(&told).then_some(())).await;
    // What the pod had filled is free, long before its object goes.
    under(&control, "DiskPressure", false).await;
    assert!(!disk.join("pods/second-uid/volumes").exists());
    assert!(available(&disk) > threshold);
    let last = control.heard().statuses["first-uid"].last().unwrap().1.clone();
    assert_eq!(last.phase.as_deref(), Some("Running"));
    end(&control, &["first", "second"]).await;
    host.stop().await;
    assert_eq!(std::fs::read_dir(disk.join("pods")).unwrap().count(), 0);
    drop(small);
    host.assert_clean();
}

async fn storage_limits_are_kept() {
    let (mut host, control) = watchful_host(|_| ()).await;
    host.start();
    let limited = |name: &str, path: &str, limits: Value, size: Value| {
        pod(name, &["fill", path, "20"], |pod| {
            pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": size}]);
            let containers = &mut pod["spec"]["containers"];
            containers[0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
            containers[0]["resources"]["limits"] = limits;
        })
    };
    let mut of_container = limited("container", "/file", json!({"ephemeral-storage": "5Mi"}), json!({}));
    let spec = of_container.spec.as_mut().unwrap();
    let mut other = spec.containers[0].clone();
    other.name = "roomy".into();
    other.command = Some(["/barque", "work", "serve"].map(String::from).into());
    let roomy = json!({"limits": {"ephemeral-storage": "1Gi"}});
    other.resources = serde_json::from_value(roomy).unwrap();
    spec.containers.push(other);
    for (pod, message) in [
        (
            limited("volume", "/v/file", json!({}), json!({"sizeLimit": "10Mi"})),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"10Mi\". ",
        ),
        (
            limited("whole", "/v/file", json!({"ephemeral-storage": "12Mi"}), json!({})),
            "Pod ephemeral local storage usage exceeds the total limit of containers 12Mi. ",
        ),
        (of_container, "Container c exceeded its local ephemeral storage limit \"5Mi\". "),
    ] {
        let name = pod.metadata.name.clone().unwrap();
        control.put(&pod);
        let status = failed(&control, &name).await;
        assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some(message)));
        assert_eq!(disruption(&status), None, "that is the pod's own fault");
        assert!(control.heard().said_of(&name).contains(&format!("Warning Evicted: {message}")));
    }
    let within =
        limited("within", "/v/file", json!({"ephemeral-storage": "50Mi"}), json!({"sizeLimit": "30Mi"}));
    control.put(&within);
    control.running("within-uid").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let last = control.heard().statuses["within-uid"].last().unwrap().1.clone();
    assert_eq!(last.phase.as_deref(), Some("Running"));
    end(&control, &["volume", "whole", "container", "within"]).await;
    host.finish().await;
}
