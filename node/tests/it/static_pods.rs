//! Pods from files of the node: with and without a control plane, shown by mirror pods, followed when the files
//! change.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use proto::node::LogsRequest;

use crate::Test;
use crate::control::{Authority, Control, is_ready};
use crate::host::{Host, IMAGE, eventually, pod, run};

pub(crate) const TESTS: &[Test] = &[
    ("static_pods::they_run_without_a_control_plane", || run(they_run_without_a_control_plane())),
    ("static_pods::the_api_shows_them", || run(the_api_shows_them())),
    ("static_pods::they_follow_their_files", || run(they_follow_their_files())),
];

fn manifest(name: &str, work: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  hostNetwork: true\n  \
         terminationGracePeriodSeconds: 3\n  \
         containers:\n  - name: c\n    image: {IMAGE}\n    command: [/barque, work, {work}]\n"
    )
}

/// A host with an empty directory of manifests.
async fn host() -> (Host, Control, PathBuf) {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    let dir = host.dir.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    host.config.static_pod_path = Some(dir.clone());
    (host, control, dir)
}

/// The mirror of a static pod, once it is there.
async fn mirror(control: &Control, name: &str) -> Pod {
    control.until(&format!("{name} is shown"), |h| h.named(name)).await
}

fn hash(pod: &Pod) -> String {
    pod.metadata.annotations.as_ref().unwrap()["kubernetes.io/config.mirror"].clone()
}

fn container(status: &PodStatus) -> String {
    status.container_statuses.as_ref().unwrap()[0].container_id.clone().unwrap()
}

async fn they_run_without_a_control_plane() {
    let (mut host, control, dir) = host().await;
    let replica = host.config.control_addresses.clone();
    // Nobody listens there: the node cannot even join.
    host.config.control_addresses = vec!["127.0.0.1:1".parse().unwrap()];
    fs::write(dir.join("alone.yaml"), manifest("alone", "environment, NONE")).unwrap();
    host.start();
    eventually("it runs", || host.containers() == 1);
    host.stop().await;
    assert_eq!(host.containers(), 1, "as any pod it goes on without its agent");
    host.config.control_addresses = replica;
    control.lead(1, &host.pod_cidr);
    host.start();
    let name = format!("alone-{}", host.config.node_name);
    let shown = mirror(&control, &name).await;
    let (_, status) = control.status(&hash(&shown), "it is told", is_ready).await;
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0, "the same container");
    assert_eq!(host.containers(), 1);
    fs::remove_file(dir.join("alone.yaml")).unwrap();
    control.until("it is shown no more", |h| h.named(&name).is_none().then_some(())).await;
    host.finish().await;
}

async fn the_api_shows_them() {
    let (mut host, control, dir) = host().await;
    control.lead(1, &host.pod_cidr);
    fs::write(dir.join("web.yaml"), manifest("web", "count, '50'")).unwrap();
    host.start();
    let node = host.config.node_name.clone();
    let name = format!("web-{node}");
    let shown = mirror(&control, &name).await;
    let uid = hash(&shown);
    let annotations = shown.metadata.annotations.clone().unwrap();
    assert_eq!(annotations["kubernetes.io/config.hash"], uid);
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert!(annotations.contains_key("kubernetes.io/config.seen"));
    let spec = shown.spec.clone().unwrap();
    assert_eq!((spec.node_name, spec.service_account_name), (Some(node), None));
    assert_eq!(shown.metadata.labels.unwrap()["app"], "web");
    let (_, status) = control.status(&uid, "it runs", is_ready).await;
    let request = LogsRequest {
        namespace: "default".into(),
        pod: name.clone(),
        pod_uid: shown.metadata.uid.clone().unwrap(),
        container: "c".into(),
        ..LogsRequest::default()
    };
    assert!(control.logs(request).await.unwrap().contains("line 0"), "by the object's own uid");

    // Who deletes the object sees it come back; what it shows has not noticed.
    let object = shown.metadata.uid.unwrap();
    let told = control.heard().statuses[&uid].len();
    control.delete(&object, 30);
    let other =
        |h: &crate::control::Heard| h.named(&name).filter(|p| p.metadata.uid.as_ref() != Some(&object));
    let again = control.until("it comes back", other).await;
    assert_eq!(hash(&again), uid);
    let retold = |h: &crate::control::Heard| h.statuses[&uid].get(told).map(|(_, status)| status.clone());
    let last = control.until("its status is told again", retold).await;
    assert_eq!(container(&last), container(&status));
    // An object that vanishes without a word, and one that shows nothing.
    control.remove(again.metadata.uid.as_deref().unwrap());
    mirror(&control, &name).await;
    let mut stray = again.clone();
    stray.metadata.name = Some("stray".into());
    stray.metadata.uid = Some("stray-uid".into());
    control.put(&stray);
    control.until("the stray is removed", |h| h.named("stray").is_none().then_some(())).await;
    assert_eq!(host.containers(), 1);
    // An object that calls itself static is not: no file of the node's ever ends it.
    let from_file = serde_json::json!({"kubernetes.io/config.source": "file"});
    control.put(&pod("pretender", &["serve"], |pod| pod["metadata"]["annotations"] = from_file));
    control.status("pretender-uid", "it runs as any other", is_ready).await;
    host.stop().await;
    host.start();
    let other = dir.join("other.yaml");
    fs::write(&other, manifest("other", "environment, NONE")).unwrap();
    mirror(&control, &format!("other-{}", host.config.node_name)).await;
    eventually("all three run", || host.containers() == 3);
    control.delete("pretender-uid", 0);
    control.gone("pretender-uid").await;
    fs::remove_file(other).unwrap();
    fs::remove_file(dir.join("web.yaml")).unwrap();
    let other = format!("other-{}", host.config.node_name);
    control.until("the other is shown no more", |h| h.named(&other).is_none().then_some(())).await;
    control.until("it is shown no more", |h| h.named(&name).is_none().then_some(())).await;
    host.finish().await;
}

