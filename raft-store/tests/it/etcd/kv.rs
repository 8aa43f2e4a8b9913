//! Scenarios: put, range, delete, compact.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::notes::{Scenario, delete as deletion, get, key, put as write, span};

pub(crate) async fn put(s: &mut Scenario) {
    let first = s.kv.put(write("p/a", "1")).await;
    s.note("first", &first);
    let again = s.kv.put(pb::PutRequest { prev_kv: true, ..write("p/a", "2") }).await;
    s.note("with prev_kv", &again);
    let new = s.kv.put(pb::PutRequest { prev_kv: true, ..write("p/new", "") }).await;
    s.note("prev_kv of a new key", &new);
    let ignore = s.kv.put(pb::PutRequest { ignore_value: true, ..write("p/a", "") }).await;
    s.note("ignore_value", &ignore);
    let ignore = s.kv.put(pb::PutRequest { ignore_lease: true, ..write("p/a", "3") }).await;
    s.note("ignore_lease", &ignore);
    let read = s.kv.range(span("p/", "p0")).await;
    s.note("all of it", &read);
    let binary = [0_u8, 255, b'\n', 0];
    let odd = pb::PutRequest { key: binary.to_vec().into(), ..write("", "x") };
    let odd = s.kv.put(odd).await;
    s.note("a key of any bytes", &odd);
    let read = s.kv.range(pb::RangeRequest { key: binary.to_vec().into(), ..get("") }).await;
    s.note("read back", &read);
}

pub(crate) async fn range(s: &mut Scenario) {
    for n in 0..6 {
        s.put(&format!("r/{n}"), &format!("v{n}")).await;
    }
    let whole = || span("r/", "r0");
    let cases = [
        ("one", get("r/3")),
        ("absent", get("r/x")),
        ("all", whole()),
        ("limit below", pb::RangeRequest { limit: 2, ..whole() }),
        ("limit equal", pb::RangeRequest { limit: 6, ..whole() }),
        ("limit above", pb::RangeRequest { limit: 7, ..whole() }),
        ("negative limit", pb::RangeRequest { limit: -3, ..whole() }),
        ("large limit", pb::RangeRequest { limit: 1 << 40, ..whole() }),
        ("count only", pb::RangeRequest { count_only: true, ..whole() }),
        ("count only with a limit", pb::RangeRequest { count_only: true, limit: 2, ..whole() }),
        ("keys only", pb::RangeRequest { keys_only: true, ..whole() }),
        ("keys and count only", pb::RangeRequest { keys_only: true, count_only: true, ..whole() }),
        ("serializable", pb::RangeRequest { serializable: true, limit: 1, ..whole() }),
        ("inverted", span("r/4", "r/1")),
        ("empty span", span("r/4", "r/4")),
        ("half", span("r/2", "r/4")),
        ("from a key", pb::RangeRequest { limit: 1, ..span("r/5", "\0") }),
        ("everything", pb::RangeRequest { count_only: true, ..span("\0", "\0") }),
        ("old revision", pb::RangeRequest { revision: s.base + 3, ..whole() }),
        ("old revision, limit", pb::RangeRequest { revision: s.base + 3, limit: 2, ..whole() }),
        ("future revision", pb::RangeRequest { revision: s.base + 1000, ..whole() }),
        ("negative revision", pb::RangeRequest { revision: -7, limit: 1, ..whole() }),
    ];
    for (label, request) in cases {
        let answer = s.kv.range(request).await;
        s.note(label, &answer);
    }
}

pub(crate) async fn range_sorted(s: &mut Scenario) {
    // Versions: a 3, b 1, c 2; creation order b, a, c; values x < y < z for c, a, b.
    for (name, value) in [("b", "z"), ("a", "1"), ("c", "2"), ("a", "3"), ("c", "x"), ("a", "y")] {
        s.put(&format!("s/{name}"), value).await;
    }
    for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
        for target in
            [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value]
        {
            for limit in [0, 2] {
                let request = pb::RangeRequest {
                    sort_order: order.into(),
                    sort_target: target.into(),
                    limit,
                    ..span("s/", "s0")
                };
                let answer = s.kv.range(request).await;
                if order == SortOrder::None && limit != 0 {
                    s.differs("etcd cuts off at the limit before it sorts, and so drops any of the keys");
                }
                s.note(&format!("{order:?} {target:?} limit {limit}"), &answer);
            }
        }
    }
    // Equal in what they are sorted by.
    for name in ["e", "g", "f"] {
        s.put(&format!("t/{name}"), "same").await;
    }
    for order in [SortOrder::Ascend, SortOrder::Descend] {
        let request = pb::RangeRequest {
            sort_order: order.into(),
            sort_target: SortTarget::Value.into(),
            ..span("t/", "t0")
        };
        let answer = s.kv.range(request).await;
        if order == SortOrder::Descend {
            s.differs("etcd sorts equals as it happens; ours stay in key order, here reversed");
        }
        s.note(&format!("equals {order:?}"), &answer);
    }
}

