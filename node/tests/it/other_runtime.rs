//! The agent with another container runtime behind its CRI socket: this project's own server, and containerd where
//! the machine has it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::json;

use crate::Test;
use crate::containerd::{self, Containerd};
use crate::control::{Authority, Control};
use crate::cri::Server;
use crate::host::{Host, IMAGE, eventually, pod, run};
use crate::host_ports::get;
use crate::lifecycle::request;
use crate::registry::Registry;

pub(crate) const TESTS: &[Test] = &[
    ("other_runtime::a_pod_lives", || run(each(a_pod_lives))),
    ("other_runtime::containers_end_and_are_restarted", || run(each(containers_end_and_are_restarted))),
    ("other_runtime::agent_and_runtime_come_and_go", || run(each(agent_and_runtime_come_and_go))),
    ("other_runtime::a_sandbox_that_died_is_made_anew", || run(each(a_sandbox_that_died_is_made_anew))),
    ("other_runtime::host_ports_are_asked_of_it", || run(host_ports_are_asked_of_it())),
    ("other_runtime::long_logs_are_rotated", || run(each(long_logs_are_rotated))),
    ("other_runtime::what_it_cannot_do_is_told", || run(each(what_it_cannot_do_is_told))),
    ("other_runtime::one_that_is_away_is_told", || run(one_that_is_away_is_told())),
];

/// The runtime under test.
enum Other {
    Barque(Box<Server>),
    Containerd(Containerd),
}

struct Stage {
    host: Host,
    control: Control,
    other: Other,
    image: String,
    _registry: Registry,
}

impl Stage {
    async fn new(plugins: Option<std::path::PathBuf>) -> Self {
        let registry = Registry::start().await;
        let (other, socket, image) = match plugins {
            None => {
                let server = Server::start().await;
                let socket = server.socket().to_owned();
                (Other::Barque(Box::new(server)), socket, IMAGE.to_owned())
            }
            Some(plugins) => {
                registry.put_program("work:1", "1");
                let containerd = Containerd::start(&registry, &plugins).await;
                let socket = containerd.socket();
                (Other::Containerd(containerd), socket, registry.name("work:1"))
            }
        };
        let authority = Authority::new();
        let control = Control::start(&authority).await;
        let mut host = Host::new(&authority, &[&control]);
        host.config.container_runtime_endpoint = format!("unix://{}", socket.display());
        control.lead(1, &host.pod_cidr);
        host.start();
        Self { host, control, other, image, _registry: registry }
    }

    /// A pod of the image that this runtime has, or pulls.
    fn pod(&self, name: &str, work: &[&str], change: impl FnOnce(&mut serde_json::Value)) -> Pod {
        pod(name, work, |pod| {
            pod["spec"]["containers"][0]["image"] = self.image.clone().into();
            change(pod);
        })
    }

    async fn end(&self, name: &str) -> PodStatus {
        let uid = format!("{name}-uid");
        self.control.delete(&uid, 10);
        self.control.gone(&uid).await
    }

    async fn finish(self) {
        self.host.finish().await;
        match self.other {
            Other::Barque(server) => server.finish().await,
            Other::Containerd(containerd) => containerd.finish(),
        }
    }
}

/// Runs a test with every runtime that is here.
async fn each<F: Future<Output = ()>>(test: impl Fn(Stage) -> F) {
    test(Stage::new(None).await).await;
    match containerd::find() {
        Ok(plugins) => test(Stage::new(Some(plugins)).await).await,
        Err(why) => println!("skipped: containerd: {why}"),
    }
}

