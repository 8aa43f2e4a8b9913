//! One workload in one cluster: makes the objects, watches the bindings, samples their rate.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::args::BenchSchedulerArgs;
use super::cluster::Cluster;
use super::report::Row;
use super::workload::{Beside, Workload, node, pods_path};
use crate::bench::pods::api::{Api, Seen};

/// The rate is sampled once in such a time, as kube-scheduler's benchmark does.
const SAMPLE: Duration = Duration::from_secs(1);
/// How often a request is tried, at one replica after another.
const TRIES_MAX: usize = 12;
/// The wait before the second try; it grows by as much with each further one.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// What each node offers.
const NODE_MILLI_CPU: u64 = 4000;
/// How often a node and a pod come and go.
const CHURN_PERIOD: Duration = Duration::from_millis(200);

/// Runs one workload with so many nodes.
pub(crate) async fn measure(
    args: &BenchSchedulerArgs,
    workload: &Workload,
    nodes: usize,
) -> anyhow::Result<Row> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let cluster = Arc::new(Cluster::start(&parent, args.scheduler_config.as_deref()).await?);
    let limit = Duration::from_secs(args.timeout_seconds);
    tokio::time::timeout(limit, inside(args, workload, nodes, &cluster))
        .await
        .map_err(|_| anyhow::anyhow!("{} did not end within {limit:?}", workload.name))?
}

async fn inside(
    args: &BenchSchedulerArgs,
    workload: &Workload,
    nodes: usize,
    cluster: &Arc<Cluster>,
) -> anyhow::Result<Row> {
    let clients = args.clients.max(1);
    create(cluster, "/api/v1/nodes", (0..nodes).map(node).collect(), clients).await?;
    let leader = cluster.leader().await?;
    // The watch outlives the leader.
    let mut seen = cluster.api(leader + 1)?.watch(&pods_path()).await?;
    let init = workload.init(nodes);
    let mut places = Places::default();
    let mut first = Bindings::new("init-", init.len());
    create(cluster, &pods_path(), init, clients).await?;
    first.await_share(1, &mut seen, &mut places).await?;
    create(cluster, &pods_path(), workload.waiting(nodes), clients).await?;

    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    if workload.beside == Beside::Churn {
        tokio::spawn(stop.run_until_cancelled_owned(churn(cluster.clone())));
    }
    let pods = workload.measured(nodes, args.pods);
    let mut bindings = Bindings::new("pod-", pods.len());
    let begun = Instant::now();
    let creating = {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            create(&cluster, &pods_path(), pods, clients).await?;
            anyhow::Ok(begun.elapsed())
        })
    };
    if args.kill_leader {
        bindings.await_share(2, &mut seen, &mut places).await?;
        cluster.kill(leader)?;
    }
    bindings.await_share(1, &mut seen, &mut places).await?;
    let created_in = creating.await.context("the creating task ended early")??;
    Ok(bindings.row(workload, nodes, begun, created_in))
}

/// Bindings as the watch shows them.
struct Bindings {
    prefix: &'static str,
    wanted: usize,
    bound: HashMap<String, Instant>,
}

impl Bindings {
    fn new(prefix: &'static str, wanted: usize) -> Self {
        Self { prefix, wanted, bound: HashMap::with_capacity(wanted) }
    }

    /// Until this part of the pods (one half, say) is bound.
    async fn await_share(
        &mut self,
        part: usize,
        seen: &mut mpsc::Receiver<Seen>,
        places: &mut Places,
    ) -> anyhow::Result<()> {
        while self.bound.len() < self.wanted / part {
            let Seen { at, kind, object } = seen.recv().await.context("the watch ended")?;
            ensure!(kind != "ERROR", "the watch ended: {object}");
            places.note(&kind, &object)?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if kind != "DELETED" && node_of(&object).is_some() && name.starts_with(self.prefix) {
                self.bound.entry(name.to_owned()).or_insert(at);
            }
        }
        Ok(())
    }

    fn row(&self, workload: &Workload, nodes: usize, begun: Instant, created_in: Duration) -> Row {
        let mut times: Vec<Duration> =
            self.bound.values().map(|at| at.saturating_duration_since(begun)).collect();
        times.sort_unstable();
        let took = times.last().copied().unwrap_or_default();
        let mut samples: Vec<f64> = samples(&times);
        samples.sort_unstable_by(f64::total_cmp);
        let quantile = |share: f64| {
            let at = ((samples.len().saturating_sub(1)) as f64 * share).round() as usize;
            samples.get(at).copied().unwrap_or(0.0)
        };
        Row {
            workload: workload.name,
            nodes,
            pods: self.wanted,
            seconds: took.as_secs_f64(),
            average: self.wanted as f64 / took.as_secs_f64().max(f64::EPSILON),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            created_per_second: self.wanted as f64 / created_in.as_secs_f64().max(f64::EPSILON),
            floor_at_5000_nodes: workload.floor,
        }
    }
}

