//! etcd's behaviour: the same scenarios against our store, a record of etcd 3.5 and, if one is on PATH, a real etcd.
//!
//! A scenario asks over gRPC and notes every answer as text, without what must differ (ids, terms, the revision
//! it began at). Our group's notes must equal those in `behaviour.txt`, line by line, and those of a live etcd.
//! Where ours differ on purpose, the scenario's own call says so and why ([`Scenario::differs`]).
//! `BARQUE_RECORD=1` writes `behaviour.txt` anew from the etcd on PATH, which must be 3.5.

mod auth;
mod kv;
mod lease;
mod lease_time;
mod lock;
mod notes;
mod real;
mod txn;
mod watch;
mod watch_load;

use std::io::Write;

use futures_util::future::BoxFuture;
use prost::Message;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use tonic::transport::Channel;

use crate::group::{Group, PATIENCE};
use notes::{Note, Scenario};
use real::RealEtcd;

type Run = for<'a> fn(&'a mut Scenario) -> BoxFuture<'a, ()>;

const SCENARIOS: &[(&str, Run)] = &[
    ("put", |s| Box::pin(kv::put(s))),
    ("range", |s| Box::pin(kv::range(s))),
    ("range sorted", |s| Box::pin(kv::range_sorted(s))),
    ("range bounded", |s| Box::pin(kv::range_bounded(s))),
    ("delete", |s| Box::pin(kv::delete(s))),
    ("kv errors", |s| Box::pin(kv::errors(s))),
    ("txn compares", |s| Box::pin(txn::compares(s))),
    ("txn odd compares", |s| Box::pin(txn::odd_compares(s))),
    ("txn nested", |s| Box::pin(txn::nested(s))),
    ("txn duplicates", |s| Box::pin(txn::duplicates(s))),
    ("txn limits", |s| Box::pin(txn::limits(s))),
    ("txn ranges", |s| Box::pin(txn::ranges(s))),
    ("watch events", |s| Box::pin(watch::events(s))),
    ("watch response", |s| Box::pin(watch::one_response(s))),
    ("watch ids", |s| Box::pin(watch::ids(s))),
    ("watch progress", |s| Box::pin(watch::progress(s))),
    ("watch fragments", |s| Box::pin(watch::fragments(s))),
    ("lease grants", |s| Box::pin(lease::grants(s))),
    ("lease keys", |s| Box::pin(lease::keys(s))),
    ("locks", |s| Box::pin(lock::locks(s))),
    ("lock, lost session", |s| Box::pin(lock::lost_session(s))),
    ("elections", |s| Box::pin(lock::elections(s))),
    // These compact, so they come last.
    ("compaction", |s| Box::pin(kv::compaction(s))),
    ("watch compacted", |s| Box::pin(watch::compacted(s))),
];

/// What etcd 3.5.1 answered.
const RECORD: &str = include_str!("behaviour.txt");

async fn run_all(addresses: &[String]) -> Vec<Note> {
    let mut notes = Vec::new();
    for (number, (name, run)) in SCENARIOS.iter().enumerate() {
        let address = &addresses[number % addresses.len()];
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        let mut scenario = Scenario::begin(name, endpoint.connect().await.expect("it listens")).await;
        let ran = tokio::time::timeout(PATIENCE, run(&mut scenario)).await;
        assert!(ran.is_ok(), "{name} at {address} hangs after {:?}", scenario.last_label());
        notes.append(&mut scenario.end());
    }
    notes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_answers_are_etcds() {
    let group = Group::start(3, |_| {}).await;
    group.leader().await;
    let addresses: Vec<_> = [1, 2, 3].map(|id| group.serve_etcd(id)).into();
    let ours = run_all(&addresses).await;
    group.converged().await;

    if let Some(etcd) = RealEtcd::start().await {
        let theirs = run_all(std::slice::from_ref(&etcd.address)).await;
        if std::env::var_os("BARQUE_RECORD").is_some() {
            assert!(etcd.version >= (3, 5), "record etcd 3.5, not {:?}", etcd.version);
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/etcd/behaviour.txt");
            let text: String = theirs.iter().map(|note| format!("{}\n", note.line())).collect();
            std::fs::write(path, text).expect("the record is writable");
        }
        compare(&ours, &theirs.iter().map(Note::line).collect::<Vec<_>>(), etcd.version, "the etcd on PATH");
    } else {
        let _ = writeln!(std::io::stderr(), "skipped: no etcd on PATH to compare with; its record was used");
    }
    if std::env::var_os("BARQUE_RECORD").is_none() {
        let record: Vec<_> = RECORD.lines().map(str::to_owned).collect();
        compare(&ours, &record, (3, 5), "the record");
    }
    group.stop().await;
}

/// Not a scenario: an unknown target ends the process of an etcd before 3.6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_sort_is_refused() {
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let address = group.serve_etcd(1);
    let mut kv = KvClient::connect(format!("http://{address}")).await.expect("it listens");
    for request in [
        pb::RangeRequest { sort_order: 9, ..notes::get("a") },
        pb::RangeRequest { sort_target: 9, ..notes::get("a") },
    ] {
        let refused = kv.range(request).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert_eq!(refused.message(), "etcdserver: invalid sort option");
    }
    group.stop().await;
}

