//! Asking any system over etcd's protocol: is it healthy, who leads, loading it, compacting it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::task::JoinSet;

use super::client::{key, put_op};
use super::connection::{Connection, origin};

/// Longest wait for an answer to one of these questions.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a compaction.
const COMPACT_TIMEOUT: Duration = Duration::from_secs(30);
/// Keys in one transaction while loading: below etcd's limit of 128.
const LOAD_BATCH: usize = 100;
/// Transactions under way while loading.
const LOADERS: usize = 16;

/// Whether a member answers a linearizable read.
pub(crate) async fn is_healthy(endpoint: &str) -> bool {
    let ask = async {
        let mut kv = KvClient::with_origin(Connection::open(endpoint).await?, origin(endpoint)?);
        let request = pb::RangeRequest { key: Bytes::from_static(b"health"), ..pb::RangeRequest::default() };
        anyhow::Ok(kv.range(request).await?)
    };
    matches!(tokio::time::timeout(ASK_TIMEOUT, ask).await, Ok(Ok(_)))
}

/// The position of the leader's address, if it can be found out.
pub(crate) async fn leader_position(endpoints: &[String]) -> Option<usize> {
    for (position, endpoint) in endpoints.iter().enumerate() {
        let ask = async {
            let connection = Connection::open(endpoint).await?;
            let mut client = MaintenanceClient::with_origin(connection, origin(endpoint)?);
            anyhow::Ok(client.status(pb::StatusRequest {}).await?.into_inner())
        };
        if let Ok(Ok(status)) = tokio::time::timeout(ASK_TIMEOUT, ask).await
            && status.header.is_some_and(|header| header.member_id == status.leader)
        {
            return Some(position);
        }
    }
    None
}

/// Moves the leader's address to the front. When nobody says who leads, the order stays.
pub(crate) async fn leader_first(endpoints: &mut [String]) {
    if let Some(position) = leader_position(endpoints).await {
        endpoints.swap(0, position);
    }
}

/// Writes the keys that are read and overwritten.
pub(crate) async fn load(endpoints: &[String], keys: usize, value: &Bytes) -> anyhow::Result<()> {
    let batches = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for loader in 0..LOADERS {
        let endpoint = &endpoints[loader % endpoints.len()];
        let mut kv = KvClient::with_origin(Connection::open(endpoint).await?, origin(endpoint)?);
        let (batches, value) = (Arc::clone(&batches), value.clone());
        tasks.spawn(async move {
            loop {
                let batch = batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let numbers = (batch * LOAD_BATCH)..((batch + 1) * LOAD_BATCH).min(keys);
                if numbers.is_empty() {
                    return Ok(());
                }
                let success = numbers.map(|number| put_op(key(number), &value)).collect();
                kv.txn(pb::TxnRequest { success, ..pb::TxnRequest::default() }).await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a loader ended early")?.map_err(|status: tonic::Status| {
            anyhow::anyhow!("cannot load keys: {:?}: {}", status.code(), status.message())
        })?;
    }
    Ok(())
}

/// Forgets superseded versions, so that one measurement does not fill the next one's memory. A system that cannot
/// do it keeps them.
pub(crate) async fn compact(endpoint: &str) {
    let work = async {
        let mut kv = KvClient::with_origin(Connection::open(endpoint).await?, origin(endpoint)?);
        let request = pb::RangeRequest { key: Bytes::from_static(b"compact"), ..pb::RangeRequest::default() };
        let revision = kv.range(request).await?.into_inner().header.unwrap_or_default().revision;
        anyhow::Ok(kv.compact(pb::CompactionRequest { revision, physical: true }).await?)
    };
    // Not essential to the measurement.
    let _not_supported = tokio::time::timeout(COMPACT_TIMEOUT, work).await;
}
