//! Scenarios: transactions.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::etcdserverpb::request_op::Request;

use super::notes::{Scenario, delete, get, key, put, span};

pub(crate) fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub(crate) fn op_put(name: &str, value: &str) -> pb::RequestOp {
    op(Request::RequestPut(put(name, value)))
}

fn op_get(name: &str) -> pb::RequestOp {
    op(Request::RequestRange(get(name)))
}

fn op_delete(from: &str, to: &str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(delete(from, to)))
}

fn op_txn(txn: pb::TxnRequest) -> pb::RequestOp {
    op(Request::RequestTxn(txn))
}

fn then(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

fn compare(name: &str, result: i32, target: i32, operand: Option<TargetUnion>) -> pb::Compare {
    pb::Compare { result, target, key: key(name), target_union: operand, ..Default::default() }
}

async fn judge(s: &mut Scenario, label: &str, compares: Vec<pb::Compare>) {
    let answer = s.kv.txn(pb::TxnRequest { compare: compares, ..Default::default() }).await;
    let text = match &answer {
        Ok(answer) => format!("{}", answer.get_ref().succeeded),
        Err(status) => format!("{:?} {:?}", status.code(), status.message()),
    };
    s.note_text(label, &text);
}

pub(crate) async fn compares(s: &mut Scenario) {
    s.put("m/a", "x").await;
    s.put("m/a", "y").await;
    s.put("m/b", "y").await;
    let created = s.base + 1;
    use CompareTarget as T;
    let operands = [
        (T::Version, [1, 2, 3].map(TargetUnion::Version).to_vec()),
        (T::Create, [created - 1, created, created + 1].map(TargetUnion::CreateRevision).to_vec()),
        (T::Mod, [created, created + 1, created + 2].map(TargetUnion::ModRevision).to_vec()),
        (T::Value, ["x", "y", "z"].map(|value| TargetUnion::Value(key(value))).to_vec()),
        (T::Lease, [-1, 0, 1].map(TargetUnion::Lease).to_vec()),
    ];
    for (target, operands) in operands {
        for (n, operand) in operands.into_iter().enumerate() {
            for result in
                [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Greater, CompareResult::Less]
            {
                for name in ["m/a", "m/none"] {
                    let label = format!("{name} {target:?} {result:?} operand {n}");
                    let compare = compare(name, result.into(), target.into(), Some(operand.clone()));
                    judge(s, &label, vec![compare]).await;
                }
            }
        }
    }
    for (label, from, to, value) in [
        ("every value", "m/", "m0", "y"),
        ("not every value", "m/", "m0", "x"),
        ("of no key", "n/", "n0", "y"),
        ("inverted", "m0", "m/", "y"),
    ] {
        let operand = Some(TargetUnion::Value(key(value)));
        let mut all = compare(from, CompareResult::Equal.into(), T::Value.into(), operand);
        all.range_end = key(to);
        judge(s, label, vec![all]).await;
    }
    let mut version =
        compare("n/", CompareResult::Equal.into(), T::Version.into(), Some(TargetUnion::Version(0)));
    version.range_end = key("n0");
    judge(s, "no key's version is 0", vec![version]).await;
}

pub(crate) async fn odd_compares(s: &mut Scenario) {
    s.put("o/a", "x").await;
    let results = [0, 1, 2, 3, 77];
    for name in ["o/a", "o/none"] {
        for result in results {
            for target in [0, 3, 99] {
                judge(
                    s,
                    &format!("{name} result {result} target {target}"),
                    vec![compare(name, result, target, None)],
                )
                .await;
            }
            let negative = compare(name, result, 0, Some(TargetUnion::Version(-4)));
            judge(s, &format!("{name} result {result} negative version"), vec![negative]).await;
            let negative = compare(name, result, 2, Some(TargetUnion::ModRevision(-4)));
            judge(s, &format!("{name} result {result} negative mod"), vec![negative]).await;
            let other = compare(name, result, 2, Some(TargetUnion::Value(key("x"))));
            judge(s, &format!("{name} result {result} another operand"), vec![other]).await;
        }
    }
    judge(s, "no key", vec![compare("", 0, 0, None)]).await;
    judge(s, "nothing at all", vec![]).await;
}

pub(crate) async fn nested(s: &mut Scenario) {
    s.put("n/a", "1").await;
    let exists = |name: &str| compare(name, CompareResult::Greater.into(), 0, Some(TargetUnion::Version(0)));
    let inner = |name: &str| pb::TxnRequest {
        compare: vec![exists(name)],
        success: vec![op_put(&format!("{name}/then"), "t"), op_get("n/a")],
        failure: vec![op_put(&format!("{name}/else"), "e")],
    };
    let both = then(vec![op_txn(inner("n/a")), op_txn(inner("n/none")), op_get("n/a/then")]);
    let answer = s.kv.txn(both).await;
    s.note("both ways", &answer);
    let sees_before = then(vec![op_put("n/new", "1"), op_txn(inner("n/new"))]);
    let answer = s.kv.txn(sees_before).await;
    s.note("inner compares see the state before", &answer);
    let answer = s.kv.txn(then(vec![op_txn(pb::TxnRequest::default())])).await;
    s.note("empty within", &answer);
    let answer = s.kv.txn(then(vec![op_txn(then(vec![op_txn(then(vec![op_delete("n/", "n0")]))]))])).await;
    s.note("three deep", &answer);
    let answer = s.kv.txn(then(vec![op_txn(then(vec![op_put("", "x")]))])).await;
    s.note("a bad put within", &answer);
}

pub(crate) async fn duplicates(s: &mut Scenario) {
    let branch = |success, failure| op_txn(pb::TxnRequest { compare: vec![], success, failure });
    let cases = [
        ("put twice", vec![op_put("u/a", "1"), op_put("u/a", "2")]),
        ("put and delete", vec![op_put("u/a", "1"), op_delete("u/a", "")]),
        ("delete and put", vec![op_delete("u/a", ""), op_put("u/a", "1")]),
        ("put in a deleted range", vec![op_delete("u/", "u0"), op_put("u/a", "1")]),
        ("put beside a deleted range", vec![op_delete("u/a", "u/c"), op_put("u/c", "1")]),
        ("delete twice", vec![op_delete("u/", "u0"), op_delete("u/", "u0")]),
        ("get and put", vec![op_get("u/a"), op_put("u/a", "1"), op_get("u/a")]),
        ("put above and within", vec![op_put("u/a", "1"), branch(vec![op_put("u/a", "2")], vec![])]),
        ("put in both branches", vec![branch(vec![op_put("u/a", "1")], vec![op_put("u/a", "2")])]),
        (
            "put in two nested",
            vec![branch(vec![op_put("u/a", "1")], vec![]), branch(vec![op_put("u/a", "2")], vec![])],
        ),
        (
            "put in opposite branches of two",
            vec![branch(vec![op_put("u/a", "1")], vec![]), branch(vec![], vec![op_put("u/a", "2")])],
        ),
        ("delete above, put within", vec![op_delete("u/", "u0"), branch(vec![op_put("u/a", "2")], vec![])]),
        ("put above, delete within", vec![op_put("u/a", "1"), branch(vec![], vec![op_delete("u/", "u0")])]),
        (
            "delete within, put in the next",
            vec![branch(vec![op_delete("u/", "u0")], vec![]), branch(vec![op_put("u/a", "2")], vec![])],
        ),
    ];
    for (label, ops) in cases {
        let answer = s.kv.txn(then(ops.clone())).await;
        s.note(label, &answer);
        let unlikely = compare("u/none", CompareResult::Greater.into(), 0, None);
        let failure = pb::TxnRequest { compare: vec![unlikely], success: vec![], failure: ops };
        let answer = s.kv.txn(failure).await;
        s.note(&format!("{label}, as failure"), &answer);
    }
    let late = vec![branch(vec![op_put("u/z", "2")], vec![]), branch(vec![op_delete("u/z", "")], vec![])];
    let answer = s.kv.txn(then(late)).await;
    s.differs(
        "etcd overlooks a deletion in a later nested transaction and writes the key twice at one revision",
    )
    .note("put within, delete in the next", &answer);
    let open = vec![op_put("u/y", "2"), op_delete("u/x", "\0")];
    let answer = s.kv.txn(then(open)).await;
    s.differs(
        "etcd overlooks deletions to the end of the keys, \"\\0\", and writes the key twice at one revision",
    )
    .note("put and delete to the end", &answer);
}

pub(crate) async fn limits(s: &mut Scenario) {
    let puts =
        |from: usize, n: usize| (from..from + n).map(|n| op_put(&format!("l/{n}"), "v")).collect::<Vec<_>>();
    let outcome = |answer: Result<tonic::Response<pb::TxnResponse>, tonic::Status>| match answer {
        Ok(answer) => format!("{} answers", answer.get_ref().responses.len()),
        Err(status) => format!("{:?} {:?}", status.code(), status.message()),
    };
    let cases = [
        ("128", then(puts(0, 128))),
        ("129", then(puts(0, 129))),
        ("129 in failure", pb::TxnRequest { failure: puts(0, 129), ..Default::default() }),
        (
            "128 and 128",
            pb::TxnRequest { failure: puts(0, 128), success: puts(0, 128), ..Default::default() },
        ),
        ("127 within one", then(vec![op_txn(then(puts(0, 127)))])),
        ("128 within one", then(vec![op_txn(then(puts(0, 128)))])),
        (
            "129 compares",
            pb::TxnRequest { compare: vec![compare("l/0", 0, 0, None); 129], ..Default::default() },
        ),
        ("an operation that says nothing", then(vec![pb::RequestOp { request: None }])),
        ("a range without a key", then(vec![op_get("")])),
        ("a deletion without a key", then(vec![op_delete("", "x")])),
        ("no lease", then(vec![op(Request::RequestPut(pb::PutRequest { lease: 4_444, ..put("l/a", "v") }))])),
        (
            "no key to keep the value of",
            then(vec![op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("l/none", "") }))]),
        ),
        (
            "not in the branch taken",
            pb::TxnRequest {
                failure: vec![op(Request::RequestPut(pb::PutRequest { lease: 4_444, ..put("l/a", "v") }))],
                ..Default::default()
            },
        ),
    ];
    for (label, request) in cases {
        let answer = s.kv.txn(request).await;
        let text = outcome(answer);
        s.note_text(label, &text);
    }
    let after = s.kv.range(pb::RangeRequest { count_only: true, ..span("l/", "l0") }).await;
    s.note("afterwards", &after);
}

pub(crate) async fn ranges(s: &mut Scenario) {
    s.put("g/a", "1").await;
    s.put("g/b", "1").await;
    let base = s.base;
    let at = |revision| op(Request::RequestRange(pb::RangeRequest { revision, ..span("g/", "g0") }));
    let cases = [
        ("only ranges", then(vec![at(0), at(base + 1)])),
        ("range, put, range", then(vec![at(0), op_put("g/c", "1"), at(0), at(base + 2)])),
        (
            "delete nothing, put, delete nothing",
            then(vec![op_delete("g/x", ""), op_put("g/d", "1"), op_delete("g/x", "")]),
        ),
        ("delete nothing", then(vec![op_delete("g/x", "")])),
        ("future", then(vec![op_put("g/z", "1"), at(base + 900)])),
        ("the one being written", then(vec![op_put("g/z", "1"), at(base + 5)])),
        (
            "prev_kvs",
            then(vec![
                op(Request::RequestPut(pb::PutRequest { prev_kv: true, ..put("g/a", "9") })),
                op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
                    prev_kv: true,
                    ..delete("g/b", "g/z")
                })),
            ]),
        ),
    ];
    for (label, request) in cases {
        let answer = s.kv.txn(request).await;
        s.note(label, &answer);
    }
}
