//! Leases: granted, kept alive for a while, then left to end, revoked, or looked at all along.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use serde_json::json;

use super::session::Session;

/// How long each lives without being kept alive.
const TTL_SECONDS: i64 = 2;
/// Looks at one lease, at most: one that never seems to end does not hold its client for ever.
const LOOKS_MAX: u64 = 400;

pub(super) async fn work(mut session: Session) {
    let mut number = 0_u64;
    while session.turn().await {
        number += 1;
        if let Some((id, key)) = grant(&mut session, number).await {
            live(&mut session, id, &key).await;
        }
    }
}

async fn grant(session: &mut Session, number: u64) -> Option<(i64, Bytes)> {
    session.invoke("grant", json!(TTL_SECONDS));
    let request = pb::LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
    let mut leases = session.leases();
    let granted = match session.answer(leases.lease_grant(request)).await {
        Ok(granted) => granted,
        Err(failure) => {
            session.failed("grant", json!(TTL_SECONDS), failure);
            return None;
        }
    };
    session.ok("grant", json!([granted.id, granted.ttl]));
    let key = Bytes::from(format!("lease/{}/{number}", session.index));
    let request = pb::PutRequest {
        key: key.clone(),
        value: granted.id.to_string().into(),
        lease: granted.id,
        ..Default::default()
    };
    let mut kv = session.kv();
    // Whether the key is there is known only from an answer.
    match session.answer(kv.put(request)).await {
        Ok(_) => Some((granted.id, key)),
        Err(_) => {
            session.move_on();
            None
        }
    }
}

/// Looks at a lease's key until it is gone.
async fn live(session: &mut Session, id: i64, key: &Bytes) {
    let mut keep_alives = session.pick(4);
    let revoke_at = if session.pick(4) == 0 { 5 + session.pick(10) } else { u64::MAX };
    for look_number in 0..LOOKS_MAX {
        if !session.turn().await || !look(session, id, key).await {
            return;
        }
        if look_number >= revoke_at {
            return revoke(session, id).await;
        }
        if keep_alives > 0 && session.pick(6) == 0 {
            keep_alives -= 1;
            keep_alive(session, id).await;
        }
    }
}

/// Whether there is more to see.
async fn look(session: &mut Session, id: i64, key: &Bytes) -> bool {
    session.invoke("look", json!([id, null]));
    match session.range(pb::RangeRequest { key: key.clone(), ..Default::default() }).await {
        Ok(answer) => {
            let there = !answer.kvs.is_empty();
            session.ok("look", json!([id, there]));
            there
        }
        Err(failure) => {
            session.failed("look", json!([id, null]), failure);
            true
        }
    }
}

async fn keep_alive(session: &mut Session, id: i64) {
    session.invoke("keep-alive", json!([id, null]));
    let request = futures_util::stream::iter([pb::LeaseKeepAliveRequest { id }]);
    let mut leases = session.leases();
    let answer = session.answer(leases.lease_keep_alive(request)).await;
    let answer = match answer {
        Ok(mut stream) => {
            let next = async { stream.message().await.map(tonic::Response::new) };
            session.answer(next).await
        }
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(Some(answer)) if answer.ttl > 0 => session.ok("keep-alive", json!([id, answer.ttl])),
        Ok(_) => session.refused("keep-alive", json!([id, null])),
        Err(failure) => session.failed("keep-alive", json!([id, null]), failure),
    }
}

async fn revoke(session: &mut Session, id: i64) {
    session.invoke("revoke", json!(id));
    let mut leases = session.leases();
    match session.answer(leases.lease_revoke(pb::LeaseRevokeRequest { id })).await {
        Ok(_) => session.ok("revoke", json!(id)),
        Err(failure) => session.failed("revoke", json!(id), failure),
    }
}
