//! Images of pods: policies, failures that heal, private registries, the order of pulls.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use proto::node::{ObjectChange, ObjectIndex, ObjectKey, to_node};
use serde_json::json;

use std::time::Duration;

use crate::Test;
use crate::control::{Authority, Control};
use crate::host::{Host, IMAGE, pod, run};
use crate::lifecycle::led_host;
use crate::registry::{Guard, Registry, docker_config, layer, noise};

pub(crate) const TESTS: &[Test] = &[
    ("pull_policies::a_registry_that_was_away_comes_back", || run(a_registry_that_was_away_comes_back())),
    ("pull_policies::always_asks_at_every_start", || run(always_asks_at_every_start())),
    ("pull_policies::images_are_pulled_when_their_turn_comes", || run(images_are_pulled_in_turn())),
    ("pull_policies::an_agent_killed_while_pulling_goes_on", || run(an_agent_killed_while_pulling_goes_on())),
    ("pull_policies::unused_images_go_when_the_disk_fills", || run(unused_images_go_when_the_disk_fills())),
    ("pull_policies::private_images_wait_for_their_secret", || run(private_images_wait_for_their_secret())),
];

fn status_of<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    status.container_statuses.iter().flatten().find(|c| c.name == name)
}

fn waits(name: &'static str, reason: &'static str) -> impl Fn(&PodStatus) -> bool {
    move |status| {
        let state = status_of(status, name).and_then(|c| c.state.as_ref()?.waiting.clone());
        state.and_then(|w| w.reason).as_deref() == Some(reason)
    }
}