fn container(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

async fn logged(control: &Control, name: &str, text: &str) {
    let end = std::time::Instant::now() + crate::host::PATIENCE;
    loop {
        let log = control.logs(request(name)).await.unwrap_or_default();
        if log.contains(text) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{name} does not log {text:?}: {log:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_pod_lives(stage: Stage) {
    let control = &stage.control;
    control.give("ConfigMap", "words", json!({"greeting": "hello"}));
    let shared = stage.host.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let dir = shared.clone();
    control.put(&stage.pod("full", &["serve"], |pod| {
        let spec = &mut pod["spec"];
        let image = spec["containers"][0]["image"].clone();
        let append = |word: &str| json!(["/barque", "work", "append", "/host/order", word]);
        let mounts = json!([
            {"name": "host", "mountPath": "/host"}, {"name": "memory", "mountPath": "/memory"},
            {"name": "words", "mountPath": "/words"},
        ]);
        spec["volumes"] = json!([
            {"name": "host", "hostPath": {"path": dir}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "words", "configMap": {"name": "words"}},
        ]);
        spec["initContainers"] = json!([{"name": "i", "image": image, "command": append("init"),
            "volumeMounts": mounts}]);
        let c = &mut spec["containers"][0];
        c["volumeMounts"] = mounts;
        c["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
        c["lifecycle"] = json!({"postStart": {"exec": {"command": append("start")}},
            "preStop": {"exec": {"command": append("stop")}}});
        c["readinessProbe"] = json!({"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1});
        c["livenessProbe"] = json!({"exec": {"command": ["/barque", "work", "exists", "/words/greeting"]},
            "periodSeconds": 1});
    }));
    let (_, status) = control.running("full-uid").await;
    let ip: std::net::Ipv4Addr = status.pod_ip.as_deref().unwrap().parse().unwrap();
    assert_ne!(ip.octets()[..2], [10, 101], "the address is the runtime's to give: {ip}");
    eventually("it serves", || get(&format!("{ip}:8080")).is_some());
    logged(control, "full", "serving\n").await;
    let version = control.until("the node is known", |h| h.node.clone()).await;
    let annotations = version.metadata.annotations.unwrap();
    assert!(annotations["kubeadm.alpha.kubernetes.io/cri-socket"].starts_with("unix:///"));
    let version = version.status.unwrap().node_info.unwrap().container_runtime_version;
    assert!(version.contains("://"), "{version}");
    control
        .until("the node's status lists the runtime's images", |heard| {
            let images = heard.node_status.as_ref()?.images.clone()?;
            images
                .iter()
                .flat_map(|i| i.names.iter().flatten())
                .any(|n| n.ends_with(&stage.image))
                .then_some(())
        })
        .await;
    // Longer than the liveness probe's period: it has asked, and been answered.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let last = stage.end("full").await;
    let ended = container(&last).state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, container(&last).restart_count), (0, 0), "it was asked, not killed");
    let order = std::fs::read_to_string(shared.join("order")).unwrap();
    assert_eq!(order, "init\nstart\nstop\n");
    stage.finish().await;
}

async fn containers_end_and_are_restarted(stage: Stage) {
    let control = &stage.control;
    control.put(&stage.pod("fails", &["exit", "3"], |_| {}));
    let again = |s: &PodStatus| container(s).restart_count >= 2;
    let (_, status) = control.status("fails-uid", "restarts", again).await;
    let last = container(&status).last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    control.put(&stage.pod("absent", &["x"], |pod| {
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    }));
    let failed = |s: &PodStatus| s.phase.as_deref() == Some("Failed");
    let (_, status) = control.status("absent-uid", "it cannot be started", failed).await;
    let ended = container(&status).state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.reason.as_deref(), Some("StartError"), "{ended:?}");
    control.put(&stage.pod("greedy", &["hoard", "100"], |pod| {
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    }));
    let (_, status) = control.status("greedy-uid", "it is killed for want of memory", failed).await;
    let ended = container(&status).state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("OOMKilled")));
    for name in ["fails", "absent", "greedy"] {
        stage.end(name).await;
    }
    stage.finish().await;
}

async fn agent_and_runtime_come_and_go(mut stage: Stage) {
    let (_, before) = {
        stage.control.put(&stage.pod("stays", &["serve"], |_| {}));
        stage.control.running("stays-uid").await
    };
    logged(&stage.control, "stays", "serving\n").await;
    stage.host.stop().await;
    stage.control.hang_up();
    stage.control.heard().statuses.clear();
    stage.host.start();
    let (_, after) = stage.control.running("stays-uid").await;
    assert_eq!(container(&before).container_id, container(&after).container_id, "adopted");
    assert_eq!((container(&after).restart_count, &after.pod_ip), (0, &before.pod_ip));
    // The runtime goes away and comes back: what it runs goes on, and its pod says nothing else meanwhile.
    match &mut stage.other {
        Other::Barque(server) => server.stop().await,
        Other::Containerd(containerd) => containerd.stop(),
    }
    let ip = before.pod_ip.clone().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(get(&format!("{ip}:8080")).is_some(), "its container goes on without it");
    match &mut stage.other {
        Other::Barque(server) => server.begin().await,
        Other::Containerd(containerd) => containerd.begin().await,
    }
    stage.control.put(&stage.pod("next", &["serve"], |_| {}));
    stage.control.running("next-uid").await;
    let said = stage.control.heard().statuses["stays-uid"].clone();
    assert!(said.iter().all(|(_, s)| container(s).restart_count == 0), "{said:#?}");
    let (_, last) = said.last().unwrap();
    assert_eq!(container(last).container_id, container(&before).container_id);
    for name in ["stays", "next"] {
        let last = stage.end(name).await;
        assert_eq!(container(&last).state.clone().unwrap().terminated.unwrap().exit_code, 0);
    }
    stage.finish().await;
}

/// Its first process is killed behind everybody's back.
async fn a_sandbox_that_died_is_made_anew(stage: Stage) {
    let control = &stage.control;
    control.put(&stage.pod("struck", &["serve"], |_| {}));
    let (_, before) = control.running("struck-uid").await;
    match &stage.other {
        Other::Barque(server) => server.kill_pauses(),
        Other::Containerd(containerd) => containerd.kill_pauses(),
    }
    let anew = |s: &PodStatus| {
        crate::control::is_ready(s) && container(s).container_id != container(&before).container_id
    };
    control.status("struck-uid", "it runs in a new sandbox", anew).await;
    stage.end("struck").await;
    stage.finish().await;
}

async fn host_ports_are_asked_of_it() {
    let mut stage = Stage::new(None).await;
    stage.control.put(&stage.pod("web", &["serve"], |pod| {
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 18070}]);
    }));
    stage.control.running("web-uid").await;
    eventually("the port leads to it", || get("127.0.0.1:18070").is_some());
    let Other::Barque(server) = &mut stage.other else { unreachable!("asked for above") };
    server.stop().await;
    server.begin().await;
    assert!(get("127.0.0.1:18070").is_some(), "the server's restart changes nothing");
    stage.end("web").await;
    assert_eq!(get("127.0.0.1:18070"), None);
    stage.finish().await;
}

