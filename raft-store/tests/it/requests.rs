//! Requests with an id are carried out once: through whichever member, and whatever restarts in between.

use proto::etcd::etcdserverpb as pb;
use raft_store::state_machine::{Command, Op, Outcome, PutRequest, RequestId, TxnCommand};
use raft_store::{Error, Store};
use tonic::Code;

use crate::etcd_auth::{Identity, kv, put};
use crate::group::{Group, eventually};

const CLIENT: &str = "0190f5fe-7c4a-7000-8000-00000000002a";

fn request(sequence: u64) -> Identity {
    Identity { request_id: Some(format!("{CLIENT}:{sequence}")), ..Identity::default() }
}

async fn ready(store: &Store) {
    eventually("all members support request ids", || store.cluster_version() >= 2).await;
}

async fn put_once(store: &Store, sequence: u64) -> Result<pb::PutResponse, tonic::Status> {
    let request_ = pb::PutRequest { prev_kv: true, ..put("k") };
    kv(store, request(sequence)).put(request_).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_through_another_member_gets_the_first_answer() {
    let mut group = Group::start(3, |config| {
        config.checkpoint_entries = 20;
        config.log_entries_kept = 5;
    })
    .await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    ready(group.store(follower)).await;
    ready(group.store(leader)).await;
    let first = put_once(group.store(follower), 1).await.expect("written");
    let second = put_once(group.store(leader), 2).await.expect("written");
    assert_eq!(second.prev_kv.as_ref().expect("there was one").version, 1);
    for id in 1..=3 {
        let again = put_once(group.store(id), 2).await.expect("answered");
        assert_eq!(again.prev_kv, second.prev_kv);
        let revision = |response: &pb::PutResponse| response.header.as_ref().expect("a header").revision;
        assert_eq!(revision(&again), revision(&second));
        assert_eq!(revision(&put_once(group.store(id), 1).await.expect("answered")), revision(&first));
    }
    let written = group.store(leader).revision();
    // Through checkpoints and restarts of all.
    for n in 0..60 {
        crate::group::put(group.store(leader), "other", &n.to_string()).await.expect("written");
    }
    for id in 1..=3 {
        group.stop_member(id).await;
    }
    for id in 1..=3 {
        group.start_member(id).await;
    }
    let leader = group.leader().await;
    let again = put_once(group.store(leader), 2).await.expect("answered");
    assert_eq!(again.prev_kv, second.prev_kv);
    assert_eq!(group.store(leader).revision(), written + 60);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_said_to_be_unknown_and_not_done() {
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let store = group.store(1);
    ready(store).await;
    for sequence in 1..=70 {
        put_once(store, sequence).await.expect("written");
    }
    let revision = store.revision();
    let status = put_once(store, 3).await.expect_err("forgotten");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("not known any more"), "{}", status.message());
    assert_eq!(store.revision(), revision);
    let bad = Identity { request_id: Some("1".into()), ..Identity::default() };
    let status = kv(store, bad).put(put("k")).await.expect_err("no id");
    assert_eq!(status.code(), Code::InvalidArgument);
    group.stop().await;
}

/// The leader is stopped again and again while requests with ids are on their way through a follower: each
/// that is acknowledged was carried out once, and no fate is unknown as long as the deadline holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_its_way_outlives_its_leader() {
    let mut group = Group::start(3, |config| config.propose_timeout = crate::group::PATIENCE).await;
    group.leader().await;
    for id in 1..=3 {
        ready(group.store(id)).await;
    }
    let mut acknowledged = 0;
    for round in 0..3u64 {
        let leader = group.leader().await;
        let follower = group.a_follower().await;
        let store = group.store(follower).clone();
        let writer = tokio::spawn(async move {
            for n in 1..=200 {
                let id = RequestId { client: 42, sequence: round * 200 + n };
                let put = PutRequest { key: "n".into(), value: "v".into(), ..PutRequest::default() };
                let command = Command::Txn(TxnCommand::of(Op::Put(put)));
                match store.propose_request(None, Some(&id), &command).await {
                    Ok(Outcome::Txn(_)) => {}
                    other => return Err::<(), (Result<Outcome, Error>, u64)>((other, n)),
                }
            }
            Ok(())
        });
        group.stop_member(leader).await;
        writer.await.expect("no panic").expect("each is acknowledged");
        acknowledged += 200;
        group.start_member(leader).await;
        group.converged().await;
        let kv = group
            .store(follower)
            .range(&raft_store::state_machine::RangeRequest { key: "n".into(), ..Default::default() });
        assert_eq!(kv.expect("readable").kvs[0].version, acknowledged);
    }
    group.stop().await;
}
