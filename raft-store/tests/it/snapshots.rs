//! Raft snapshots between members: at their rate, and on from where they broke.

use std::time::{Duration, Instant};

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use raft_store::{Config, MemberId, Store};

use crate::group::{Group, eventually, put};
use crate::proxy::Proxy;

const VALUE_BYTES: usize = 128 * 1024;
const VALUES: usize = 64;
const STATE_BYTES: u64 = (VALUE_BYTES * VALUES) as u64;
const BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;
/// Sent ahead of the pace, or lost on a broken connection.
const SLACK_BYTES: u64 = 1024 * 1024;

fn slow(config: &mut Config) {
    config.snapshot_bytes_per_second = BYTES_PER_SECOND;
    config.checkpoint_entries = 50;
    // Enough for what is written during a transfer.
    config.log_entries_kept = 20;
    config.log_bytes_kept = 32 * 1024;
    config.wal_segment_bytes = 8 * 1024 * 1024;
}

/// Writes the state, and until the log no longer has its beginning.
async fn fill(group: &Group, leader: MemberId) {
    let store = group.store(leader);
    for n in 0..VALUES {
        // Not what a compressing transport would make small, were there one.
        let value: String =
            (0..VALUE_BYTES).map(|at| char::from(b'a' + ((at * 31 + n) % 26) as u8)).collect();
        put(store, &format!("/big{n}"), &value).await.expect("written");
    }
    let written = store.status().applied_index;
    let mut n = 0;
    while store.status().purged_index < written {
        put(store, "/small", &format!("{n:4096}")).await.expect("written");
        n += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn received(store: &Store, bytes: u64) {
    eventually("the transfer gets on", || store.snapshot_transfers().received_bytes >= bytes).await;
}

fn partial_files(group: &Group, id: MemberId) -> usize {
    let directory = group.data_dir(id).join("snapshot");
    let names = std::fs::read_dir(directory).expect("listed").map(|entry| entry.expect("listed").file_name());
    names.filter(|name| name.to_string_lossy().starts_with("partial")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_after_a_restart_of_the_member_that_receives_it() {
    let mut group = Group::start(3, slow).await;
    let lagging = group.a_follower().await;
    group.stop_member(lagging).await;
    let leader = group.leader().await;
    fill(&group, leader).await;

    let started = Instant::now();
    group.start_member(lagging).await;
    received(group.store(lagging), STATE_BYTES / 2).await;
    let before = group.store(lagging).snapshot_transfers().received_bytes;
    group.kill_member(lagging).await;
    assert_eq!(partial_files(&group, lagging), 1);
    group.start_member(lagging).await;
    group.converged().await;

    let transfers = group.store(lagging).snapshot_transfers();
    assert_eq!(transfers.received_resumed, 1, "{transfers:?}");
    assert!(transfers.received_bytes < STATE_BYTES - before + SLACK_BYTES, "{before}, then {transfers:?}");
    let sent = group.store(leader).snapshot_transfers();
    assert_eq!(sent.sent_resumed, 1, "{sent:?}");
    assert!(sent.sent_bytes < STATE_BYTES + 2 * SLACK_BYTES, "{sent:?}");
    let least = Duration::from_secs((STATE_BYTES - SLACK_BYTES) / BYTES_PER_SECOND);
    assert!(started.elapsed() >= least, "faster than its rate: {:?}", started.elapsed());
    assert_eq!(partial_files(&group, lagging), 0);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_after_its_connection_broke() {
    let mut group = Group::start(1, slow).await;
    let leader = group.leader().await;
    fill(&group, leader).await;
    let (listener, behind) = group.reserve();
    let proxy = Proxy::to(behind).await;
    let cluster = format!("http://{}", group.serve_etcd(leader));
    let mut cluster = ClusterClient::connect(cluster).await.expect("it listens");
    let peer_ur_ls = vec![format!("http://{}", proxy.address)];
    let added = cluster.member_add(pb::MemberAddRequest { peer_ur_ls, is_learner: true }).await;
    let id = added.expect("added").into_inner().member.expect("the member").id;
    group.join_at(id, listener, proxy.address.clone()).await;

    // The member's own entry on the list may have it begin anew in between; what comes after that does not.
    let learner = group.store(id);
    received(learner, SLACK_BYTES).await;
    let first = learner.snapshot_transfers().received_bytes;
    for cut in 1..=2 {
        received(learner, first + cut * 2 * SLACK_BYTES).await;
        proxy.cut();
    }
    group.converged().await;
    let transfers = learner.snapshot_transfers();
    assert!(transfers.received_resumed >= 2, "{transfers:?}");
    assert!(transfers.received_bytes < STATE_BYTES + first + SLACK_BYTES, "{first}, then {transfers:?}");
    assert_eq!(partial_files(&group, id), 0);
    group.stop().await;
}
