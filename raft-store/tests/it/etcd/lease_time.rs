//! Leases run out in time, whoever leads.

use std::time::{Duration, Instant};

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::lease_client::LeaseClient;
use raft_store::MemberId;
use tonic::transport::Channel;

use super::lease::keep_alive;
use super::notes::{get, put};
use crate::group::{Group, PATIENCE, eventually};

/// What a loaded machine may add to any time. Far below the times that would be wrong.
const SLACK: Duration = Duration::from_secs(3);

struct Client {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
}

impl Client {
    async fn of(group: &Group, id: MemberId) -> Self {
        let endpoint = Channel::from_shared(format!("http://{}", group.serve_etcd(id))).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        Self { kv: KvClient::new(channel.clone()), lease: LeaseClient::new(channel) }
    }

    async fn grant(&mut self, id: i64, ttl: i64) {
        self.lease.lease_grant(pb::LeaseGrantRequest { id, ttl }).await.expect("granted");
        let request = pb::PutRequest { lease: id, ..put(&format!("leased/{id}"), "v") };
        self.kv.put(request).await.expect("written");
    }

    async fn is_there(&mut self, id: i64) -> bool {
        self.kv.range(get(&format!("leased/{id}"))).await.expect("read").get_ref().count == 1
    }

    async fn ttl(&mut self, id: i64) -> i64 {
        let request = pb::LeaseTimeToLiveRequest { id, keys: false };
        self.lease.lease_time_to_live(request).await.expect("answered").get_ref().ttl
    }

    async fn ends(&mut self, id: i64) -> Instant {
        let deadline = Instant::now() + PATIENCE;
        while self.is_there(id).await {
            assert!(Instant::now() < deadline, "lease {id} does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Instant::now()
    }
}

async fn move_leader(group: &Group, to: MemberId) {
    let from = group.leader().await;
    group.store(from).transfer_leader(to).await.expect("handed over");
    eventually("the other leads", || group.store(to).leadership().is_self).await;
    group.leader().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_a_second_ends_soon_after() {
    let group = Group::start(3, |_| {}).await;
    let mut client = Client::of(&group, group.a_follower().await).await;
    let before = Instant::now();
    client.grant(7, 1).await;
    let ended = client.ends(7).await;
    let took = ended - before;
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    assert_eq!(client.ttl(7).await, -1);
    let answers = keep_alive(&mut client.lease, &[7]).await;
    assert_eq!(answers[0].as_ref().expect("answered").get_ref().ttl, 0, "gone");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_leases_end_together() {
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let mut client = Client::of(&group, 1).await;
    for id in 1..=1000 {
        client.lease.lease_grant(pb::LeaseGrantRequest { id, ttl: 1 }).await.expect("granted");
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leases = client.lease.lease_leases(pb::LeaseLeasesRequest {}).await.expect("listed");
        if leases.get_ref().leases.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{} leases are left", leases.get_ref().leases.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_lost_leader_a_lease_is_neither_lost_nor_stretched() {
    const TTL: Duration = Duration::from_secs(4);
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let mut client = Client::of(&group, group.a_follower().await).await;
    let granted = Instant::now();
    client.grant(1, 4).await;
    client.grant(2, 4).await;
    group.stop_member(leader).await;
    group.leader().await;
    let led_anew = Instant::now();
    assert!(client.is_there(1).await && client.is_there(2).await, "leases outlive their leader");
    let kept = Instant::now();
    let answers = keep_alive(&mut client.lease, &[2]).await;
    assert_eq!(answers[0].as_ref().expect("answered").get_ref().ttl, 4);

    let first = client.ends(1).await;
    assert!(first - granted >= TTL, "lost too early: {:?}", first - granted);
    // At most its whole time from the new leader's first moment on, and an election timeout.
    assert!(first < led_anew + TTL + SLACK, "stretched: {:?}", first - led_anew);
    let second = client.ends(2).await;
    assert!(second - kept >= TTL, "kept alive, but lost after {:?}", second - kept);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_keep_new_leaders_from_stretching_long_leases() {
    let group = Group::start(3, |config| config.lease_checkpoint_interval = Duration::from_secs(1)).await;
    let first = group.leader().await;
    let next = group.a_follower().await;
    let mut client = Client::of(&group, next).await;
    client.grant(5, 60).await;
    while client.ttl(5).await > 55 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    move_leader(&group, next).await;
    let left = client.ttl(5).await;
    assert!((40..=57).contains(&left), "the new leader knows what was left: {left}");
    // Kept alive, it has its whole time again, and the next leader knows that too.
    keep_alive(&mut client.lease, &[5]).await;
    move_leader(&group, first).await;
    let left = client.ttl(5).await;
    assert!(left >= 55, "{left}");
    group.stop().await;
}
