//! Members that stop, come back, lag and lose their majority.

use std::time::{Duration, Instant};

use raft_store::Error;

use crate::group::{Group, get, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_group_has_everything_and_goes_on() {
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let mut newest = 0;
    for n in 0..50 {
        newest = put(group.store(leader), &format!("/k{n}"), "v").await.expect("written").revision;
    }
    for id in 1..=3 {
        group.stop_member(id).await;
    }
    for id in [3, 1, 2] {
        group.start_member(id).await;
    }
    let leader = group.leader().await;
    group.store(leader).linearize().await.expect("a majority is there");
    assert_eq!(group.store(leader).revision(), newest);
    for n in 0..50 {
        assert_eq!(get(group.store(leader), &format!("/k{n}")).as_deref(), Some("v"));
    }
    let next = put(group.store(leader), "/more", "v").await.expect("written");
    assert_eq!(next.revision, newest + 1, "revisions go on where they were");
    group.converged().await;
    group.stop().await;
}

/// No follower campaigns by itself before the shortest election timeout, which is longer here than all of this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_process_is_dead_is_followed_before_its_lease_ends() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let mut group = Group::start(3, |config| {
        config.election_timeout_min = TIMEOUT;
        config.election_timeout_max = 2 * TIMEOUT;
    })
    .await;
    let leader = group.leader().await;
    put(group.store(leader), "/a", "1").await.expect("written");
    group.converged().await;
    let killed = Instant::now();
    group.kill_member(leader).await;
    let other = *group.running.keys().next().expect("two are left");
    // On its way to the leader when that was killed, its fate is not known; and it may be written twice. Once the
    // death is noticed nobody leads for a moment, which on a busy machine may be longer than a write waits.
    while let Err(error) = put(group.store(other), "/a", "2").await {
        assert!(matches!(error, Error::Unknown { .. } | Error::Unavailable { .. }), "{error}");
        assert!(killed.elapsed() < TIMEOUT, "{error}");
    }
    assert!(killed.elapsed() < TIMEOUT, "nobody waited for the lease: {:?}", killed.elapsed());
    group.store(other).linearize().await.expect("a majority is there");
    assert_eq!(get(group.store(other), "/a").as_deref(), Some("2"));
    group.stop().await;
}

/// An election takes longer than the followers wait for one at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_that_hear_of_each_other_late_do_not_split_the_votes_for_ever() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let (mut group, proxies) = Group::start_behind_proxies(3, |config| {
        config.heartbeat_interval = TIMEOUT / 5;
        config.election_timeout_min = TIMEOUT;
        config.election_timeout_max = 2 * TIMEOUT;
    })
    .await;
    let leader = group.settled().await;
    for proxy in proxies.values() {
        proxy.delay(Duration::from_millis(250));
    }
    proxies[&leader].refuse();
    let killed = Instant::now();
    group.kill_member(leader).await;
    let successor = group.leader().await;
    assert!(killed.elapsed() < TIMEOUT, "nobody waited for the lease: {:?}", killed.elapsed());
    put(group.store(successor), "/a", "1").await.expect("written");
    group.stop().await;
}

/// A leader that is killed and started again has all that was acknowledged in its log, but nothing on its disk
/// says how much of that was committed. Until it knows, it must not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_members_that_come_back_read_what_was_acknowledged() {
    let mut group = Group::start_in_memory(3, |config| config.wal_segment_bytes = 8 * 1024 * 1024).await;
    for n in 0..3 {
        let leader = group.settled().await;
        put(group.store(leader), "/n", &n.to_string()).await.expect("written");
        group.kill_all().await;
        for id in 1..=3 {
            group.start_member(id).await;
        }
        group.store(leader).linearize().await.expect("a majority is there");
        assert_eq!(get(group.store(leader), "/n"), Some(n.to_string()));
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_more_than_the_log_keeps_gets_a_snapshot() {
    let mut group = Group::start(3, |config| {
        config.checkpoint_entries = 100;
        config.log_entries_kept = 20;
        config.wal_segment_bytes = 8 * 1024 * 1024;
    })
    .await;
    let lagging = group.a_follower().await;
    group.stop_member(lagging).await;
    let leader = group.leader().await;
    for n in 0..600 {
        put(group.store(leader), &format!("/k{}", n % 40), &format!("v{n}")).await.expect("written");
    }
    let purged = group.store(leader).status().purged_index;
    assert!(purged > 300, "the log is purged behind checkpoints: {purged}");
    group.start_member(lagging).await;
    group.leader().await;
    group.store(lagging).linearize().await.expect("caught up");
    assert_eq!(get(group.store(lagging), "/k39").as_deref(), Some("v599"));
    group.converged().await;

    // What it took over survives its restart.
    group.stop_member(lagging).await;
    group.start_member(lagging).await;
    group.leader().await;
    group.store(lagging).linearize().await.expect("caught up");
    assert_eq!(get(group.store(lagging), "/k39").as_deref(), Some("v599"));
    group.converged().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_writes_are_refused_and_come_back_with_it() {
    let mut group = Group::start(3, |config| {
        config.propose_timeout = Duration::from_secs(1);
        config.read_timeout = Duration::from_secs(1);
    })
    .await;
    let leader = group.leader().await;
    put(group.store(leader), "/kept", "v").await.expect("written");
    let others: Vec<_> = group.running.keys().copied().filter(|id| *id != leader).collect();
    for id in &others {
        group.stop_member(*id).await;
    }
    let refused = put(group.store(leader), "/lost", "v").await.expect_err("no majority");
    assert!(
        matches!(refused, Error::Unavailable { .. } | Error::Unknown { .. }),
        "the error says what may have happened: {refused}"
    );
    assert!(group.store(leader).linearize().await.is_err(), "no majority confirms a read");
    assert_eq!(get(group.store(leader), "/kept").as_deref(), Some("v"), "serializable reads go on");

    group.start_member(others[0]).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while put(group.store(leader), "/back", "v").await.is_err() {
        assert!(Instant::now() < deadline, "writes do not come back");
    }
    group.converged().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_of_the_leader_hands_over() {
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    put(group.store(leader), "/a", "1").await.expect("written");
    let started = Instant::now();
    group.stop_member(leader).await;
    let next = group.leader().await;
    put(group.store(next), "/a", "2").await.expect("written");
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    group.stop().await;
}
