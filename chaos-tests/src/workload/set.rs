//! A set: one key an element. Every fourth client reads all of them, the others add.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use serde_json::{Value, json};

use super::register::number;
use super::session::Session;

const PREFIX: &[u8] = b"set/";
/// The end of that range.
const PREFIX_END: &[u8] = b"set0";
/// Reads are larger than additions; so many turns pass between two of one client.
const TURNS_PER_READ: u64 = 20;

pub(super) async fn work(mut session: Session, client: usize) {
    let mut count = 0_u64;
    while session.turn().await {
        count += 1;
        if client % 4 == 3 {
            if count.is_multiple_of(TURNS_PER_READ) {
                read(&mut session).await;
            }
        } else {
            let element = (session.index as u64) << 32 | count;
            add(&mut session, element).await;
        }
    }
    // The last word, when everything is healed.
    read(&mut session).await;
}

async fn add(session: &mut Session, element: u64) {
    session.invoke("add", json!(element));
    let key = Bytes::from(format!("set/{element}"));
    let request = pb::PutRequest { key, value: element.to_string().into(), ..Default::default() };
    let mut kv = session.kv();
    match session.answer(kv.put(request)).await {
        Ok(_) => session.ok("add", json!(element)),
        Err(failure) => session.failed("add", json!(element), failure),
    }
}

async fn read(session: &mut Session) {
    session.invoke("read", Value::Null);
    let request = pb::RangeRequest {
        key: Bytes::from_static(PREFIX),
        range_end: Bytes::from_static(PREFIX_END),
        ..Default::default()
    };
    match session.range(request).await {
        Ok(answer) => {
            let all: Vec<Value> = answer.kvs.iter().map(|kv| number(&kv.value)).collect();
            session.ok("read", Value::from(all));
        }
        Err(failure) => session.failed("read", Value::Null, failure),
    }
}
