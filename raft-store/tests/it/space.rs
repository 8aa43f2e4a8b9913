//! The quota, the alarms, and compaction that gives space back.

use proto::etcd::etcdserverpb as pb;
use raft_store::Compaction;
use raft_store::state_machine::{Alarm, AlarmAction, AlarmKind, ApplyError, Command, Outcome, RangeRequest};
use tonic::Code;

use crate::etcd_auth::{Identity, kv, put};
use crate::group::{Group, eventually, get, put as put_value};

const QUOTA_BYTES: i64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn at_the_quota_space_comes_back_through_compaction_alone() {
    let group = Group::start(3, |config| {
        config.quota_bytes = QUOTA_BYTES;
        config.compaction = Compaction::Off;
    })
    .await;
    let follower = group.a_follower().await;
    let leader = group.leader().await;
    let store = group.store(leader);
    let mut client = kv(store, Identity::default());
    let large = || pb::PutRequest { value: vec![7u8; 8000].into(), ..put("k") };
    let mut written = 0;
    let refused = loop {
        match client.put(large()).await {
            Ok(_) => written += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    assert_eq!(written, 8, "8 versions of some 8 KB fit into 64 KiB");
    // The alarm is raised for all: even a small write at another member is refused now.
    group.converged().await;
    let grant = Command::LeaseGrant { id: 7, ttl_seconds: 9 };
    let outcome = group.store(follower).propose(&grant).await.expect("answered");
    assert_eq!(outcome, Outcome::Rejected(ApplyError::NoSpace));
    let status = kv(group.store(follower), Identity::default()).put(put("small")).await.expect_err("refused");
    assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
    // Reading, deleting, compacting go on; the space is back at once.
    assert!(get(store, "k").is_some());
    let delete = pb::DeleteRangeRequest { key: "k".into(), ..Default::default() };
    client.delete_range(delete).await.expect("a deletion is possible");
    let revision = i64::try_from(store.revision()).expect("small");
    client.compact(pb::CompactionRequest { revision, physical: false }).await.expect("possible");
    assert!(store.bytes_in_use() < 1000, "{} bytes in use", store.bytes_in_use());
    let alarm = Alarm { kind: AlarmKind::NoSpace, member_id: leader };
    let disarm = Command::Alarm { action: AlarmAction::Deactivate, alarm };
    store.propose(&disarm).await.expect("possible");
    client.put(large()).await.expect("there is room again");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_member_stops_reads_and_writes_until_the_alarm_is_cleared() {
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let store = group.store(1);
    let mut client = kv(store, Identity::default());
    let alarm = |action| Command::Alarm { action, alarm: Alarm { kind: AlarmKind::Corrupt, member_id: 1 } };
    store.propose(&alarm(AlarmAction::Activate)).await.expect("raised");
    let range = || pb::RangeRequest { key: "k".into(), ..Default::default() };
    for status in [
        client.put(put("k")).await.map(drop).expect_err("refused"),
        client.range(range()).await.map(drop).expect_err("refused"),
    ] {
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
    }
    store.propose(&alarm(AlarmAction::Deactivate)).await.expect("cleared");
    client.put(put("k")).await.expect("possible again");
    client.range(range()).await.expect("possible again");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_revisions_are_kept_and_the_rest_is_trimmed_without_further_writes() {
    let group = Group::start(1, |config| config.compaction = Compaction::Off).await;
    group.leader().await;
    let store = group.store(1);
    for n in 0..3000 {
        put_value(store, "k", &n.to_string()).await.expect("written");
    }
    let revision = store.revision();
    let outcome = store.propose(&Command::Compact { revision }).await.expect("compacted");
    assert!(matches!(outcome, Outcome::Compacted { .. }));
    tokio::time::timeout(crate::group::PATIENCE, store.wait_trimmed(revision))
        .await
        .expect("in time")
        .expect("the store runs");
    let old = RangeRequest { key: "k".into(), revision: revision - 1, ..RangeRequest::default() };
    assert!(store.range(&old).is_err());
    eventually("the version of members is agreed", || store.cluster_version() == 2).await;
    group.stop().await;
}