fn runs(name: &'static str) -> impl Fn(&PodStatus) -> bool {
    move |status| {
        status_of(status, name).is_some_and(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
    }
}

async fn said(control: &Control, text: &str) -> String {
    let find = |h: &crate::control::Heard| h.said().into_iter().find(|said| said.contains(text));
    control.until(text, find).await
}

/// KIA-IMG-004, KIA-IMG-010, KIA-IMG-011, KIA-RST-015, KIA-POD-033.
async fn a_registry_that_was_away_comes_back() {
    let registry = Registry::start().await;
    let image = registry.name("team/app:1");
    let digest = registry.put_program("team/app:1", "1");
    registry.stop().await;
    let (host, control) = led_host().await;
    control.put(&pod("away", &["serve"], |pod| {
        pod["spec"]["containers"][0]["image"] = image.as_str().into();
        let beside = json!({"name": "beside", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                            "command": ["/barque", "work", "stubborn"]});
        pod["spec"]["containers"].as_array_mut().unwrap().push(beside);
        pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    }));
    let (_, status) = control.status("away-uid", "ErrImagePull", waits("c", "ErrImagePull")).await;
    let message = status_of(&status, "c").unwrap().state.clone().unwrap().waiting.unwrap().message.unwrap();
    let begin = format!("failed to pull image \"{image}\": failed to resolve reference \"{image}\": ");
    assert!(message.starts_with(&begin) && message.contains("refused"), "{message}");
    let (_, status) = control.status("away-uid", "ImagePullBackOff", waits("c", "ImagePullBackOff")).await;
    let message = status_of(&status, "c").unwrap().state.clone().unwrap().waiting.unwrap().message.unwrap();
    let begin = format!("Back-off pulling image \"{image}\": ErrImagePull: failed to pull image");
    assert!(message.starts_with(&begin), "{message}");
    control.status("away-uid", "its sibling runs", runs("beside")).await;
    registry.restart().await;
    let (_, status) = control.status("away-uid", "it runs", runs("c")).await;
    assert_eq!(status_of(&status, "c").unwrap().image_id, format!("{}/team/app@{digest}", registry.address));
    for event in [
        format!("Normal Pulling: Pulling image \"{image}\""),
        format!("Warning Failed: Failed to pull image \"{image}\": failed to pull image"),
        "Warning Failed: Error: ErrImagePull".to_owned(),
        format!("Normal BackOff: Back-off pulling image \"{image}\""),
        "Warning Failed: Error: ImagePullBackOff".to_owned(),
    ] {
        said(&control, &event).await;
    }
    let pulled = said(&control, &format!("Normal Pulled: Successfully pulled image \"{image}\" in ")).await;
    assert!(pulled.contains("s including waiting). Image size: ") && pulled.ends_with(" bytes."), "{pulled}");
    let listed = |h: &crate::control::Heard| {
        let images = h.node_status.as_ref()?.images.as_ref()?;
        let names = images.iter().find_map(|i| i.names.as_ref().filter(|n| n.contains(&image)));
        names.cloned()
    };
    let names = control.until("the node lists it", listed).await;
    assert_eq!(names, [format!("{}/team/app@{digest}", registry.address), image.clone()]);
    control.delete("away-uid", 0);
    control.gone("away-uid").await;
    host.finish().await;
}

/// KIA-IMG-002, KIA-IMG-006, KIA-IMG-009.
async fn always_asks_at_every_start() {
    let registry = Registry::start().await;
    let (image, first) = (registry.name("app:latest"), registry.put_program("app:latest", "1"));
    let (host, control) = led_host().await;
    let with = |name: &str, policy: &str| {
        pod(name, &["sleep", "300"], |pod| {
            pod["spec"]["containers"][0]["image"] = image.as_str().into();
            pod["spec"]["containers"][0]["imagePullPolicy"] = policy.into();
        })
    };
    control.put(&with("asks", "Always"));
    let of = |digest: String| {
        move |s: &PodStatus| {
            let container = &s.container_statuses.as_ref().unwrap()[0];
            container.image_id.ends_with(&digest) && container.restart_count > 0
        }
    };
    control.status("asks-uid", "the first image", of(first)).await;
    let blobs = registry.count("GET /v2/app/blobs");
    let second = registry.put_program("app:latest", "2");
    control.status("asks-uid", "the second image", of(second)).await;
    assert_eq!(registry.count("GET /v2/app/blobs"), blobs + 1, "only the new configuration was fetched");
    control.put(&with("keeps", "IfNotPresent"));
    control.put(&with("never", "Never"));
    control.running("keeps-uid").await;
    control.running("never-uid").await;
    let asked = registry.state().asked.len();
    registry.stop().await;
    // Without its registry the one does not start again, though the image is here; the others do.
    control.status("asks-uid", "the registry is missed", waits("c", "ErrImagePull")).await;
    for uid in ["keeps-uid", "never-uid"] {
        let restarts = |s: &PodStatus| s.container_statuses.as_ref().unwrap()[0].restart_count;
        let before = control.heard().statuses[uid].last().map_or(0, |(_, s)| restarts(s));
        control.status(uid, "a restart", |s| restarts(s) > before + 1 && runs("c")(s)).await;
    }
    registry.restart().await;
    control.until("it asks again", |_| (registry.state().asked.len() > asked).then_some(())).await;
    control.status("asks-uid", "it runs again", runs("c")).await;
    for uid in ["asks-uid", "keeps-uid", "never-uid"] {
        control.delete(uid, 0);
        control.gone(uid).await;
    }
    host.finish().await;
}

/// KIA-INIT-006, KIA-INIT-007, KIA-INIT-010, KIA-IMG-005.
async fn images_are_pulled_in_turn() {
    let registry = Registry::start().await;
    registry.put_program("main:1", "1");
    let (host, control) = led_host().await;
    let init = |name: &str| {
        json!({"name": name, "image": registry.name(&format!("{name}:1")), "imagePullPolicy": "Always",
               "command": ["/barque", "work", "sleep", "300"]})
    };
    control.put(&pod("turns", &["serve"], |pod| {
        pod["spec"]["containers"][0]["image"] = registry.name("main:1").into();
        pod["spec"]["initContainers"] = json!([init("one"), init("two")]);
    }));
    let failing = |s: &PodStatus| {
        let init = s.init_container_statuses.iter().flatten().find(|c| c.name == "one");
        let waiting = init.and_then(|c| c.state.as_ref()?.waiting.clone());
        waiting.and_then(|w| w.reason).as_deref() == Some("ImagePullBackOff")
    };
    control.status("turns-uid", "the first image is not there", failing).await;
    assert_eq!(registry.count("/v2/two") + registry.count("/v2/main"), 0, "nobody asked for the others");
    // Under the same tag it appears, and the pod goes on by itself.
    registry.put_program("two:1", "1");
    registry.put_program("one:1", "1");
    control.running("turns-uid").await;
    let said = control.heard().said();
    let order: Vec<&str> = ["one", "two", "main"]
        .iter()
        .flat_map(|name| {
            let text = format!("Successfully pulled image \"{}", registry.name(name));
            said.iter().position(|s| s.contains(&text)).map(|at| (at, *name))
        })
        .map(|(_, name)| name)
        .collect();
    assert_eq!(order, ["one", "two", "main"]);
    let at = |text: &str| {
        said.iter().position(|s| s.contains(text)).unwrap_or_else(|| panic!("{text}: {said:#?}"))
    };
    assert!(at("Started container one") < at(&format!("Pulling image \"{}", registry.name("two"))));
    assert!(at("Started container two") < at(&format!("Pulling image \"{}", registry.name("main"))));
    // Between the last init container and the main image its status says so.
    let initializing = control.heard().statuses["turns-uid"].iter().any(|(_, s)| {
        let done = s
            .init_container_statuses
            .iter()
            .flatten()
            .all(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some()));
        done && waits("c", "PodInitializing")(s)
    });
    assert!(initializing);
    control.delete("turns-uid", 0);
    control.gone("turns-uid").await;
    host.finish().await;
}

