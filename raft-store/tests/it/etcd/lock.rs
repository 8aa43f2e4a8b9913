//! Scenarios: locks and elections.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::v3electionpb as election;
use proto::etcd::v3lockpb as lock;

use super::notes::{Scenario, delete, get, key, span};
use crate::group::PATIENCE;

async fn grant(s: &mut Scenario, ids: &[i64]) {
    for &id in ids {
        s.lease.lease_grant(pb::LeaseGrantRequest { id, ttl: 600 }).await.expect("granted");
    }
}

async fn revoke(s: &mut Scenario, ids: &[i64]) {
    for &id in ids {
        s.lease.lease_revoke(pb::LeaseRevokeRequest { id }).await.expect("revoked");
    }
}

/// Waits until so many keys lie under the name: somebody waits in the queue.
async fn queued(s: &mut Scenario, from: &str, to: &str, number: i64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while s.kv.range(span(from, to)).await.expect("read").get_ref().count != number {
        assert!(tokio::time::Instant::now() < deadline, "nobody waits under {from}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

pub(crate) async fn locks(s: &mut Scenario) {
    grant(s, &[801, 802, 803, -804]).await;
    let ask = |lease| lock::LockRequest { name: key("lock"), lease };
    let held = s.lock.lock(ask(801)).await;
    s.note("free", &held);
    let again = s.lock.lock(ask(801)).await;
    s.note("again by the same lease", &again);
    let missing = s.lock.lock(ask(777)).await;
    s.note("no such lease", &missing);
    let mut client = s.lock.clone();
    let waiting =
        tokio::spawn(async move { client.lock(lock::LockRequest { name: key("lock"), lease: 802 }).await });
    queued(s, "lock/", "lock0", 2).await;
    let mut client = s.lock.clone();
    let gone =
        tokio::spawn(async move { client.lock(lock::LockRequest { name: key("lock"), lease: 803 }).await });
    queued(s, "lock/", "lock0", 3).await;
    gone.abort();
    // One that goes away leaves the queue.
    queued(s, "lock/", "lock0", 2).await;
    let unlocked = s.lock.unlock(lock::UnlockRequest { key: key("lock/321") }).await;
    s.note("unlocked", &unlocked);
    let next = waiting.await.expect("does not panic");
    s.note("the next", &next);
    let keys = s.kv.range(span("lock/", "lock0")).await;
    s.note("its key", &keys);
    let mut client = s.lock.clone();
    let waiting =
        tokio::spawn(async move { client.lock(lock::LockRequest { name: key("lock"), lease: -804 }).await });
    queued(s, "lock/", "lock0", 2).await;
    revoke(s, &[802]).await;
    let next = waiting.await.expect("does not panic");
    s.note("after the holder's lease, by a negative one", &next);
    let unlocked = s.lock.unlock(lock::UnlockRequest { key: key("lock/none") }).await;
    s.note("unlock nothing", &unlocked);
    let unlocked = s.lock.unlock(lock::UnlockRequest { key: key("") }).await;
    s.note("unlock no key", &unlocked);
    revoke(s, &[801, 803, -804]).await;
}

pub(crate) async fn lost_session(s: &mut Scenario) {
    grant(s, &[811, 812]).await;
    let held = s.lock.lock(lock::LockRequest { name: key("lost"), lease: 811 }).await;
    s.note("held", &held);
    let mut client = s.lock.clone();
    let waiting =
        tokio::spawn(async move { client.lock(lock::LockRequest { name: key("lost"), lease: 812 }).await });
    queued(s, "lost/", "lost0", 2).await;
    revoke(s, &[812]).await;
    s.kv.delete_range(delete("lost/", "lost0")).await.expect("deleted");
    let lost = waiting.await.expect("does not panic");
    s.since((3, 5)).note("the waiter's lease is gone", &lost);
    revoke(s, &[811]).await;
}

pub(crate) async fn elections(s: &mut Scenario) {
    grant(s, &[821, 822]).await;
    let name = || key("poll");
    let leader = s.election.leader(election::LeaderRequest { name: name() }).await;
    s.note("nobody", &leader);
    let mut client = s.election.clone();
    // etcd opens a stream when it has something to say.
    let observing =
        tokio::spawn(async move { client.observe(election::LeaderRequest { name: key("poll") }).await });
    let campaign = |lease, value: &str| election::CampaignRequest { name: name(), lease, value: key(value) };
    let won = s.election.campaign(campaign(821, "one")).await;
    s.note("won", &won);
    let first = won.expect("won").into_inner().leader.expect("a key");
    let mut observed = observing.await.expect("does not panic").expect("observes").into_inner();
    s.note_text("observed", &format!("{:?}", observed.message().await.expect("goes on")));
    let again = s.election.campaign(campaign(821, "one")).await;
    s.note("again, the same", &again);
    let again = s.election.campaign(campaign(821, "uno")).await;
    s.note("again, another value", &again);
    s.note_text("observed another", &format!("{:?}", observed.message().await.expect("goes on")));
    let missing = s.election.campaign(campaign(777, "x")).await;
    s.note("no such lease", &missing);
    let mut client = s.election.clone();
    let next = campaign(822, "two");
    let waiting = tokio::spawn(async move { client.campaign(next).await });
    queued(s, "poll/", "poll0", 2).await;
    let proclaim = |leader: &election::LeaderKey, value: &str| election::ProclaimRequest {
        leader: Some(leader.clone()),
        value: key(value),
    };
    let proclaimed = s.election.proclaim(proclaim(&first, "still")).await;
    s.note("proclaimed", &proclaimed);
    s.note_text("observed it", &format!("{:?}", observed.message().await.expect("goes on")));
    let leader = s.election.leader(election::LeaderRequest { name: name() }).await;
    s.note("leader", &leader);
    let resigned = s.election.resign(election::ResignRequest { leader: Some(first.clone()) }).await;
    s.note("resigned", &resigned);
    let second = waiting.await.expect("does not panic");
    s.note("the next", &second);
    s.note_text("observed the next", &format!("{:?}", observed.message().await.expect("goes on")));
    let late = s.election.proclaim(proclaim(&first, "late")).await;
    s.note("late", &late);
    let late = s.election.resign(election::ResignRequest { leader: Some(first) }).await;
    s.note("resigned twice", &late);
    let missing = s.election.proclaim(election::ProclaimRequest { leader: None, value: key("x") }).await;
    s.note("proclaimed by nobody", &missing);
    let missing = s.election.resign(election::ResignRequest { leader: None }).await;
    s.note("resigned by nobody", &missing);
    revoke(s, &[821, 822]).await;
    let leader = s.election.leader(election::LeaderRequest { name: name() }).await;
    s.note("nobody again", &leader);
    let read = s.kv.range(get("poll/335")).await;
    s.note("no key is left", &read);
}