/// Not a scenario: etcd has no such limit. An entry that nests deeper can be written and not be read back, and a
/// member that cannot read its log stops: one such request once ended every member for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_nests_too_deeply_is_refused_and_ends_no_member() {
    let group = Group::start(3, |_| {}).await;
    let follower = group.a_follower().await;
    let mut kv =
        KvClient::connect(format!("http://{}", group.serve_etcd(follower))).await.expect("it listens");
    // The outermost transaction counts, too.
    let nested = |levels: usize| {
        let innermost = pb::TxnRequest { success: vec![txn::op_put("deep", "v")], ..Default::default() };
        (1..levels).fold(innermost, |txn, _| pb::TxnRequest {
            success: vec![txn::op(pb::request_op::Request::RequestTxn(txn))],
            ..Default::default()
        })
    };
    kv.txn(nested(8)).await.expect("eight levels are taken");
    for levels in [9, 10, 40] {
        let refused = kv.txn(nested(levels)).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    }
    for id in 1..=3 {
        crate::group::put(group.store(id), "after", "v").await.expect("every member goes on");
    }
    group.converged().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_in_pieces_is_the_range() {
    let group = Group::start(3, |_| {}).await;
    let follower = group.a_follower().await;
    let mut kv =
        KvClient::connect(format!("http://{}", group.serve_etcd(follower))).await.expect("it listens");
    for n in 0..40 {
        kv.put(notes::put(&format!("k/{n:02}"), &"v".repeat(10_000))).await.expect("written");
    }
    for request in [
        notes::span("k/", "k0"),
        pb::RangeRequest { limit: 30, ..notes::span("k/", "k0") },
        pb::RangeRequest { keys_only: true, sort_order: 2, ..notes::span("k/", "k0") },
        pb::RangeRequest { count_only: true, ..notes::span("k/", "k0") },
        notes::get("k/none"),
    ] {
        let whole = kv.range(request.clone()).await.expect("read").into_inner();
        let mut pieces = kv.range_stream(request).await.expect("read").into_inner();
        let mut merged = pb::RangeResponse::default();
        while let Some(piece) = pieces.message().await.expect("goes on") {
            merged.merge(piece.range_response.expect("a piece").encode_to_vec().as_slice()).expect("merges");
        }
        assert_eq!(merged, whole);
    }
    let refused = kv.range_stream(pb::RangeRequest { revision: 999, ..notes::get("a") }).await;
    assert_eq!(refused.expect_err("refused").code(), tonic::Code::OutOfRange);
    group.stop().await;
}

fn compare(ours: &[Note], theirs: &[String], version: (u32, u32), what: &str) {
    assert_eq!(ours.len(), theirs.len(), "other steps than {what}: is behaviour.txt up to date?");
    let mut differences = String::new();
    for (our, their) in ours.iter().zip(theirs) {
        if our.line() != *their && our.must_agree_with(version) {
            differences += &format!("  ours:   {}\n  theirs: {their}\n\n", our.line());
        }
    }
    assert!(differences.is_empty(), "answers differ from {what} {version:?}:\n{differences}");
}
