//! What pods take in a cluster: one after another, many at once, and at rest.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::api::{Api, Seen};
use super::args::BenchPodsArgs;
use super::cluster::Cluster;
use super::report::{AtOnce, AtRest, PodTimes, Report};
use crate::bench::histogram::Histogram;
use crate::bench::usage::{Usage, resident_bytes};
use crate::memory;
use crate::up::progress::Step;

const PODS: &str = "/api/v1/namespaces/default/pods";
const IMAGE: &str = "barque/hello:1.0";
/// Longest wait for a pod to be what it is to become.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until the program can take TERM: what has pid 1 and no handler yet never hears of it.
const READY: Duration = Duration::from_millis(200);
/// How long the agent is watched doing nothing, and how long it is left alone before.
const REST: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(3);

/// What was seen of one pod.
#[derive(Default)]
struct Life {
    bound: Option<Instant>,
    running: Option<Instant>,
    deleted: Option<Instant>,
}

/// The pods of one watch, by name.
struct Lives {
    events: mpsc::Receiver<Seen>,
    seen: HashMap<String, Life>,
}

/// Makes a cluster, measures, removes it.
pub(crate) async fn measure(args: &BenchPodsArgs, parent: &Path, report: &mut Report) -> anyhow::Result<()> {
    let step = Step::begin("one master, one node");
    let cluster = Cluster::up(parent)?;
    let mut api = cluster.api()?;
    let mut lives = Lives { events: api.watch(PODS).await?, seen: HashMap::new() };
    step.done();

    let step = Step::begin(format!("{} pods, one after another", args.singles));
    report.singles = Some(one_by_one(args.singles, &mut api, &mut lives).await?);
    step.done();

    let before = memory_of(cluster.agent()?)?;
    let step = Step::begin(format!("{} pods at once", args.pods));
    let at_once = at_once(args.pods, &mut api, &mut lives).await?;
    step.done();

    let step = Step::begin("the same pods at rest");
    tokio::time::sleep(SETTLE).await;
    report.at_rest = Some(at_rest(&cluster, args.pods, before).await?);
    step.done();

    let step = Step::begin(format!("deleting {} pods", args.pods));
    let began = Instant::now();
    api.send(Method::DELETE, PODS, &Value::Null).await?;
    lives.wait(args.pods, |life| life.deleted.is_some()).await?;
    report.at_once = Some(AtOnce { deletion: began.elapsed(), ..at_once });
    step.done();
    Ok(())
}

async fn one_by_one(count: usize, api: &mut Api, lives: &mut Lives) -> anyhow::Result<PodTimes> {
    let mut times = PodTimes::default();
    for number in 0..count {
        let name = format!("single-{number}");
        lives.seen.clear();
        let began = Instant::now();
        api.send(Method::POST, PODS, &pod(&name)).await?;
        lives.wait(1, |life| life.running.is_some()).await?;
        let life = &lives.seen[&name];
        let running = life.running.context("it runs")?;
        times.created_to_running.record(running - began);
        times.bound_to_running.record(running - life.bound.context("it was bound before")?);
        tokio::time::sleep(READY).await;
        let began = Instant::now();
        api.send(Method::DELETE, &format!("{PODS}/{name}"), &Value::Null).await?;
        lives.wait(1, |life| life.deleted.is_some()).await?;
        times.deletion.record(lives.seen[&name].deleted.context("it is gone")? - began);
    }
    Ok(times)
}

async fn at_once(count: usize, api: &mut Api, lives: &mut Lives) -> anyhow::Result<AtOnce> {
    lives.seen.clear();
    let began = Instant::now();
    for number in 0..count {
        api.send(Method::POST, PODS, &pod(&format!("many-{number}"))).await?;
    }
    let created = began.elapsed();
    lives.wait(count, |life| life.running.is_some()).await?;
    let mut bound_to_running = Histogram::default();
    for life in lives.seen.values() {
        if let (Some(bound), Some(running)) = (life.bound, life.running) {
            bound_to_running.record(running - bound);
        }
    }
    let first_bound = lives.seen.values().filter_map(|life| life.bound).min().context("pods were bound")?;
    let last_running = lives.seen.values().filter_map(|life| life.running).max().context("pods run")?;
    Ok(AtOnce {
        pods: count,
        created,
        all_running: last_running - first_bound,
        bound_to_running,
        deletion: Duration::ZERO,
    })
}

async fn at_rest(cluster: &Cluster, pods: usize, agent_before: memory::Memory) -> anyhow::Result<AtRest> {
    let agent = cluster.agent()?;
    let companions = cluster.companions();
    let agent_memory = memory_of(agent)?;
    let before = Usage::of(&[agent], None);
    tokio::time::sleep(REST).await;
    let used = Usage::of(&[agent], None) - before;
    let private: u64 = companions.iter().filter_map(|pid| memory::of(*pid)).map(|used| used.private).sum();
    let resident: u64 = resident_bytes(&companions).iter().sum();
    let per_pod = |bytes: u64| bytes / pods.max(1) as u64;
    Ok(AtRest {
        pods,
        processes: companions.len(),
        companions_resident_per_pod: per_pod(resident),
        companions_private_per_pod: per_pod(private),
        agent_growth_per_pod: per_pod(agent_memory.resident.saturating_sub(agent_before.resident)),
        agent_resident: agent_memory.resident,
        agent_cores: used.cpu_seconds / REST.as_secs_f64(),
    })
}

impl Lives {
    /// Takes events until so many pods are as wanted.
    async fn wait(&mut self, count: usize, wanted: impl Fn(&Life) -> bool) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.seen.values().filter(|life| wanted(life)).count() < count {
            let Ok(event) = tokio::time::timeout_at(deadline, self.events.recv()).await else {
                let found = self.seen.values().filter(|life| wanted(life)).count();
                bail!("{found} of {count} pods were ready within {} s", PATIENCE.as_secs());
            };
            self.note(event.context("the watch ended")?);
        }
        Ok(())
    }

    fn note(&mut self, event: Seen) {
        let object = &event.object;
        let Some(name) = object["metadata"]["name"].as_str() else { return };
        let life = self.seen.entry(name.to_owned()).or_default();
        if event.kind == "DELETED" {
            life.deleted = Some(event.at);
        }
        if object["spec"]["nodeName"].is_string() {
            life.bound.get_or_insert(event.at);
        }
        if object["status"]["phase"] == "Running" {
            life.running.get_or_insert(event.at);
        }
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "hello", "image": IMAGE}]},
    })
}

fn memory_of(pid: i32) -> anyhow::Result<memory::Memory> {
    memory::of(pid).with_context(|| format!("process {pid} is gone"))
}
