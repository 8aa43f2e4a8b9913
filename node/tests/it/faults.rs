//! Causes of failure on the node, each a real one: what the pod says, that it runs once the cause is gone, and
//! that nothing is left. (Each single step of a start fails in the runtime's own tests.)

use std::fs;
use std::io::Write as _;
use std::path::Path;

use k8s_openapi::api::core::v1::PodStatus;
use nix::mount::{MsFlags, mount, umount};

use crate::Test;
use crate::control::{Authority, Control};
use crate::host::{Host, pod, run};
use crate::lifecycle::{led_host, request};

pub(crate) const TESTS: &[Test] = &[
    ("faults::no_address_is_left", || run(no_address_is_left())),
    ("faults::the_bridge_is_taken_away", || run(the_bridge_is_taken_away())),
    ("faults::the_disk_is_full_of_something_else", || run(the_disk_is_full_of_something_else())),
    ("faults::the_disk_of_logs_is_full", || run(the_disk_of_logs_is_full())),
    ("faults::an_image_is_damaged", || run(an_image_is_damaged())),
    ("faults::the_runtimes_state_is_damaged", || run(the_runtimes_state_is_damaged())),
];

/// Waits for an event of a pod that begins and goes on so.
async fn said(control: &Control, pod: &str, begin: &str, word: &str) {
    let what = format!("{begin} .. {word}");
    let heard = |said: &String| said.starts_with(begin) && said.contains(word);
    control.until(&what, |h| h.said_of(pod).iter().any(heard).then_some(())).await;
}

fn small_disk(at: &Path, options: &str) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

/// Fills a disk to the last byte.
fn fill(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    for chunk in [4096, 512, 1] {
        let bytes = vec![0; chunk];
        while file.write_all(&bytes).is_ok() {}
    }
}

async fn end(control: &Control, uids: &[&str]) {
    for uid in uids {
        control.delete(uid, 0);
        control.gone(uid).await;
    }
}

async fn no_address_is_left() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    // Network, gateway, one address, broadcast.
    control.lead(1, &host.pod_cidr.replace("/24", "/30"));
    host.start();
    control.put(&pod("first", &["serve"], |_| {}));
    control.running("first-uid").await;
    control.put(&pod("second", &["serve"], |_| {}));
    let begin = "Warning FailedCreatePodSandBox: Failed to create pod sandbox: no address is left in ";
    said(&control, "second", begin, "/30").await;
    let status = control.heard().statuses["second-uid"].last().unwrap().1.clone();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    end(&control, &["first-uid"]).await;
    control.running("second-uid").await;
    end(&control, &["second-uid"]).await;
    host.finish().await;
}

async fn the_bridge_is_taken_away() {
    let (host, control) = led_host().await;
    control.put(&pod("before", &["serve"], |_| {}));
    control.running("before-uid").await;
    runtime::net::Netlink::open().unwrap().delete_link(&host.config.bridge_name).unwrap();
    control.put(&pod("after", &["serve"], |_| {}));
    let (_, status) = control.running("after-uid").await;
    let address = format!("{}:8080", status.pod_ip.unwrap());
    let answers = || std::net::TcpStream::connect(&address).is_ok();
    crate::host::eventually("the pod is reached over the new bridge", answers);
    end(&control, &["before-uid", "after-uid"]).await;
    host.finish().await;
}

async fn the_disk_is_full_of_something_else() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    let pods = host.dir.path().join("data/pods");
    small_disk(&pods, "size=512k");
    let filler = pods.parent().unwrap().join("pods").join("filler");
    control.lead(1, &host.pod_cidr);
    host.start();
    control.until("the node is known", |h| h.node_status.clone()).await;
    fill(&filler);
    control.put(&pod("squeezed", &["serve"], |_| {}));
    let begin = "Warning FailedCreatePodSandBox: Failed to create pod sandbox: ";
    said(&control, "squeezed", begin, "No space left on device").await;
    fs::remove_file(&filler).unwrap();
    control.running("squeezed-uid").await;
    end(&control, &["squeezed-uid"]).await;
    host.stop().await;
    umount(&pods).unwrap();
    host.assert_clean();
}

/// The container goes on, and ends as it would; what was logged before can be read.
async fn the_disk_of_logs_is_full() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    let logs = host.dir.path().join("logs");
    small_disk(&logs, "size=128k");
    host.config.log_dir = Some(logs.clone());
    control.lead(1, &host.pod_cidr);
    host.start();
    control.put(&pod("verbose", &["count-to", "20000"], |pod| pod["spec"]["restartPolicy"] = "Never".into()));
    let over = |s: &PodStatus| s.phase.as_deref() == Some("Failed");
    let (_, status) = control.status("verbose-uid", "its end", over).await;
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (1, Some("Error")));
    let text = control.logs(request("verbose")).await.unwrap();
    assert!(text.starts_with("line 0\nline 1\n"), "{text:.100}");
    end(&control, &["verbose-uid"]).await;
    host.stop().await;
    umount(&logs).unwrap();
    host.assert_clean();
}

async fn an_image_is_damaged() {
    let (host, control) = led_host().await;
    // An image that is not whole when it is first looked at counts as absent; this one was seen whole.
    control.put(&pod("before", &["serve"], |_| {}));
    control.running("before-uid").await;
    let layers = host.dir.path().join("data/images/layers");
    let away = host.dir.path().join("away");
    fs::rename(&layers, &away).unwrap();
    control.put(&pod("imageless", &["serve"], |_| {}));
    said(&control, "imageless", "Warning Failed: Error: ", "no such file or directory").await;
    fs::rename(&away, &layers).unwrap();
    control.running("imageless-uid").await;
    end(&control, &["before-uid", "imageless-uid"]).await;
    host.finish().await;
}

async fn the_runtimes_state_is_damaged() {
    let (mut host, control) = led_host().await;
    for name in ["struck", "spared"] {
        control.put(&pod(name, &["serve"], |_| {}));
        control.running(&format!("{name}-uid")).await;
    }
    let (_, before) = control.running("spared-uid").await;
    host.stop().await;
    let bundles = fs::read_dir(host.dir.path().join("run/runtime/containers")).unwrap();
    let struck = |path: &Path| fs::read_to_string(path).unwrap().contains("struck-uid");
    let mut plans = bundles.map(|entry| entry.unwrap().path().join("plan.json"));
    fs::write(plans.find(|path| struck(path)).unwrap(), "{\"spec\":").unwrap();
    control.heard().statuses.clear();
    host.start();
    let (_, after) = control.running("spared-uid").await;
    assert_eq!(
        before.container_statuses.unwrap()[0].container_id,
        after.container_statuses.unwrap()[0].container_id
    );
    control.running("struck-uid").await;
    end(&control, &["struck-uid", "spared-uid"]).await;
    host.finish().await;
}
