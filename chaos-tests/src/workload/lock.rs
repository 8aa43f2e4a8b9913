//! Locks and elections: acquired under a lease, used for a guarded write, released. The token is the revision at which
//! the holder's key was created.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::{v3electionpb, v3lockpb};
use serde_json::json;

use super::append::{compare_created, put};
use super::session::{Failure, Session};

/// How long a holder's lease lives; it is never kept alive.
pub(super) const TTL_SECONDS: i64 = 3;
/// Guarded writes of one holder.
const WRITES: u64 = 3;

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Lock,
    Election,
}

struct Held {
    key: Bytes,
    token: i64,
    lease: i64,
}

pub(super) async fn work(mut session: Session, door: Door) {
    let name = if door == Door::Lock { "chaos-lock" } else { "chaos-election" };
    while session.turn().await {
        let grant = pb::LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
        let mut leases = session.leases();
        let Ok(lease) = session.answer(leases.lease_grant(grant)).await else {
            session.move_on();
            continue;
        };
        if let Some(held) = acquire(&mut session, door, name, lease.id).await {
            for _ in 0..WRITES {
                if session.turn().await {
                    guarded_write(&mut session, name, &held).await;
                }
            }
            release(&mut session, door, name, &held).await;
        }
        let mut leases = session.leases();
        // Whoever waits for the lock need not wait for the lease to end; if this fails, it does.
        let _late = session.answer(leases.lease_revoke(pb::LeaseRevokeRequest { id: lease.id })).await;
    }
}

/// The lease was granted before the call began, so the call's beginning plus its time is later than its earliest end: what
/// is told is a little less.
async fn acquire(session: &mut Session, door: Door, name: &str, lease: i64) -> Option<Held> {
    session.invoke("acquire", json!([name]));
    let (key, token) = match enter(session, door, name, lease).await {
        Ok(entered) => entered,
        Err(failure) => {
            session.failed("acquire", json!([name]), failure);
            return None;
        }
    };
    // The answer holds the key; its creation is the token. Both services say it, one by its key's revision.
    session.ok("acquire", json!([name, token, HELD_FOR_SURE_SECONDS]));
    Some(Held { key, token, lease })
}

/// Less than the lease's time, by more than granting may have taken before.
const HELD_FOR_SURE_SECONDS: f64 = 0.8 * TTL_SECONDS as f64 - 1.0;

async fn enter(session: &Session, door: Door, name: &str, lease: i64) -> Result<(Bytes, i64), Failure> {
    let name = Bytes::copy_from_slice(name.as_bytes());
    if door == Door::Election {
        let request = v3electionpb::CampaignRequest { name, lease, value: Bytes::from_static(b"me") };
        let mut elections = session.elections();
        let leader = session.answer(elections.campaign(request)).await?.leader.unwrap_or_default();
        return Ok((leader.key, leader.rev));
    }
    let mut locks = session.locks();
    let key = session.answer(locks.lock(v3lockpb::LockRequest { name, lease })).await?.key;
    let there = session.range(pb::RangeRequest { key: key.clone(), ..Default::default() }).await;
    let created = match there {
        Ok(there) => there.kvs.first().map(|kv| kv.create_revision),
        Err(Failure::NotDone(text) | Failure::Unknown(text)) => return Err(Failure::Unknown(text)),
    };
    let gone = || Failure::NotDone("the lock was lost before its token was read".to_owned());
    Ok((key, created.ok_or_else(gone)?))
}

async fn guarded_write(session: &mut Session, name: &str, held: &Held) {
    let told = json!([name, held.token]);
    session.invoke("guarded-write", told.clone());
    let request = pb::TxnRequest {
        compare: vec![compare_created(held.key.clone(), held.token)],
        success: vec![put(Bytes::from(format!("guarded/{name}")), held.token.to_string().into())],
        failure: vec![],
    };
    match session.txn(request).await {
        Ok(answer) if answer.succeeded => session.ok("guarded-write", told),
        Ok(_) => session.refused("guarded-write", told),
        Err(failure) => session.failed("guarded-write", told, failure),
    }
}

async fn release(session: &mut Session, door: Door, name: &str, held: &Held) {
    let told = json!([name, held.token]);
    session.invoke("release", told.clone());
    let answer = if door == Door::Election {
        let leader = v3electionpb::LeaderKey {
            name: Bytes::copy_from_slice(name.as_bytes()),
            key: held.key.clone(),
            rev: held.token,
            lease: held.lease,
        };
        let mut elections = session.elections();
        let request = v3electionpb::ResignRequest { leader: Some(leader) };
        session.answer(elections.resign(request)).await.map(drop)
    } else {
        let mut locks = session.locks();
        session.answer(locks.unlock(v3lockpb::UnlockRequest { key: held.key.clone() })).await.map(drop)
    };
    match answer {
        Ok(()) => session.ok("release", told),
        Err(failure) => session.failed("release", told, failure),
    }
}
