//! Transactions that only read: answered from a member's state, as the log would have answered them.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::etcdserverpb::request_op::Request;

use crate::etcd_auth::{Identity, kv, put};
use crate::group::{Group, eventually};

fn get(key: &str, serializable: bool) -> pb::RequestOp {
    range(pb::RangeRequest { key: key.as_bytes().to_vec().into(), serializable, ..Default::default() })
}

fn range(range: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestRange(range)) }
}

fn nested(txn: pb::TxnRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestTxn(txn)) }
}

fn exists(key: &str) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        key: key.as_bytes().to_vec().into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    }
}

fn then(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

/// Every answer that a transaction of ranges can get, the refusals included.
fn questions() -> Vec<pb::TxnRequest> {
    let at =
        |revision| range(pb::RangeRequest { key: b"k".as_slice().into(), revision, ..Default::default() });
    let all = range(pb::RangeRequest {
        key: b"\0".as_slice().into(),
        range_end: b"\0".as_slice().into(),
        limit: 1,
        keys_only: true,
        ..Default::default()
    });
    let either = |key: &str| pb::TxnRequest {
        compare: vec![exists(key)],
        success: vec![get("k", false), all.clone()],
        failure: vec![get("none", false)],
    };
    let deep = (0..8).fold(either("k"), |txn, _| then(vec![nested(txn)]));
    vec![
        pb::TxnRequest::default(),
        pb::TxnRequest { compare: vec![exists("k")], ..Default::default() },
        either("k"),
        either("none"),
        then(vec![nested(either("none")), get("k", false), nested(either("k"))]),
        then(vec![at(2), at(3)]),
        then(vec![at(1)]),
        then(vec![at(900)]),
        deep,
        then(vec![get("k", false); 129]),
        then(vec![get("", false)]),
        then(vec![pb::RequestOp { request: None }]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_does_not_grow_and_the_answers_are_its_own() {
    let group = Group::start(3, |_| {}).await;
    let follower = group.a_follower().await;
    let store = group.store(follower);
    eventually("all members support request ids", || store.cluster_version() >= 2).await;
    let mut client = kv(store, Identity::default());
    for _ in 0..3 {
        client.put(put("k")).await.expect("written");
    }
    client.compact(pb::CompactionRequest { revision: 2, physical: true }).await.expect("compacted");
    let leader = group.settled().await;

    let applied = group.store(leader).status().applied_index;
    let mut read = Vec::new();
    for question in questions() {
        let answer = client.txn(question).await.map(tonic::Response::into_inner);
        read.push(answer.map_err(|status| (status.code(), status.message().to_owned())));
    }
    assert_eq!(group.store(leader).status().applied_index, applied, "nothing went through the log");

    // The answer to a request with an id is kept, so this is how the log answers.
    let mut refused = 0;
    for (number, (question, read)) in questions().into_iter().zip(&read).enumerate() {
        let id = format!("0190f5fe-7c4a-7000-8000-00000000002a:{}", number + 1);
        let identity = Identity { request_id: Some(id), ..Identity::default() };
        let logged = kv(store, identity).txn(question.clone()).await.map(tonic::Response::into_inner);
        let logged = logged.map_err(|status| (status.code(), status.message().to_owned()));
        refused += usize::from(logged.is_err());
        assert_eq!(*read, logged, "{question:?}");
    }
    assert_eq!(refused, 6, "{read:?}");
    assert!(group.store(leader).status().applied_index > applied);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_sees_what_another_member_acknowledged() {
    let group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    let mut writer = kv(group.store(leader), Identity::default());
    let mut reader = kv(group.store(follower), Identity::default());
    for n in 0..100 {
        let written = writer.put(put("k")).await.expect("written").into_inner();
        let written = written.header.expect("a header").revision;
        // A compare alone, and a range.
        let newest = pb::Compare {
            target: CompareTarget::Mod.into(),
            target_union: Some(TargetUnion::ModRevision(written)),
            result: CompareResult::Equal.into(),
            ..exists("k")
        };
        let success = if n % 2 == 0 { vec![] } else { vec![get("k", false)] };
        let question = pb::TxnRequest { compare: vec![newest], success, ..Default::default() };
        assert!(reader.txn(question).await.expect("answered").into_inner().succeeded, "write {n}");
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_only_serializable_ones_are_answered() {
    let mut group = Group::start(3, |config| {
        config.read_timeout = std::time::Duration::from_millis(500);
    })
    .await;
    let leader = group.leader().await;
    kv(group.store(leader), Identity::default()).put(put("k")).await.expect("written");
    group.converged().await;
    let left = group.a_follower().await;
    for id in [1, 2, 3].into_iter().filter(|id| *id != left) {
        group.kill_member(id).await;
    }
    let mut client = kv(group.store(left), Identity::default());
    let serializable = then(vec![nested(then(vec![get("k", true)])), get("k", true)]);
    let answer = client.txn(serializable).await.expect("answered").into_inner();
    assert_eq!(answer.responses.len(), 2);
    for question in [
        then(vec![get("k", true), get("k", false)]),
        then(vec![nested(then(vec![get("k", false)]))]),
        pb::TxnRequest { compare: vec![exists("k")], ..Default::default() },
    ] {
        client.txn(question).await.expect_err("nobody confirms it");
    }
    group.stop().await;
}
