//! Registers: keys that are read, written, and compared and set. Every value is written once.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use serde_json::{Value, json};

use super::session::Session;
use super::{append::compare_value, append::put};

/// Registers that are in use at one time.
const KEYS: u64 = 5;
/// Operations of one client after which it goes to other registers.
const OPERATIONS_PER_KEYS: u64 = 300;

pub(super) async fn work(mut session: Session) {
    let (mut number, mut last) = (0_u64, None);
    while session.turn().await {
        number += 1;
        let key = session.pick(KEYS) + number / OPERATIONS_PER_KEYS * KEYS;
        // Unique over all clients.
        let value = (session.index as u64) << 32 | number;
        match (session.pick(10), last) {
            (0..5, _) => last = read(&mut session, key).await.or(last),
            (8.., Some((seen_key, old))) => compare_and_set(&mut session, seen_key, old, value).await,
            _ => write(&mut session, key, value).await,
        }
    }
}

fn name(key: u64) -> Bytes {
    Bytes::from(format!("register/{key}"))
}

async fn read(session: &mut Session, key: u64) -> Option<(u64, u64)> {
    session.invoke("read", json!([key, null]));
    match session.range(pb::RangeRequest { key: name(key), ..Default::default() }).await {
        Ok(answer) => {
            let value = answer.kvs.first().map(|kv| number(&kv.value));
            session.ok("read", json!([key, value]));
            value.and_then(|value| Some((key, value.as_u64()?)))
        }
        Err(failure) => {
            session.failed("read", json!([key, null]), failure);
            None
        }
    }
}

/// A value that is no number stands as it is, so that the checker sees it.
pub(super) fn number(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    text.parse::<u64>().map_or_else(|_| Value::from(text.into_owned()), Value::from)
}

async fn write(session: &mut Session, key: u64, value: u64) {
    let told = json!([key, value]);
    session.invoke("write", told.clone());
    let request = pb::PutRequest { key: name(key), value: value.to_string().into(), ..Default::default() };
    let mut kv = session.kv();
    match session.answer(kv.put(request)).await {
        Ok(_) => session.ok("write", told),
        Err(failure) => session.failed("write", told, failure),
    }
}

async fn compare_and_set(session: &mut Session, key: u64, old: u64, new: u64) {
    let told = json!([key, [old, new]]);
    session.invoke("cas", told.clone());
    let request = pb::TxnRequest {
        compare: vec![compare_value(name(key), old.to_string().into())],
        success: vec![put(name(key), new.to_string().into())],
        failure: vec![],
    };
    match session.txn(request).await {
        Ok(answer) if answer.succeeded => session.ok("cas", told),
        Ok(_) => session.refused("cas", told),
        Err(failure) => session.failed("cas", told, failure),
    }
}
