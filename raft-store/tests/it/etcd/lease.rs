//! Scenarios: leases. Times to live are long: nothing runs out here.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::lease_client::LeaseClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::notes::{Scenario, key, put, span};
use super::txn;

pub(crate) async fn keep_alive(
    client: &mut LeaseClient<Channel>,
    ids: &[i64],
) -> Vec<Result<Response<pb::LeaseKeepAliveResponse>, Status>> {
    let requests: Vec<_> = ids.iter().map(|id| pb::LeaseKeepAliveRequest { id: *id }).collect();
    let mut answers =
        client.lease_keep_alive(tokio_stream::iter(requests)).await.expect("a stream").into_inner();
    let mut all = Vec::new();
    for _ in ids {
        all.push(answers.message().await.map(|answer| Response::new(answer.expect("an answer to each"))));
    }
    all
}

/// Without the time left, which passes.
fn rounded(
    answer: Result<Response<pb::LeaseTimeToLiveResponse>, Status>,
) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
    answer.map(|answer| {
        let mut answer = answer.into_inner();
        if answer.ttl > answer.granted_ttl - 60 && answer.ttl > 0 {
            answer.ttl = answer.granted_ttl;
        }
        answer.keys.sort();
        Response::new(answer)
    })
}

pub(crate) async fn grants(s: &mut Scenario) {
    let grant = |id, ttl| pb::LeaseGrantRequest { id, ttl };
    for (label, request) in [
        ("id given", grant(900, 500)),
        ("id taken", grant(900, 500)),
        ("id chosen", grant(0, 500)),
        ("id negative", grant(-900, 500)),
        ("the longest", grant(901, 9_000_000_000)),
        ("too long", grant(902, 9_000_000_001)),
        ("too long and taken", grant(900, 9_000_000_001)),
    ] {
        let answer = s.lease.lease_grant(request).await;
        s.note(label, &answer);
    }
    for (label, ttl) in [("no time", 0), ("negative time", -5), ("one second", 1)] {
        let answer = s.lease.lease_grant(grant(910 + ttl, ttl)).await;
        s.differs("the least time to live follows from the election timeout, and ours is shorter")
            .note(label, &answer);
        let _ = s.lease.lease_revoke(pb::LeaseRevokeRequest { id: 910 + ttl }).await;
    }
    let leases = s.lease.lease_leases(pb::LeaseLeasesRequest {}).await.map(|answer| {
        let mut answer = answer.into_inner();
        answer.leases.retain(|lease| (900..=902).contains(&lease.id.abs()));
        answer.leases.sort_by_key(|lease| lease.id);
        Response::new(answer)
    });
    s.note("all", &leases);
    for id in [900, 900, -900, 901, 12_345] {
        let answer = s.lease.lease_revoke(pb::LeaseRevokeRequest { id }).await;
        s.note(&format!("revoke {id}"), &answer);
    }
}

pub(crate) async fn keys(s: &mut Scenario) {
    for id in [71, 72] {
        let granted = s.lease.lease_grant(pb::LeaseGrantRequest { id, ttl: 600 }).await;
        s.note(&format!("grant {id}"), &granted);
    }
    let leased = |name: &str, lease| pb::PutRequest { lease, ..put(name, "v") };
    for (label, request) in [
        ("first", leased("z/a", 71)),
        ("second", leased("z/b", 71)),
        ("third", leased("z/c", 72)),
        ("to the other lease", leased("z/b", 72)),
        ("to none", leased("z/c", 0)),
        ("kept", pb::PutRequest { ignore_lease: true, ..put("z/b", "new") }),
    ] {
        let answer = s.kv.put(request).await;
        s.note(label, &answer);
    }
    for id in [71, 72, 73] {
        for keys in [false, true] {
            let answer = s.lease.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys }).await;
            s.note(&format!("time of {id}, keys {keys}"), &rounded(answer));
        }
    }
    for (n, answer) in keep_alive(&mut s.lease, &[71, 73, 72, 0, -1]).await.into_iter().enumerate() {
        s.note(&format!("kept alive {n}"), &answer);
    }
    let read = s.kv.range(span("z/", "z0")).await;
    s.note("before", &read);
    for id in [72, 71, 71] {
        let answer = s.lease.lease_revoke(pb::LeaseRevokeRequest { id }).await;
        s.note(&format!("revoke {id}"), &answer);
    }
    let read = s.kv.range(span("z/", "z0")).await;
    s.note("after", &read);
    let again = pb::TxnRequest { success: vec![txn::op_put("z/a", "anew")], ..Default::default() };
    let again = s.kv.txn(again).await;
    s.note("anew", &again);
    let read = s.kv.range(pb::RangeRequest { key: key("z/a"), ..Default::default() }).await;
    s.note("without a lease", &read);
}