async fn they_follow_their_files() {
    let (mut host, control, dir) = host().await;
    // The kernel's word is what is waited for.
    host.config.file_check_frequency = Duration::from_secs(3600);
    control.lead(1, &host.pod_cidr);
    host.start();
    control.until("the node is known", |h| h.node_status.clone()).await;
    let file = dir.join("app.yaml");
    fs::write(&file, manifest("app", "serve-on")).unwrap();
    let name = format!("app-{}", host.config.node_name);
    let first = hash(&mirror(&control, &name).await);
    control.status(&first, "it runs", is_ready).await;
    // Half a manifest changes nothing.
    fs::write(&file, "apiVersion: v1\nkind: Po").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!control.heard().terminated.contains_key(&first));
    assert_eq!(host.containers(), 1);
    // Another content is another pod, which waits for the end of the first.
    let mut next = manifest("app", "environment, NONE");
    fs::write(&file, &next).unwrap();
    let changed = |h: &crate::control::Heard| h.named(&name).map(|p| hash(&p)).filter(|h| *h != first);
    // The first does not obey; it has some seconds, as it says.
    control
        .until("it is asked to end", |h| {
            h.events
                .iter()
                .any(|e| e.reason == "Killing" && e.regarding.as_ref().is_some_and(|r| r.uid == first))
                .then_some(())
        })
        .await;
    assert_eq!(host.containers(), 1, "the second waits");
    let second = control.until("the second is shown", changed).await;
    control.status(&second, "the second runs", is_ready).await;
    assert!(control.heard().terminated.contains_key(&first));
    // Replaced by a rename, as editors do.
    next = next.replace("NONE", "OTHER");
    fs::write(dir.join(".app.tmp"), &next).unwrap();
    fs::rename(dir.join(".app.tmp"), &file).unwrap();
    let third = |h: &crate::control::Heard| h.named(&name).map(|p| hash(&p)).filter(|h| *h != second);
    let third = control.until("the third is shown", third).await;
    control.status(&third, "the third runs", is_ready).await;
    // One file in place of a directory: what is not in it ends.
    host.stop().await;
    let single = dir.join("single.json");
    let json: serde_json::Value = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "single"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "image": IMAGE, "command": ["/barque", "work", "environment", "NONE"]}]},
    });
    fs::write(&single, json.to_string()).unwrap();
    host.config.static_pod_path = Some(single.clone());
    host.start();
    let single_name = format!("single-{}", host.config.node_name);
    mirror(&control, &single_name).await;
    control.until("the third is gone", |h| h.named(&name).is_none().then_some(())).await;
    fs::remove_file(single).unwrap();
    control.until("nothing is left", |h| h.named(&single_name).is_none().then_some(())).await;
    host.finish().await;
}
