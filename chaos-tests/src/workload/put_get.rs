//! Puts, deletes and reads of few keys, with the revisions that the store tells.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use serde_json::json;

use super::register::number;
use super::session::Session;

const KEYS: u64 = 8;
/// What the keys of this workload begin with; watchers watch it.
pub(super) const PREFIX: &str = "kv/";
/// The end of that range.
pub(super) const PREFIX_END: &str = "kv0";

/// Reads as often as it writes.
pub(super) async fn work(mut session: Session) {
    let mut count = 0;
    while session.turn().await {
        count += 1;
        match session.pick(10) {
            0..4 => put(&mut session, count).await,
            4 => delete(&mut session).await,
            5..8 => get(&mut session, "get").await,
            _ => get(&mut session, "stale-get").await,
        }
    }
}

/// Writes only.
pub(super) async fn write(mut session: Session) {
    let mut count = 0;
    while session.turn().await {
        count += 1;
        if session.pick(8) == 0 { delete(&mut session).await } else { put(&mut session, count).await }
    }
}

fn key(session: &mut Session) -> String {
    format!("{PREFIX}{}", session.pick(KEYS))
}

async fn put(session: &mut Session, count: u64) {
    let key = key(session);
    let value = (session.index as u64) << 32 | count;
    session.invoke("put", json!([key, value]));
    let request = pb::PutRequest {
        key: Bytes::from(key.clone()),
        value: value.to_string().into(),
        ..Default::default()
    };
    let mut kv = session.kv();
    match session.answer(kv.put(request)).await {
        Ok(answer) => {
            session.ok("put", json!([key, value, answer.header.unwrap_or_default().revision]));
        }
        Err(failure) => session.failed("put", json!([key, value]), failure),
    }
}

async fn delete(session: &mut Session) {
    let key = key(session);
    session.invoke("delete", json!([key]));
    let request = pb::DeleteRangeRequest { key: Bytes::from(key.clone()), ..Default::default() };
    let mut kv = session.kv();
    match session.answer(kv.delete_range(request)).await {
        Ok(answer) => {
            let revision = answer.header.unwrap_or_default().revision;
            session.ok("delete", json!([key, answer.deleted, revision]));
        }
        Err(failure) => session.failed("delete", json!([key]), failure),
    }
}

async fn get(session: &mut Session, f: &str) {
    let key = key(session);
    session.invoke(f, json!([key, null]));
    let request = pb::RangeRequest {
        key: Bytes::from(key.clone()),
        serializable: f == "stale-get",
        ..Default::default()
    };
    match session.range(request).await {
        Ok(answer) => {
            let kv = answer.kvs.first();
            let value = kv.map(|kv| number(&kv.value));
            let modified = kv.map_or(0, |kv| kv.mod_revision);
            session.ok(f, json!([key, value, answer.header.unwrap_or_default().revision, modified]));
        }
        Err(failure) => session.failed(f, json!([key, null]), failure),
    }
}