/// KIA-IMG-008, KIA-FWD-013.
async fn private_images_wait_for_their_secret() {
    let registry = Registry::start().await;
    registry.put_program("private/app:1", "1");
    registry.state().guard = Guard::Token;
    let (host, control) = led_host().await;
    control.say(to_node::Message::ObjectIndex(ObjectIndex { epoch: 1, objects: Vec::new() }));
    control.put(&pod("private", &["serve"], |pod| {
        pod["spec"]["containers"][0]["image"] = registry.name("private/app:1").into();
        pod["spec"]["imagePullSecrets"] = json!([{"name": "regcred"}]);
    }));
    control.status("private-uid", "refused", waits("c", "ErrImagePull")).await;
    said(
        &control,
        "Warning FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (regcred)",
    )
    .await;
    said(&control, "a private image needs imagePullSecrets").await;
    let secret = {
        use base64::Engine as _;
        let text = docker_config(&[&registry.address.to_string()]);
        let data = base64::engine::general_purpose::STANDARD.encode(text);
        json!({"metadata": {"name": "regcred", "namespace": "default", "resourceVersion": "7"},
               "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": data}})
    };
    let key = ObjectKey { kind: "Secret".into(), namespace: "default".into(), name: "regcred".into() };
    let change = ObjectChange { epoch: 1, key: Some(key), object_json: secret.to_string().into() };
    control.say(to_node::Message::ObjectChange(change));
    control.running("private-uid").await;
    let told = control.heard().said().join("\n");
    assert!(!told.contains("sesame"), "no event tells a password");
    control.delete("private-uid", 0);
    control.gone("private-uid").await;
    host.finish().await;
}

async fn an_agent_killed_while_pulling_goes_on() {
    let registry = Registry::start().await;
    let digest = registry.put_program("app:1", "1");
    registry.state().pause = Duration::from_millis(10);
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    control.lead(1, &host.pod_cidr);
    let agent = host.spawn();
    control.until("a node", |h| h.node.clone()).await;
    control.put(&pod("pulled", &["serve"], |pod| {
        pod["spec"]["containers"][0]["image"] = registry.name("app:1").into();
    }));
    let enough = |_: &crate::control::Heard| (registry.state().sent > 4 << 20).then_some(());
    control.until("some of the image", enough).await;
    drop(agent);
    registry.state().pause = Duration::ZERO;
    host.start();
    let (_, status) = control.running("pulled-uid").await;
    assert!(status_of(&status, "c").unwrap().image_id.ends_with(&digest));
    assert!(registry.count("bytes=") >= 1, "it went on where the other had come to");
    let images = host.config.data_dir.join("images");
    for dir in ["ingest", "partial"] {
        assert_eq!(std::fs::read_dir(images.join(dir)).unwrap().count(), 0, "left in {dir}");
    }
    control.delete("pulled-uid", 0);
    control.gone("pulled-uid").await;
    host.finish().await;
}

async fn unused_images_go_when_the_disk_fills() {
    let registry = Registry::start().await;
    registry.put_program("used:1", "1");
    registry.put_image("spare:1", &[layer(&[("f", &noise(10_000))])], json!({}));
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    // Whatever the disk holds is too much.
    let settings = &mut host.config.images;
    (settings.gc_high_threshold_percent, settings.gc_low_threshold_percent) = (1, 0);
    settings.gc_minimum_age = Duration::ZERO;
    settings.gc_interval = Duration::from_millis(500);
    control.lead(1, &host.pod_cidr);
    host.start();
    for name in ["used", "spare"] {
        control.put(&pod(name, &["serve"], |pod| {
            pod["spec"]["containers"][0]["image"] = registry.name(&format!("{name}:1")).into();
            pod["spec"]["restartPolicy"] = "Never".into();
        }));
    }
    control.running("used-uid").await;
    // An image without a program: its pod ends, is deleted, and leaves the image to nobody.
    said(&control, &format!("Successfully pulled image \"{}", registry.name("spare"))).await;
    control.delete("spare-uid", 0);
    control.gone("spare-uid").await;
    said(&control, "Warning FreeDiskSpaceFailed: Failed to garbage collect required amount of images.").await;
    let (used, spare) = (registry.name("used:1"), registry.name("spare:1"));
    let names = |h: &crate::control::Heard| -> Option<Vec<String>> {
        let images = h.node_status.as_ref()?.images.as_ref()?;
        Some(images.iter().flat_map(|i| i.names.clone().unwrap_or_default()).collect())
    };
    let gone = |h: &crate::control::Heard| names(h).filter(|n| n.contains(&used) && !n.contains(&spare));
    control.until("the unused image is gone, the used one is not", gone).await;
    control.delete("used-uid", 0);
    control.gone("used-uid").await;
    host.finish().await;
}
