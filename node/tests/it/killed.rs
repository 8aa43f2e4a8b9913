//! The agent dies before each of its own steps, one after the other: files, mounts, processes, messages to the
//! kernel's network. Its successor brings the pod to a truthful state, ends it when asked, and nothing is left.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::json;

use crate::Test;
use crate::control::{Authority, Control, Heard, is_ready};
use crate::host::{AgentProcess, Host, PATIENCE, eventually, pod, run};
use crate::registry::{Registry, layer};
use crate::tracer::Traced;

pub(crate) const TESTS: &[Test] =
    &[("killed::the_agent_may_die_before_any_step", || run(the_agent_may_die_before_any_step()))];

/// A step of so many is taken, unless all are asked for.
const STRIDE: usize = 9;
/// `all`: every step, which takes minutes. A number: that step alone.
const STEPS_ENV: &str = "BARQUE_FAULTS";

/// A pod with everything that the agent makes itself: an image that is pulled, volumes of files and of memory, an
/// init container, a hook, a port of the host.
fn rich(name: &str, image: &str) -> Pod {
    pod(name, &["serve"], |pod| {
        let spec = &mut pod["spec"];
        spec["volumes"] = json!([
            {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "words", "configMap": {"name": "words"}}, {"name": "key", "secret": {"secretName": "key"}},
        ]);
        let mounts = json!([
            {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
            {"name": "words", "mountPath": "/words"}, {"name": "key", "mountPath": "/key"},
        ]);
        let append = json!(["/barque", "work", "append", "/disk/order", "x"]);
        spec["initContainers"] =
            json!([{"name": "i", "image": image, "command": append, "volumeMounts": mounts}]);
        let c = &mut spec["containers"][0];
        c["image"] = image.into();
        c["volumeMounts"] = mounts;
        c["ports"] = json!([{"containerPort": 8080, "hostPort": 18060}]);
        // Ready means that it takes signals: as pid 1 it would not notice TERM before.
        c["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
        c["lifecycle"] = json!({"preStop": {"exec": {"command": append}}});
    })
}

struct Stage {
    host: Host,
    control: Control,
    registry: Registry,
}

/// What came of one life of a pod.
struct Life {
    steps: Vec<String>,
    died: bool,
}

impl Stage {
    fn dir(&self) -> &Path {
        self.host.dir.path()
    }

    /// An image that nobody has yet: its program's layer is known, a small one is new.
    fn image(&self, round: usize) -> String {
        let name = format!("work:{round}");
        let config = json!({"Entrypoint": ["/barque", "work"]});
        self.registry.put_program_with(&name, &[layer(&[("round", name.as_bytes())])], config);
        self.registry.name(&name)
    }

    /// A pod's life under an agent that dies at a step, and the rest of it under another.
    async fn live(&self, round: usize, at: usize) -> Life {
        let (name, image) = (format!("victim{round}"), self.image(round));
        let uid = format!("{name}-uid");
        let is_dead = || Traced::is_dead(self.dir());
        let traced = Traced::spawn(self.dir(), at);
        self.control.put(&rich(&name, &image));
        let runs = |h: &Heard| h.statuses.get(&uid).is_some_and(|s| s.iter().any(|(_, s)| is_ready(s)));
        let ready = |h: &Heard| (runs(h) || is_dead()).then_some(());
        self.control.until("the pod runs, or the agent is dead", ready).await;
        let mut asked = false;
        if !is_dead() {
            self.control.delete(&uid, 10);
            asked = true;
            let gone = || self.control.heard().terminated.contains_key(&uid);
            until("the pod is gone, or the agent is dead", || gone() || is_dead()).await;
            if at == 0 {
                until("its directory is gone", || !self.dir().join("data/pods").join(&uid).exists()).await;
            }
        }
        let steps = Traced::steps(self.dir());
        let died = is_dead();
        let mut next: Option<AgentProcess> = None;
        if died {
            self.control.until("the session ended", |h| h.sessions.is_empty().then_some(())).await;
            next = Some(self.host.spawn());
            self.control.until("a new session", |h| (!h.sessions.is_empty()).then_some(())).await;
        }
        if !asked {
            self.control.running(&uid).await;
            assert_eq!(
                self.host.containers(),
                2,
                "one of each, whenever the agent died: step {at}, {steps:?}"
            );
            self.control.delete(&uid, 10);
        }
        let last = self.control.gone(&uid).await;
        // An agent that died right before its last word has a successor that finds nothing of the pod: how its
        // container ended was told before.
        let told = self.control.heard().statuses.get(&uid).cloned().unwrap_or_default();
        let all = told.iter().map(|(_, status)| status).chain([&last]);
        let ends: Vec<i32> = all.filter_map(exit_code).collect();
        assert!(ends.iter().all(|code| *code == 0), "it was asked, not killed: step {at}, {ends:?}");
        assert!(!ends.is_empty(), "its end was told: step {at} {:?}, {last:#?}", steps.last());
        self.control.remove(&uid);
        until(&format!("nothing is left after step {at}, {:?}", steps.last()), || self.is_clean()).await;
        drop((next, traced));
        self.control.until("the session ended", |h| h.sessions.is_empty().then_some(())).await;
        Life { steps, died }
    }

    fn is_clean(&self) -> bool {
        self.host.leftovers().is_empty()
    }
}

/// How the pod's container ended, if the status says so.
fn exit_code(status: &PodStatus) -> Option<i32> {
    let containers = status.container_statuses.as_ref()?;
    Some(containers.first()?.state.as_ref()?.terminated.as_ref()?.exit_code)
}

async fn until(what: &str, question: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !question() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn the_agent_may_die_before_any_step() {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the tracer knows the registers of x86_64 only");
        return;
    }
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let host = Host::new(&authority, &[&control]);
    control.lead(1, &host.pod_cidr);
    control.give("ConfigMap", "words", json!({"greeting": "hello"}));
    control.give("Secret", "key", json!({"word": "c2VjcmV0"}));
    let stage = Stage { registry: Registry::start().await, host, control };
    // The first start makes what stays: keys, images, the bridge.
    let first = stage.host.spawn();
    stage.control.until("the node is known", |h| h.node_status.clone()).await;
    drop(first);
    stage.control.until("the session ended", |h| h.sessions.is_empty().then_some(())).await;
    let steps = stage.live(0, 0).await.steps;
    for wanted in ["mkdir", "mount", "rename", "unlink", "sendto", "umount2"] {
        assert!(steps.iter().any(|step| step.starts_with(wanted)), "{wanted} is no step: {steps:#?}");
    }
    let asked = std::env::var(STEPS_ENV).unwrap_or_default();
    let chosen: Vec<usize> = match asked.as_str() {
        "all" => (1..=steps.len()).collect(),
        text => match text.parse() {
            Ok(step) => vec![step],
            Err(_) => (STRIDE..=steps.len()).step_by(STRIDE).collect(),
        },
    };
    let mut deaths = 0;
    for at in &chosen {
        // Tasks run side by side, so that a life may have some steps fewer than another.
        deaths += usize::from(stage.live(*at, *at).await.died);
    }
    println!("{} steps, {deaths} deaths of {}", steps.len(), chosen.len());
    assert!(deaths * 10 >= chosen.len() * 8, "most of the steps are there each time");
    stage.host.assert_clean();
    eventually("the port is free", || std::net::TcpListener::bind("127.0.0.1:18060").is_ok());
}
