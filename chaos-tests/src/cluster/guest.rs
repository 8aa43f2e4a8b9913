//! Somebody else's cluster, which an experiment may break for a time.
//!
//! Owns the beginning and the end of such a visit: one experiment at a time (a lock in the cluster's directory), only where
//! everything runs, and a keeper that makes the cluster whole again when the experiment ends, is killed, or stays longer
//! than it may. What the experiment makes lies in a namespace of its own, which goes with it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Cluster;
use super::keeper::{Keeper, PREFIX};
use super::machines::Machines;
use crate::client::Client;
use crate::nemesis;

/// The file in a cluster's directory that whoever breaks it holds locked.
const LOCK: &str = "chaos.lock";
/// Longest wait until a master takes a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// A cluster that `barque up` made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Where clusters' files lie.
    pub data_dir: PathBuf,
}

/// What is to be done at the end of a visit: what the experiment tells its keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restoration {
    /// The cluster.
    pub guest: Guest,
    /// What the experiment makes lies here.
    pub namespace: String,
    /// Nodes that took no pods before.
    pub cordoned: Vec<String>,
    /// The experiment is killed after so long.
    pub limit: Duration,
}

impl Guest {
    fn cluster(&self, program: &Path) -> Cluster {
        Cluster::of_somebody(program, &self.name, &self.data_dir)
    }

    /// Takes the cluster's machines over, for at most `limit`.
    ///
    /// # Errors
    /// When somebody else breaks it already, when not all of it runs, and when no master takes requests.
    pub async fn visit(
        &self,
        program: &Path,
        parent: &Path,
        limit: Duration,
    ) -> anyhow::Result<(Machines, String)> {
        let cluster = self.cluster(program);
        let lock = lock(&cluster)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("cluster {} is being broken by another experiment; wait for its end", self.name)
            }
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cluster"),
        }
        let client = Client::from_kubeconfig(&cluster.kubeconfig())?;
        let nodes = ask(&client, Method::GET, "/api/v1/nodes", None).await?;
        let is_cordoned = |node: &&Value| node["spec"]["unschedulable"] == true;
        let cordoned = nodes["items"].as_array().into_iter().flatten().filter(is_cordoned);
        let namespace = format!("{PREFIX}{:08x}", rand::random::<u32>());
        let restoration = Restoration {
            guest: self.clone(),
            namespace: namespace.clone(),
            cordoned: cordoned
                .filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned()))
                .collect(),
            limit,
        };
        let mut machines = Machines::of(cluster)?;
        if let Some(number) = (0..machines.size()).find(|number| !machines.running().contains(number)) {
            bail!("{} of cluster {} does not run; `barque up` starts it", machines.name(number), self.name);
        }
        ensure!(
            machines.size() > machines.masters(),
            "cluster {} has no nodes beside its masters: nothing to run pods on while those are broken",
            self.name
        );
        machines.keep(Keeper::start_for_guest(program, parent, &restoration)?, lock);
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        ask(&client, Method::POST, "/api/v1/namespaces", Some(&object)).await?;
        // No pod is let in before its account is there.
        ask(&client, Method::GET, &format!("/api/v1/namespaces/{namespace}/serviceaccounts/default"), None)
            .await?;
        Ok((machines, namespace))
    }
}

impl Restoration {
    /// Makes the cluster whole: links, processes, nodes that take pods; and removes what the experiment made. Waits until the
    /// experiment has let go of it.
    ///
    /// # Errors
    /// When something cannot be had back.
    pub fn carry_out(&self, program: &Path) -> anyhow::Result<()> {
        let cluster = self.guest.cluster(program);
        if !cluster.directory().exists() {
            // Taken down meanwhile.
            return Ok(());
        }
        let lock = lock(&cluster)?;
        lock.lock().context("cannot lock the cluster")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(self.restore(Machines::of(cluster)?))
    }

    async fn restore(&self, mut machines: Machines) -> anyhow::Result<()> {
        for number in machines.running() {
            machines.signal(number, Signal::SIGCONT)?;
        }
        block_in_place(|| machines.heal())?;
        let client = Client::from_kubeconfig(&machines.kubeconfig())?;
        for number in machines.masters()..machines.size() {
            if !self.cordoned.iter().any(|name| name == machines.name(number)) {
                nemesis::machines::cordon(&machines, number, false).await?;
            }
        }
        ask(&client, Method::DELETE, &format!("/api/v1/namespaces/{}", self.namespace), None).await.map(drop)
    }
}

fn lock(cluster: &Cluster) -> anyhow::Result<File> {
    let path = cluster.directory().join(LOCK);
    let file = File::options().create(true).append(true).open(&path);
    file.with_context(|| format!("cannot open {}; is the cluster up on this machine?", path.display()))
}

/// Asks until the answer is that it is so.
async fn ask(client: &Client, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    let mut client = client.another();
    loop {
        let said = match client.request(method.clone(), path, body).await {
            Ok((status, answer)) if status.is_success() => return Ok(answer),
            Ok((StatusCode::NOT_FOUND, _)) if method == Method::DELETE => return Ok(Value::Null),
            Ok((StatusCode::CONFLICT, answer)) if method == Method::POST => return Ok(answer),
            Ok((status, answer)) => format!("{status}: {}", answer["message"].as_str().unwrap_or_default()),
            Err(error) => {
                client = client.another();
                format!("{error:#}")
            }
        };
        ensure!(Instant::now() < deadline, "{method} {path}: {said}");
        tokio::time::sleep(PAUSE).await;
    }
}
