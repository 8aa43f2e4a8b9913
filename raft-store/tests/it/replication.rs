//! Writes, reads, watches and leadership in a group where nothing fails.

use bytes::Bytes;
use raft_store::Error;
use raft_store::state_machine::Command;

use crate::group::{Group, eventually, get, put, put_if, txn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_takes_writes_and_reads_its_own_and_others() {
    let group = Group::start(3, |_| {}).await;
    group.leader().await;
    for id in 1..=3 {
        put(group.store(id), &format!("/k{id}"), &format!("v{id}")).await.expect("written");
        for reader in 1..=3 {
            group.store(reader).linearize().await.expect("a leader confirms");
            assert_eq!(get(group.store(reader), &format!("/k{id}")), Some(format!("v{id}")));
        }
    }
    group.converged().await;
    group.stop().await;
}

/// As with etcd: whoever wrote through a follower reads it there, without asking for a linearizable read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_through_a_follower_is_read_there_at_once() {
    let group = Group::start(3, |_| {}).await;
    group.leader().await;
    let follower = group.a_follower().await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = group.store(follower).clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    let (key, value) = (format!("/writer-{writer}"), n.to_string());
                    put(&store, &key, &value).await.expect("written");
                    assert_eq!(get(&store, &key), Some(value), "as its writer left it");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("read its own writes");
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_works_alone() {
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let first = put(group.store(1), "/a", "1").await.expect("written");
    assert_eq!(first.revision, 2, "as in etcd, the first write is revision 2");
    group.store(1).linearize().await.expect("linearizable");
    assert_eq!(get(group.store(1), "/a").as_deref(), Some("1"));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_writers_that_saw_the_same_version_one_wins() {
    let group = Group::start(3, |_| {}).await;
    group.leader().await;
    let seen = put(group.store(1), "/a", "0").await.expect("written").revision;
    let (one, two) = tokio::join!(
        txn(group.store(2), put_if("/a", seen, "one", None)),
        txn(group.store(3), put_if("/a", seen, "two", None)),
    );
    let won = [one.expect("decided").succeeded, two.expect("decided").succeeded];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_fenced_by_an_older_term_loses_in_the_log() {
    let group = Group::start(3, |_| {}).await;
    let old_leader = group.leader().await;
    let old_term = group.store(old_leader).leadership().term;
    let seen = put(group.store(old_leader), "/pod", "unbound").await.expect("written").revision;

    let next = group.a_follower().await;
    group.store(old_leader).transfer_leader(next).await.expect("handed over");
    eventually("the other leads", || group.store(next).leadership().is_self).await;
    let new_term = group.store(next).leadership().term;
    assert!(new_term > old_term);

    let late = txn(group.store(old_leader), put_if("/pod", seen, "bound by old", Some(old_term))).await;
    assert!(late.expect("decided").fenced);
    let now = txn(group.store(old_leader), put_if("/pod", seen, "bound by new", Some(new_term))).await;
    assert!(now.expect("decided").succeeded);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_history_then_what_comes_and_only_its_range() {
    let group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    let start = put(group.store(leader), "/pods/a", "1").await.expect("written").revision;
    put(group.store(leader), "/nodes/x", "1").await.expect("written");
    group.store(follower).linearize().await.expect("caught up");

    let (from, to) = (Bytes::from_static(b"/pods/"), Bytes::from_static(b"/pods0"));
    let mut watcher = group.store(follower).watch(from, to, start).expect("not compacted");
    put(group.store(leader), "/pods/b", "2").await.expect("written");
    put(group.store(leader), "/nodes/y", "1").await.expect("written");
    let last = put(group.store(leader), "/pods/a", "3").await.expect("written").revision;

    let mut seen = Vec::new();
    while seen.len() < 3 {
        for batch in watcher.next().await.expect("goes on") {
            for event in batch.events {
                seen.push((batch.revision, event.kv.key.clone(), event.prev_kv.is_some()));
            }
        }
    }
    let keys: Vec<_> =
        seen.iter().map(|(_, key, prev)| (std::str::from_utf8(key).expect("text"), *prev)).collect();
    assert_eq!(keys, [("/pods/a", false), ("/pods/b", false), ("/pods/a", true)]);
    assert_eq!(seen[2].0, last);
    eventually("progress reaches the newest revision", || watcher.progress() == Some(last)).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_below_the_compact_revision_is_refused() {
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    for n in 0..5 {
        put(group.store(1), "/a", &n.to_string()).await.expect("written");
    }
    group.store(1).propose(&Command::Compact { revision: 4 }).await.expect("compacted");
    let refused = group.store(1).watch(Bytes::from_static(b"/a"), Bytes::new(), 2).err();
    assert_eq!(refused, Some(Error::Compacted { requested: 2, compact_revision: 4 }));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_with_both_sizes() {
    let group = Group::start(1, |config| config.request_bytes_max = 1024).await;
    group.leader().await;
    let refused = put(group.store(1), "/a", &"x".repeat(2000)).await;
    assert!(
        matches!(refused, Err(Error::TooLarge { bytes, bytes_max: 1024 }) if bytes > 2000),
        "{refused:?}"
    );
    group.stop().await;
}
