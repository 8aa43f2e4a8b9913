//! `--work leader-kill`: how long writes stop when the leader dies.
//!
//! Clients write all the time. From the moment of the kill a new put goes to a survivor every few milliseconds,
//! whatever became of the ones before; the first to be acknowledged ends the outage. So the measurement depends
//! on no client's retry policy, and is exact to that interval.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::client::{key, put_request};
use super::connection::{Connection, origin};
use super::group::{Group, START_TIMEOUT};
use super::systems;

/// Clients that write meanwhile.
const BACKGROUND_CLIENTS: usize = 16;
/// A new attempt begins so often.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// Longest outage that is waited for.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
/// Load before each kill.
const SETTLE: Duration = Duration::from_millis(700);
/// How often is looked for a leader.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a client waits before it connects again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Kills the leader once, waits for writes to go on, and brings it back. Returns the outage.
pub(crate) async fn kill_once(group: &mut Group, value: &Bytes) -> anyhow::Result<Duration> {
    let endpoints = group.endpoints();
    let leader = wait_for_leader(&endpoints).await?;
    let load: Vec<_> = (0..BACKGROUND_CLIENTS)
        .map(|client| {
            let work = write_on(endpoints.clone(), client, value.clone());
            AbortOnDropHandle::new(tokio::spawn(work))
        })
        .collect();
    tokio::time::sleep(SETTLE).await;
    let survivors: Vec<&String> =
        endpoints.iter().enumerate().filter(|(number, _)| *number != leader).map(|(_, e)| e).collect();
    let mut probes = Vec::new();
    for endpoint in survivors {
        probes.push(KvClient::with_origin(Connection::open(endpoint).await?, origin(endpoint)?));
    }
    group.kill(leader);
    let outage = outage(&probes, value, Instant::now()).await?;
    drop(load);
    group.launch(leader)?;
    group.wait_healthy(leader).await?;
    Ok(outage)
}

/// From `killed` until a put sent after it was acknowledged.
async fn outage(probes: &[KvClient<Connection>], value: &Bytes, killed: Instant) -> anyhow::Result<Duration> {
    let mut attempts = JoinSet::new();
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    let mut number = 0;
    while killed.elapsed() < OUTAGE_MAX {
        tokio::select! {
            _ = ticks.tick() => {
                let mut kv = probes[number % probes.len()].clone();
                let request = put_request(key(number), value);
                attempts.spawn(async move { kv.put(request).await.is_ok() });
                number += 1;
            }
            Some(acknowledged) = attempts.join_next(), if !attempts.is_empty() => {
                if acknowledged.context("an attempt ended early")? {
                    return Ok(killed.elapsed());
                }
            }
        }
    }
    anyhow::bail!("no write was acknowledged within {} s of the leader's end", OUTAGE_MAX.as_secs())
}

/// A client that writes for ever and goes to the next member when one fails.
async fn write_on(endpoints: Vec<String>, client: usize, value: Bytes) {
    let endpoints = Arc::new(endpoints);
    for turn in client.. {
        let endpoint = &endpoints[turn % endpoints.len()];
        if let (Ok(connection), Ok(origin)) = (Connection::open(endpoint).await, origin(endpoint)) {
            let mut kv = KvClient::with_origin(connection, origin);
            while kv.put(put_request(key(client), &value)).await.is_ok() {}
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn wait_for_leader(endpoints: &[String]) -> anyhow::Result<usize> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(leader) = systems::leader_position(endpoints).await {
            return Ok(leader);
        }
        anyhow::ensure!(Instant::now() < deadline, "no member says that it leads");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
