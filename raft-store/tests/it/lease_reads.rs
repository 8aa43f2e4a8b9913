//! Reads by the leader's lease: without a round, and never of a state that another leader has moved on from.

use std::time::{Duration, Instant};

use exposition::Exposition;
use proto::raft as wire;
use proto::raft::raft_peer_client::RaftPeerClient;
use raft_store::{Config, MemberId, Store};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Channel;

use crate::group::{Group, eventually, get, put};

fn by_lease(config: &mut Config) {
    config.lease_reads = true;
    config.read_timeout = Duration::from_millis(300);
    config.propose_timeout = Duration::from_millis(500);
}

/// Rounds of reads that a member has answered by its lease.
fn lease_reads(store: &Store) -> u64 {
    let mut text = Exposition::default();
    store.expose_metrics(&mut text);
    let text = text.finish();
    let line = text.lines().find_map(|line| line.strip_prefix("barque_lease_reads_total "));
    line.expect("it is exposed").parse().expect("a number")
}

/// Reads until one is answered by the lease.
async fn lease_holds(store: &Store) {
    let deadline = Instant::now() + crate::group::PATIENCE;
    let before = lease_reads(store);
    while lease_reads(store) == before {
        assert!(Instant::now() < deadline, "no read is answered by the lease");
        let _ = store.linearize().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_asks_nobody_and_every_member_sees_the_newest() {
    let group = Group::start(3, by_lease).await;
    let leader = group.leader().await;
    lease_holds(group.store(leader)).await;
    let before = lease_reads(group.store(leader));
    for n in 0..100 {
        let (writer, reader) = (1 + n % 3, 1 + (n / 3) % 3);
        put(group.store(writer), "/n", &n.to_string()).await.expect("written");
        group.store(reader).linearize().await.expect("a leader says");
        assert_eq!(
            get(group.store(reader), "/n"),
            Some(n.to_string()),
            "written at {writer}, read at {reader}"
        );
    }
    let counted = lease_reads(group.store(leader)) - before;
    assert!(counted >= 50, "only {counted} of 100 reads were answered by the lease");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_most_members_promise_nothing_asks_them() {
    // As a member of which the operator has not heard yet that the others have the flag.
    let group = Group::start(3, |config| {
        by_lease(config);
        config.lease_reads = config.member_id == 1;
    })
    .await;
    let leader = group.leader().await;
    if leader != 1 {
        group.store(leader).transfer_leader(1).await.expect("handed over");
        eventually("the member with the flag leads", || group.store(1).leadership().is_self).await;
    }
    for n in 0..20 {
        put(group.store(2), "/n", &n.to_string()).await.expect("written");
        group.store(1).linearize().await.expect("a majority confirms");
        assert_eq!(get(group.store(1), "/n"), Some(n.to_string()));
    }
    assert_eq!(lease_reads(group.store(1)), 0);
    group.stop().await;
}

/// Reads at a member again and again: when each began, and what it saw.
fn read_on(store: Store, stop: CancellationToken) -> tokio::task::JoinHandle<Vec<(Instant, Option<String>)>> {
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while !stop.is_cancelled() {
            let began = Instant::now();
            if store.linearize().await.is_ok() {
                seen.push((began, get(&store, "/k")));
            }
            tokio::task::yield_now().await;
        }
        seen
    })
}

/// Writes through whichever member takes it, the old leader last; returns when that was acknowledged.
async fn write_somewhere(group: &Group, old: MemberId) -> Instant {
    let others = group.running.keys().copied().filter(|id| *id != old);
    let order: Vec<_> = others.chain([old]).collect();
    loop {
        for id in &order {
            if put(group.store(*id), "/k", "new").await.is_ok() {
                return Instant::now();
            }
        }
    }
}

async fn never_stale(group: &Group, old: MemberId, disturb: impl AsyncFnOnce(MemberId)) {
    let other = group.a_follower().await;
    put(group.store(old), "/k", "old").await.expect("written");
    lease_holds(group.store(old)).await;
    let stop = CancellationToken::new();
    let reader = read_on(group.store(old).clone(), stop.clone());
    tokio::time::sleep(Duration::from_millis(50)).await;
    disturb(other).await;
    let acknowledged = write_somewhere(group, old).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.cancel();
    let seen = reader.await.expect("reading does not panic");
    assert!(!seen.is_empty());
    let stale = seen.iter().filter(|(began, value)| *began > acknowledged && value.as_deref() != Some("new"));
    assert_eq!(stale.count(), 0, "read at the old leader after another had acknowledged a write");
}

/// Its followers take it for dead. Without its lease they would elect another before it knows: it takes until it has
/// connected to them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lives_but_refuses_connections_reads_nothing_stale() {
    for _ in 0..4 {
        let (group, proxies) = Group::start_behind_proxies(3, by_lease).await;
        let old = group.leader().await;
        never_stale(&group, old, async |_| {
            proxies[&old].refuse();
            for proxy in proxies.values() {
                proxy.cut();
            }
        })
        .await;
        group.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hands_over_reads_nothing_stale() {
    let group = Group::start(3, by_lease).await;
    for _ in 0..3 {
        let old = group.leader().await;
        never_stale(&group, old, async |other| {
            let started = Instant::now();
            group.store(old).transfer_leader(other).await.expect("handed over");
            eventually("the other leads", || group.store(other).leadership().is_self).await;
            // It is not waited for what was promised to the old one.
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        })
        .await;
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_may_have_promised_waits_before_it_takes_part_again() {
    let mut group = Group::start(3, by_lease).await;
    group.leader().await;
    let member = group.a_follower().await;
    let marker = group.data_dir(member).join("lease-reads");
    assert!(marker.exists());
    group.kill_member(member).await;
    let started = Instant::now();
    group.start_member(member).await;
    let leader = group.leader().await;
    put(group.store(leader), "/k", "after").await.expect("written");
    eventually("it takes entries", || get(group.store(member), "/k").is_some()).await;
    let lease = Duration::from_millis(300);
    assert!(started.elapsed() >= lease, "{:?} after its start", started.elapsed());
    group.stop().await;
}

/// A member's port for the others, as another member sees it.
struct Peer {
    client: RaftPeerClient<Channel>,
    target: MemberId,
}

impl Peer {
    async fn of(group: &Group, target: MemberId) -> Self {
        let members = group.store(target).members();
        let address = members.into_iter().find(|member| member.id == target).expect("listed").member.address;
        let client = RaftPeerClient::connect(format!("http://{address}")).await.expect("it listens");
        Self { client, target }
    }

    fn request<T>(&self, group: &Group, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let cluster = group.store(self.target).cluster_id().parse().expect("a header");
        request.metadata_mut().insert("barque-cluster-id", cluster);
        request.metadata_mut().insert("barque-target-id", self.target.into());
        request
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_candidate_waits_for_what_was_promised_to_the_leader() {
    let group = Group::start(3, by_lease).await;
    let leader = group.leader().await;
    lease_holds(group.store(leader)).await;
    let voter = group.a_follower().await;
    let candidate = (1..=3).find(|id| *id != leader && *id != voter).expect("three members");
    let term = group.store(leader).leadership().term;
    let mut peer = Peer::of(&group, voter).await;
    let early = wire::VoteRequest {
        vote: Some(wire::Vote { term: term + 1, member_id: candidate, committed: false }),
        last_log_id: Some(wire::LogId { term, index: 1_000_000 }),
        pre_vote: false,
        leadership_transfer: true,
    };

    // As long as the leader lives it has the promise renewed.
    let request = peer.request(&group, early);
    let waited = tokio::time::timeout(Duration::from_secs(1), peer.client.vote(request)).await;
    assert!(waited.is_err(), "the vote was answered: {waited:?}");
    assert_eq!(group.store(leader).leadership().term, term);

    // Unless the leader itself hands over.
    let released = wire::TransferLeaderRequest {
        from_leader: Some(wire::Vote { term, member_id: leader, committed: true }),
        to_member_id: candidate,
        last_log_id: None,
    };
    let released = peer.request(&group, released);
    peer.client.transfer_leader(released).await.expect("taken");
    let request = peer.request(&group, early);
    let answer = tokio::time::timeout(Duration::from_secs(5), peer.client.vote(request)).await;
    assert!(answer.expect("in time").expect("answered").into_inner().vote_granted);
    group.stop().await;
}