/// Runtimes behind CRI leave that to the agent. No line is lost.
async fn long_logs_are_rotated(stage: Stage) {
    const LINES: u32 = 300_000;
    let control = &stage.control;
    control.put(&stage.pod("verbose", &["flood", &LINES.to_string()], |_| {}));
    control.running("verbose-uid").await;
    logged(control, "verbose", &format!("line {}\n", LINES - 1)).await;
    let dir = stage.host.config.log_dir().join("pods/default_verbose_verbose-uid/c");
    let files = || std::fs::read_dir(&dir).into_iter().flatten().flatten().count();
    eventually("the log is rotated", || files() > 1);
    let text = control.logs(request("verbose")).await.unwrap();
    let mut lines = text.lines();
    assert!((0..LINES).all(|number| lines.next() == Some(&format!("line {number}"))), "a line is lost");
    stage.end("verbose").await;
    stage.finish().await;
}

async fn what_it_cannot_do_is_told(stage: Stage) {
    let control = &stage.control;
    control.put(&stage.pod("own-users", &["serve"], |pod| pod["spec"]["hostUsers"] = false.into()));
    let message = "Warning FailedCreatePodSandBox: Failed to create pod sandbox: \
                   the container runtime does not support user namespaces (hostUsers: false)";
    control.until(message, |h| h.said_of("own-users").iter().any(|s| s == message).then_some(())).await;
    stage.end("own-users").await;
    stage.finish().await;
}

/// A socket where nobody listens: the agent waits for it, and says so in the end; it can be stopped meanwhile.
async fn one_that_is_away_is_told() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    host.config.container_runtime_endpoint = "unix:///no/such.sock".to_owned();
    host.start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!host.has_ended(), "it waits");
    host.stop().await;
    host.assert_clean();
}
