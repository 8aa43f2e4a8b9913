//! Asks every member for the hash of its state, past all links: at the end of a run, and between faults.

use std::time::Duration;

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::group::Group;
use crate::history::Recorder;

/// The name of this workload's process.
pub const PROCESS: i64 = 999_999_999_999;
/// Longest wait for one answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether all have applied the same.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until all members have the same revision, then has each hash it. Returns whether they got there.
pub async fn compare(group: &Group, recorder: &Recorder, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let mut revisions = Vec::new();
        for number in group.running() {
            let status = group.status(number).await;
            revisions.push(status.and_then(|status| Some(status.header?.revision)));
        }
        let first = revisions.first().copied().flatten();
        let equal = first.is_some() && revisions.iter().all(|revision| *revision == first);
        if equal && ask(group, recorder, first.unwrap_or(0)).await {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn ask(group: &Group, recorder: &Recorder, revision: i64) -> bool {
    let mut all = true;
    for number in group.running() {
        recorder.invoke(PROCESS, "hash", Value::Null);
        let mut member = MaintenanceClient::new(group.direct(number));
        let call = member.hash_kv(pb::HashKvRequest { revision });
        match tokio::time::timeout(ASK_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let told = json!({
                    "member": group.name(number),
                    "revision": revision,
                    "compact": answer.compact_revision,
                    "hash": answer.hash,
                });
                recorder.ok(PROCESS, "hash", told);
            }
            Ok(Err(status)) => {
                recorder.fail(PROCESS, "hash", Value::Null, status.message());
                all = false;
            }
            Err(_) => {
                recorder.fail(PROCESS, "hash", Value::Null, "no answer in time");
                all = false;
            }
        }
    }
    all
}
