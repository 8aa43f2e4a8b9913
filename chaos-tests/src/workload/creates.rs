//! Creates ConfigMaps as fast as one after the other allows, and records when each was acknowledged.
//!
//! An operation is *ok* (acknowledged with 201), *fail* (refused for certain) or *info* (nobody knows). Only
//! *ok* promises anything: the object must exist from then on, whatever happens.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::client::Client;

const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";
/// Between two attempts after a failure, so that a dead cluster is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// What the workers were told.
#[derive(Debug, Default)]
pub struct History {
    /// Names acknowledged, with the time of the acknowledgement.
    pub acknowledged: Vec<(String, Instant)>,
    /// Requests refused for certain.
    pub failed: usize,
    /// Requests of which nobody knows whether they took effect.
    pub unknown: usize,
    /// The newest few messages of what did not succeed.
    pub messages: Vec<String>,
}

impl History {
    /// The longest time without any acknowledgement that ends or lies after `from`.
    pub fn longest_gap_since(&self, from: Instant) -> Duration {
        let mut times: Vec<Instant> = self.acknowledged.iter().map(|(_, at)| *at).collect();
        times.sort();
        let mut gap = Duration::ZERO;
        let mut before = from;
        for at in times.into_iter().filter(|at| *at > from) {
            gap = gap.max(at - before);
            before = at;
        }
        gap
    }

    /// The first acknowledgement after `from`.
    pub fn first_after(&self, from: Instant) -> Option<Instant> {
        self.acknowledged.iter().map(|(_, at)| *at).filter(|at| *at > from).min()
    }
}

/// Running workers.
pub struct Creates {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<History>>,
}

impl Creates {
    /// Starts `workers` workers whose objects' names begin with `prefix`.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub fn start(kubeconfig: &Path, prefix: &str, workers: usize) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let client = Client::from_kubeconfig(kubeconfig)?;
        let workers = (0..workers)
            .map(|worker| {
                let (client, stop) = (client.another(), Arc::clone(&stop));
                tokio::spawn(work(client, format!("{prefix}-{worker}"), stop))
            })
            .collect();
        Ok(Self { stop, workers })
    }

    /// Stops the workers and returns what they were told.
    ///
    /// # Errors
    /// When a worker panicked.
    pub async fn stop(self) -> anyhow::Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = History::default();
        for worker in self.workers {
            let one = worker.await?;
            all.acknowledged.extend(one.acknowledged);
            all.failed += one.failed;
            all.unknown += one.unknown;
            all.messages.extend(one.messages);
        }
        Ok(all)
    }
}

async fn work(mut client: Client, prefix: String, stop: Arc<AtomicBool>) -> History {
    let mut history = History::default();
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{n}");
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"n": n.to_string()},
        });
        let message = match client.request(Method::POST, COLLECTION, Some(&object)).await {
            Ok((StatusCode::CREATED, _)) => {
                history.acknowledged.push((name, Instant::now()));
                continue;
            }
            Ok((status, value)) => {
                match status {
                    StatusCode::GATEWAY_TIMEOUT | StatusCode::INTERNAL_SERVER_ERROR => history.unknown += 1,
                    _ => history.failed += 1,
                }
                format!("{status}: {}", value["message"].as_str().unwrap_or_default())
            }
            Err(error) => {
                history.unknown += 1;
                error.to_string()
            }
        };
        if history.messages.last() != Some(&message) {
            history.messages.push(message);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    history
}

/// The acknowledged names that the cluster does not have.
///
/// # Errors
/// When they cannot be listed.
pub async fn missing(client: &mut Client, history: &History) -> anyhow::Result<Vec<String>> {
    let list = client.get(COLLECTION).await?;
    let there: BTreeSet<&str> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect();
    let acknowledged = history.acknowledged.iter().map(|(name, _)| name);
    Ok(acknowledged.filter(|name| !there.contains(name.as_str())).cloned().collect())
}
