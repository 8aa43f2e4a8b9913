//! Append lists: transactions that read lists and append to them.
//!
//! A key holds its list as JSON. The lists are read, and a transaction that compares every key's revision writes them
//! back longer; so what was read and what was written happened at one moment, or the comparison refused it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::etcdserverpb::request_op::Request;
use proto::etcd::etcdserverpb::response_op::Response;
use serde_json::{Value, json};

use super::session::{Failure, Session};

/// Lists that are in use at one time.
const KEYS: u64 = 4;
/// Transactions of one client after which it goes to other lists, so that none gets long.
const TXNS_PER_KEYS: u64 = 60;

pub(super) async fn work(mut session: Session) {
    let mut number = 0_u64;
    while session.turn().await {
        number += 1;
        let mut micros = Vec::new();
        for at in 0..=session.pick(3) {
            let key = session.pick(KEYS) + number / TXNS_PER_KEYS * KEYS;
            micros.push(if session.pick(2) == 0 {
                json!(["r", key, null])
            } else {
                json!(["append", key, (session.index as u64) << 40 | number << 4 | at])
            });
        }
        transact(&mut session, Value::from(micros)).await;
    }
}

fn name(key: u64) -> Bytes {
    Bytes::from(format!("append/{key}"))
}

struct List {
    mod_revision: i64,
    values: Vec<Value>,
}

async fn transact(session: &mut Session, asked: Value) {
    session.invoke("txn", asked.clone());
    let mut lists = match read(session, &asked).await {
        Ok(lists) => lists,
        // Nothing was written yet.
        Err(Failure::NotDone(text) | Failure::Unknown(text)) => {
            return session.failed("txn", asked, Failure::NotDone(text));
        }
    };
    let compare = lists.iter().map(|(key, list)| compare_revision(name(*key), list.mod_revision)).collect();
    let mut written = Vec::new();
    let mut told = Vec::new();
    for micro in asked.as_array().into_iter().flatten() {
        let key = micro[1].as_u64().unwrap_or_default();
        let Some(list) = lists.get_mut(&key) else { continue };
        if micro[0] == "append" {
            list.values.push(micro[2].clone());
            written.push(key);
            told.push(micro.clone());
        } else {
            told.push(json!(["r", key, list.values]));
        }
    }
    written.sort_unstable();
    written.dedup();
    let success = written
        .iter()
        .map(|key| put(name(*key), Value::from(lists[key].values.clone()).to_string().into()))
        .collect();
    match session.txn(pb::TxnRequest { compare, success, failure: vec![] }).await {
        Ok(answer) if answer.succeeded => session.ok("txn", Value::from(told)),
        Ok(_) => session.refused("txn", asked),
        Err(failure) => session.failed("txn", asked, failure),
    }
}

async fn read(session: &Session, asked: &Value) -> Result<BTreeMap<u64, List>, Failure> {
    let mut keys: Vec<u64> =
        asked.as_array().into_iter().flatten().filter_map(|micro| micro[1].as_u64()).collect();
    keys.sort_unstable();
    keys.dedup();
    let ranges = keys.iter().map(|key| pb::RequestOp {
        request: Some(Request::RequestRange(pb::RangeRequest { key: name(*key), ..Default::default() })),
    });
    let answer = session.txn(pb::TxnRequest { success: ranges.collect(), ..Default::default() }).await?;
    let lists = keys.into_iter().zip(answer.responses).map(|(key, response)| {
        let kv = match response.response {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let list = kv.map_or(List { mod_revision: 0, values: Vec::new() }, |kv| List {
            mod_revision: kv.mod_revision,
            values: serde_json::from_slice(&kv.value).unwrap_or_default(),
        });
        (key, list)
    });
    Ok(lists.collect())
}

/// The key was last changed at that revision; zero: it does not exist.
pub(super) fn compare_revision(key: Bytes, mod_revision: i64) -> pb::Compare {
    compare(key, CompareTarget::Mod, TargetUnion::ModRevision(mod_revision))
}

/// The key holds this value.
pub(super) fn compare_value(key: Bytes, value: Bytes) -> pb::Compare {
    compare(key, CompareTarget::Value, TargetUnion::Value(value))
}

/// The key was created at that revision.
pub(super) fn compare_created(key: Bytes, revision: i64) -> pb::Compare {
    compare(key, CompareTarget::Create, TargetUnion::CreateRevision(revision))
}

fn compare(key: Bytes, target: CompareTarget, operand: TargetUnion) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(operand),
    }
}

/// A put in a transaction.
pub(super) fn put(key: Bytes, value: Bytes) -> pb::RequestOp {
    let put = pb::PutRequest { key, value, ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}