fn node_of(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

/// Where pods are, as the watch shows it: checks what a scheduler must never do.
#[derive(Default)]
struct Places {
    /// By uid: node and thousandths of a CPU.
    pods: HashMap<String, (String, u64)>,
    /// By node: what its pods request together.
    taken: HashMap<String, u64>,
}

impl Places {
    fn note(&mut self, kind: &str, pod: &Value) -> anyhow::Result<()> {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        if kind == "DELETED" {
            if let Some((node, cpu)) = self.pods.remove(uid) {
                *self.taken.entry(node).or_default() -= cpu;
            }
            return Ok(());
        }
        let Some(node) = node_of(pod) else { return Ok(()) };
        if let Some((known, _)) = self.pods.get(uid) {
            ensure!(known == node, "pod {uid} was bound twice: to {known} and to {node}");
            return Ok(());
        }
        let requests = &pod["spec"]["containers"][0]["resources"]["requests"];
        let cpu = milli(requests["cpu"].as_str().unwrap_or_default());
        let taken = self.taken.entry(node.to_owned()).or_default();
        *taken += cpu;
        ensure!(*taken <= NODE_MILLI_CPU, "node {node} is over-committed: {taken}m of {NODE_MILLI_CPU}m");
        self.pods.insert(uid.to_owned(), (node.to_owned(), cpu));
        Ok(())
    }
}

/// Thousandths of a CPU, of the amounts that workloads ask for.
fn milli(cpu: &str) -> u64 {
    match cpu.strip_suffix('m') {
        Some(milli) => milli.parse().unwrap_or(0),
        None => cpu.parse::<u64>().map_or(0, |whole| whole * 1000),
    }
}

/// Bindings per second, one number for each whole period; of a shorter run, its average.
fn samples(times: &[Duration]) -> Vec<f64> {
    let took = times.last().copied().unwrap_or_default();
    let whole = (took.as_secs_f64() / SAMPLE.as_secs_f64()).floor() as usize;
    if whole == 0 {
        return vec![times.len() as f64 / took.as_secs_f64().max(f64::EPSILON)];
    }
    let mut counts = vec![0_usize; whole];
    for time in times {
        let at = (time.as_secs_f64() / SAMPLE.as_secs_f64()) as usize;
        if let Some(count) = counts.get_mut(at) {
            *count += 1;
        }
    }
    counts.into_iter().map(|count| count as f64 / SAMPLE.as_secs_f64()).collect()
}

/// Creates objects, by several clients that take them in turn.
async fn create(cluster: &Cluster, path: &str, objects: Vec<Value>, clients: usize) -> anyhow::Result<()> {
    let objects = Arc::new(objects);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients.min(objects.len()) {
        let mut apis = Vec::new();
        for other in 0..TRIES_MAX {
            apis.push(cluster.api(number + other)?);
        }
        let (objects, next, path) = (objects.clone(), next.clone(), path.to_owned());
        tasks.spawn(async move {
            while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                post(&mut apis, &path, object).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a client ended early")??;
    }
    Ok(())
}

/// Creates an object; a replica that does not answer is left for the next one.
async fn post(apis: &mut [Api], path: &str, object: &Value) -> anyhow::Result<()> {
    let mut last = None;
    for tried in 0..apis.len() {
        match apis[0].send(Method::POST, path, object).await {
            Ok(_) => return Ok(()),
            // An earlier try went through although nobody said so.
            Err(error) if tried > 0 && error.to_string().contains("409") => return Ok(()),
            Err(error) => last = Some(error),
        }
        apis.rotate_left(1);
        tokio::time::sleep(RETRY_AFTER * tried as u32).await;
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no replica")))
}

/// A node and a pod that fits nowhere come, and those before them go.
async fn churn(cluster: Arc<Cluster>) {
    let Ok(mut api) = cluster.api(1) else { return };
    for number in 1_000_000.. {
        let name = super::workload::node_name(number);
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("churn-{number}")}});
        let requests = json!({"requests": {"cpu": "900"}});
        pod["spec"] = json!({"containers": [{"name": "c", "image": "pause:1", "resources": requests}]});
        // The load goes on whatever becomes of single requests.
        let _made = api.send(Method::POST, "/api/v1/nodes", &node(number)).await;
        let _made = api.send(Method::POST, &pods_path(), &pod).await;
        tokio::time::sleep(CHURN_PERIOD).await;
        let _gone = api.send(Method::DELETE, &format!("/api/v1/nodes/{name}"), &Value::Null).await;
        let _gone = api.send(Method::DELETE, &format!("{}/churn-{number}", pods_path()), &Value::Null).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_never_happen_is_noticed() {
        let pod = |uid: &str, node: &str, cpu: &str| {
            let requests = json!({"requests": {"cpu": cpu}});
            json!({"metadata": {"uid": uid},
                   "spec": {"nodeName": node, "containers": [{"resources": requests}]}})
        };
        let mut places = Places::default();
        places.note("ADDED", &pod("a", "n1", "3")).unwrap();
        places.note("MODIFIED", &pod("a", "n1", "3")).unwrap();
        let twice = places.note("MODIFIED", &pod("a", "n2", "3")).unwrap_err().to_string();
        assert!(twice.contains("bound twice"), "{twice}");
        let full = places.note("ADDED", &pod("b", "n1", "1100m")).unwrap_err().to_string();
        assert!(full.contains("over-committed"), "{full}");
        places.note("DELETED", &pod("a", "n1", "3")).unwrap();
        places.note("ADDED", &pod("c", "n1", "2900m")).unwrap();
    }

    #[test]
    fn the_rate_is_sampled_in_whole_periods() {
        let times: Vec<Duration> = (1..=250).map(|at| Duration::from_millis(at * 10)).collect();
        assert_eq!(samples(&times), [99.0, 100.0]);
        assert_eq!(samples(&times[..50]), [100.0]);
    }
}