pub(crate) async fn range_bounded(s: &mut Scenario) {
    for name in ["a", "b", "c", "a", "b"] {
        s.put(&format!("b/{name}"), "v").await;
    }
    let base = s.base;
    let whole = || span("b/", "b0");
    let cases = [
        ("min mod", pb::RangeRequest { min_mod_revision: base + 4, ..whole() }),
        ("max mod", pb::RangeRequest { max_mod_revision: base + 4, ..whole() }),
        ("min create", pb::RangeRequest { min_create_revision: base + 2, ..whole() }),
        ("max create", pb::RangeRequest { max_create_revision: base + 2, ..whole() }),
        ("limit", pb::RangeRequest { max_create_revision: base + 2, limit: 1, ..whole() }),
        ("limit not reached", pb::RangeRequest { max_create_revision: base + 1, limit: 1, ..whole() }),
        ("count only", pb::RangeRequest { max_create_revision: base + 1, count_only: true, ..whole() }),
        ("nothing left", pb::RangeRequest { min_mod_revision: base + 500, ..whole() }),
        ("negative min", pb::RangeRequest { min_mod_revision: -1, ..whole() }),
        ("negative max", pb::RangeRequest { max_mod_revision: -1, ..whole() }),
        ("negative max create", pb::RangeRequest { max_create_revision: -1, ..whole() }),
    ];
    for (label, request) in cases {
        let answer = s.kv.range(request).await;
        s.note(label, &answer);
    }
}

pub(crate) async fn delete(s: &mut Scenario) {
    for name in ["a", "b", "c", "d", "e"] {
        s.put(&format!("d/{name}"), name).await;
    }
    let cases = [
        ("one", deletion("d/a", "")),
        ("again", deletion("d/a", "")),
        ("with prev_kv", pb::DeleteRangeRequest { prev_kv: true, ..deletion("d/b", "d/d") }),
        ("inverted", deletion("d/z", "d/a")),
        ("nothing, with prev_kv", pb::DeleteRangeRequest { prev_kv: true, ..deletion("d/b", "d/d") }),
        ("the rest", deletion("d/", "d0")),
    ];
    for (label, request) in cases {
        let answer = s.kv.delete_range(request).await;
        s.note(label, &answer);
    }
    s.put("d/a", "anew").await;
    let anew = s.kv.range(get("d/a")).await;
    s.note("created anew", &anew);
    let old = s.kv.range(pb::RangeRequest { revision: s.base + 6, ..span("d/", "d0") }).await;
    s.note("before the deletion", &old);
}

pub(crate) async fn errors(s: &mut Scenario) {
    let answer = s.kv.put(write("", "v")).await;
    s.note("put without a key", &answer);
    let answer = s.kv.range(span("", "x")).await;
    s.note("range without a key", &answer);
    let answer = s.kv.delete_range(deletion("", "x")).await;
    s.note("delete without a key", &answer);
    let answer = s.kv.put(pb::PutRequest { ignore_value: true, ..write("e/a", "v") }).await;
    s.note("value and ignore_value", &answer);
    let answer = s.kv.put(pb::PutRequest { ignore_lease: true, lease: 5, ..write("e/a", "v") }).await;
    s.note("lease and ignore_lease", &answer);
    let answer = s.kv.put(pb::PutRequest { ignore_value: true, ..write("e/none", "") }).await;
    s.note("ignore_value without a key there", &answer);
    let answer = s.kv.put(pb::PutRequest { ignore_lease: true, ..write("e/none", "") }).await;
    s.note("ignore_lease without a key there", &answer);
    let answer = s.kv.put(pb::PutRequest { lease: 5_555, ..write("e/a", "v") }).await;
    s.note("no such lease", &answer);
    let answer = s.kv.put(pb::PutRequest { lease: -1, ..write("e/a", "v") }).await;
    s.note("a negative lease", &answer);
    let answer = s.kv.put(write("e/large", &"x".repeat(3 * 512 * 1024 + 10))).await;
    s.note("a large value", &answer);
    let answer = s.kv.put(write("e/large", &"x".repeat(1536 * 1024 + 512 * 1024 - 17))).await;
    s.note("the largest message read", &answer);
    let answer = s.kv.put(write("e/large", &"x".repeat(3 * 1024 * 1024))).await;
    s.note("a message beyond", &answer);
    let answer = s.kv.put(write("e/fits", &"x".repeat(1024 * 1024))).await;
    s.note("a value that fits", &answer);
}

pub(crate) async fn compaction(s: &mut Scenario) {
    for n in 0..6 {
        s.put("c/a", &format!("{n}")).await;
    }
    let base = s.base;
    let deleted = s.kv.delete_range(deletion("c/a", "")).await;
    s.note("deleted", &deleted);
    let future = s.kv.compact(pb::CompactionRequest { revision: base + 100, physical: false }).await;
    s.note("in the future", &future);
    let negative = s.kv.compact(pb::CompactionRequest { revision: -3, physical: false }).await;
    s.note("negative", &negative);
    let compacted = s.kv.compact(pb::CompactionRequest { revision: base + 3, physical: false }).await;
    s.note("compacted", &compacted);
    let again = s.kv.compact(pb::CompactionRequest { revision: base + 3, physical: false }).await;
    s.note("again", &again);
    let zero = s.kv.compact(pb::CompactionRequest { revision: 0, physical: false }).await;
    s.note("zero", &zero);
    let below = s.kv.range(pb::RangeRequest { revision: base + 2, ..get("c/a") }).await;
    s.note("read below", &below);
    let at = s.kv.range(pb::RangeRequest { revision: base + 3, ..get("c/a") }).await;
    s.note("read at", &at);
    let physical = s.kv.compact(pb::CompactionRequest { revision: base + 7, physical: true }).await;
    s.note("physical", &physical);
    let at = s.kv.range(pb::RangeRequest { revision: base + 7, ..get("c/a") }).await;
    s.note("read at a deletion", &at);
    let within = pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(pb::RangeRequest {
                revision: base + 1,
                ..get("c/a")
            })),
        }],
        ..Default::default()
    };
    let within = s.kv.txn(within).await;
    s.note("read below, in a transaction", &within);
    s.put("c/a", "last").await;
    let last = s.kv.range(pb::RangeRequest { key: key("c/a"), ..Default::default() }).await;
    s.note("afterwards", &last);
}
