//! One kill after the other.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::plot;
use super::report::Report;
use crate::bench::pods::api::Api;
use crate::bench::report::tell;
use crate::bench::scheduler::cluster::{Cluster, REPLICAS};
use crate::bench::scheduler::workload::{node, pods_path};
use crate::signals::Signals;
use crate::up::progress::line;

/// Clients that write meanwhile.
const BACKGROUND_CLIENTS: usize = 8;
/// A new attempt begins so often.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// The longest outage that is waited for.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
/// Load before each kill.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a client waits before it tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Nodes, each with room for 110 pods: more than the attempts of the longest outage that is hoped for.
const NODES: usize = 10;
/// Where clients write.
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Where Events are made.
const EVENTS: &str = "/api/v1/namespaces/default/events";
/// How many kills are told as one.
const TOLD_EVERY: usize = 50;

/// Flags of `bench failover`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchFailoverArgs {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 20)]
    pub(crate) kills: usize,

    /// So many Events are in the store before, as a cluster in use has them.
    #[arg(long, default_value_t = 0)]
    pub(crate) events: usize,

    /// Where the replicas' directories are made. Default: TMPDIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Write every number to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw how many outages ended within which time.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// Measures and reports. On a signal everything is ended and removed, and that is an error.
pub(crate) async fn run(args: &BenchFailoverArgs) -> anyhow::Result<()> {
    ensure!(args.kills > 0, "--kills: at least 1");
    let mut signals = Signals::listen()?;
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = all(args, &mut report) => measured,
        name = signals.next() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    tell(&report, args.json.as_deref())?;
    if let Some(path) = &args.svg {
        plot::write(&report, path)?;
    }
    measured
}

async fn all(args: &BenchFailoverArgs, report: &mut Report) -> anyhow::Result<()> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut cluster = Cluster::start(&parent, None).await?;
    let mut api = cluster.api(0)?;
    for number in 0..NODES {
        api.send(Method::POST, "/api/v1/nodes", &node(number)).await?;
    }
    for client in 0..BACKGROUND_CLIENTS {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": written_by(client)}});
        api.send(Method::POST, CONFIG_MAPS, &object).await?;
    }
    make_events(&cluster, args.events).await?;
    let mut clients: [Vec<Api>; REPLICAS] = Default::default();
    for kill in 0..args.kills {
        let (write, bound) = kill_once(&mut cluster, &mut clients, kill)
            .await
            .with_context(|| format!("kill {}", kill + 1))?;
        report.note(write, bound);
        if (kill + 1) % TOLD_EVERY == 0 {
            line(format_args!("  {} of {} leaders killed", kill + 1, args.kills));
        }
    }
    Ok(())
}

/// Events of pods that are gone, made by as many clients as write later.
async fn make_events(cluster: &Cluster, count: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for client in 0..BACKGROUND_CLIENTS {
        let mut api = cluster.api(client)?;
        tasks.spawn(async move {
            for number in (client..count).step_by(BACKGROUND_CLIENTS) {
                api.send(Method::POST, EVENTS, &event(number)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client ended early")??;
    }
    Ok(())
}

/// Kills the leader once, and brings it back. Returns how long nothing was written, and how long nothing was bound.
async fn kill_once(
    cluster: &mut Cluster,
    clients: &mut [Vec<Api>; REPLICAS],
    kill: usize,
) -> anyhow::Result<(Duration, Duration)> {
    let leader = cluster.wait_leader().await?;
    let load = (0..BACKGROUND_CLIENTS).map(|client| {
        let apis =
            (0..REPLICAS).map(|other| cluster.api(client + other)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(AbortOnDropHandle::new(tokio::spawn(write_on(apis, client))))
    });
    let load = load.collect::<anyhow::Result<Vec<_>>>()?;
    let survivors = [(leader + 1) % REPLICAS, (leader + 2) % REPLICAS];
    let mut seen = cluster.api(survivors[0])?.watch(&pods_path()).await?;
    tokio::time::sleep(SETTLE).await;
    cluster.kill(leader)?;
    let killed = Instant::now();
    let (mut write, mut bound) = (None, None);
    let mut attempts = JoinSet::new();
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    let prefix = format!("k{kill}-");
    let mut number = 0;
    while write.is_none() || bound.is_none() {
        ensure!(
            killed.elapsed() < OUTAGE_MAX,
            "{OUTAGE_MAX:?} after the leader's end: acknowledged {write:?}, bound {bound:?}"
        );
        tokio::select! {
            _ = ticks.tick() => {
                let at = survivors[number % survivors.len()];
                let mut api = match clients[at].pop() {
                    Some(api) => api,
                    None => cluster.api(at)?,
                };
                let pod = pod(&format!("{prefix}{number}"));
                attempts.spawn(async move {
                    let is_done = api.send(Method::POST, &pods_path(), &pod).await.is_ok();
                    (at, api, is_done)
                });
                number += 1;
            }
            Some(ended) = attempts.join_next(), if !attempts.is_empty() => {
                let (at, api, is_done) = ended.context("an attempt ended early")?;
                clients[at].push(api);
                if is_done {
                    write.get_or_insert(killed.elapsed());
                }
            }
            event = seen.recv() => {
                let event = event.context("the watch of a survivor ended")?;
                let name = event.object["metadata"]["name"].as_str().unwrap_or_default();
                let is_bound = event.object["spec"]["nodeName"].is_string();
                if is_bound && name.starts_with(&prefix) {
                    bound.get_or_insert(event.at.saturating_duration_since(killed));
                }
            }
        }
    }
    drop((attempts, load));
    cluster.bring_back(leader).await?;
    let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    cluster.api(survivors[0])?.send(Method::DELETE, &pods_path(), &at_once).await?;
    Ok((write.unwrap_or_default(), bound.unwrap_or_default()))
}

/// A client that writes for ever and goes to the next replica when one fails.
async fn write_on(mut apis: Vec<Api>, client: usize) {
    let path = format!("{CONFIG_MAPS}/{}", written_by(client));
    for turn in 0_u64.. {
        if apis[0].patch(&path, &json!({"data": {"turn": turn.to_string()}})).await.is_err() {
            apis.rotate_left(1);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

fn written_by(client: usize) -> String {
    format!("written-{client}")
}

fn event(number: usize) -> Value {
    let name = format!("gone-{number}");
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("{name}.scheduled")},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": name},
        "reason": "Scheduled", "type": "Normal", "source": {"component": "default-scheduler"}, "count": 1,
        "message": format!("Successfully assigned default/{name} to node-{}", number % NODES),
    })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
    })
}
