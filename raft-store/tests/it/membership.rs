//! Members that come, go, lose their disks, or are not who they should be.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use raft_store::{MemberId, Role, Store};
use tonic::Code;
use tonic::transport::Channel;

use crate::group::{Group, copy, eventually, get, put};

async fn client(group: &Group, id: MemberId) -> ClusterClient<Channel> {
    let address = group.serve_etcd(id);
    ClusterClient::connect(format!("http://{address}")).await.expect("it listens")
}

fn url(address: &str) -> Vec<String> {
    vec![format!("http://{address}")]
}

async fn add(
    client: &mut ClusterClient<Channel>,
    address: &str,
    is_learner: bool,
) -> Result<MemberId, tonic::Status> {
    let request = pb::MemberAddRequest { peer_ur_ls: url(address), is_learner };
    let added = client.member_add(request).await?.into_inner();
    Ok(added.member.expect("the member that was added").id)
}

async fn members(client: &mut ClusterClient<Channel>) -> Vec<pb::Member> {
    let request = pb::MemberListRequest { linearizable: true };
    client.member_list(request).await.expect("listed").into_inner().members
}

fn refused(result: Result<impl std::fmt::Debug, tonic::Status>) -> (Code, String) {
    let status = result.expect_err("refused");
    (status.code(), status.message().to_owned())
}

/// Until every member has said that it has started.
async fn all_started(group: &Group) {
    eventually("every member has published itself", || {
        group
            .running
            .values()
            .all(|running| running.store.members().iter().all(|member| member.member.started))
    })
    .await;
}

async fn voters(group: &Group, count: usize) {
    eventually("the joining member votes", || {
        group
            .running
            .values()
            .all(|running| running.store.members().iter().filter(|member| member.voter).count() == count)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_added_through_a_follower_and_votes_once_it_has_caught_up() {
    let mut group = Group::start(3, |_| {}).await;
    let follower = group.a_follower().await;
    all_started(&group).await;
    let mut client = client(&group, follower).await;
    put(group.store(follower), "a", "1").await.expect("written");

    let (listener, address) = group.reserve();
    let id = add(&mut client, &address, false).await.expect("added");
    let unstarted = members(&mut client).await.into_iter().find(|member| member.id == id).expect("listed");
    assert_eq!((unstarted.name.as_str(), unstarted.is_learner), ("", false));
    // It counts for nothing before it is there.
    put(group.store(follower), "a", "2").await.expect("written");
    assert_eq!(
        refused(add(&mut client, &address, false).await),
        (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".into())
    );

    group.join(id, listener).await;
    voters(&group, 4).await;
    all_started(&group).await;
    group.converged().await;
    assert_eq!(get(group.store(id), "a").as_deref(), Some("2"));
    let started = members(&mut client).await.into_iter().find(|member| member.id == id).expect("listed");
    assert_eq!(started.name, format!("m{id}"));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learners_have_a_bound_and_are_promoted_only_when_in_sync() {
    let mut group = Group::start(1, |config| config.learners_max = 2).await;
    let leader = group.leader().await;
    all_started(&group).await;
    let mut client = client(&group, leader).await;
    let (first_listener, first_address) = group.reserve();
    let (_second_listener, second_address) = group.reserve();
    let first = add(&mut client, &first_address, true).await.expect("added");
    let second = add(&mut client, &second_address, true).await.expect("several at once");
    assert_eq!(
        refused(add(&mut client, "127.0.0.1:1", true).await),
        (Code::FailedPrecondition, "etcdserver: too many learner members in cluster".into())
    );
    assert_eq!(
        refused(client.member_promote(pb::MemberPromoteRequest { id: second }).await),
        (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader".into()
        )
    );
    assert_eq!(
        refused(client.member_promote(pb::MemberPromoteRequest { id: leader }).await),
        (Code::FailedPrecondition, "etcdserver: can only promote a learner member".into())
    );

    group.join(first, first_listener).await;
    let store = group.store(first).clone();
    eventually("the learner learns", || {
        store.status().role == Role::Learner && store.members().iter().any(|member| member.id == first)
    })
    .await;
    let mut promoted = client.member_promote(pb::MemberPromoteRequest { id: first }).await;
    while promoted.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        promoted = client.member_promote(pb::MemberPromoteRequest { id: first }).await;
    }
    voters(&group, 2).await;
    let left =
        client.member_remove(pb::MemberRemoveRequest { id: second }).await.expect("removed").into_inner();
    assert_eq!(left.members.len(), 2);
    assert_eq!(
        refused(client.member_remove(pb::MemberRemoveRequest { id: second }).await),
        (Code::NotFound, "etcdserver: member not found".into())
    );
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_stops_by_itself_and_learners_stay() {
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    all_started(&group).await;
    let mut client = client(&group, leader).await;
    let (_listener, address) = group.reserve();
    let learner = add(&mut client, &address, true).await.expect("added");
    client.member_remove(pb::MemberRemoveRequest { id: follower }).await.expect("removed");
    let ids: Vec<_> = members(&mut client).await.into_iter().map(|member| member.id).collect();
    assert!(!ids.contains(&follower) && ids.contains(&learner), "{ids:?}");
    // No handle of it may live on: it would keep the directory locked.
    let failed = group.store(follower).failed();
    let reason = tokio::time::timeout(crate::group::PATIENCE, failed).await.expect("it stops");
    assert!(reason.contains("permanently removed"), "{reason}");
    put(group.store(leader), "a", "1").await.expect("the others go on");

    // Nor does it come back.
    group.stop_member(follower).await;
    let reason = group.start_refused(follower).await;
    assert!(reason.contains("permanently removed"), "{reason}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_could_lose_the_majority_are_refused() {
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    all_started(&group).await;
    let mut client = client(&group, leader).await;
    let others: Vec<MemberId> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    let (_listener, address) = group.reserve();
    add(&mut client, &address, false).await.expect("added");
    // Three of four have started. One more could leave three of five; it is refused because one does not answer.
    assert_eq!(
        refused(add(&mut client, "127.0.0.1:1", false).await),
        (Code::Unavailable, "etcdserver: unhealthy cluster".into())
    );
    // Two started members of three remain, one of which is the leader: enough. Of two one would not be.
    client.member_remove(pb::MemberRemoveRequest { id: others[0] }).await.expect("removed");
    assert_eq!(
        refused(client.member_remove(pb::MemberRemoveRequest { id: others[1] }).await),
        (
            Code::FailedPrecondition,
            "etcdserver: re-configuration failed due to not enough started members".into()
        )
    );
    let bad = pb::MemberAddRequest { peer_ur_ls: vec!["nonsense".into()], is_learner: true };
    assert_eq!(
        refused(client.member_add(bad).await),
        (Code::InvalidArgument, "etcdserver: given member URLs are invalid".into())
    );
    group.stop_member(others[0]).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_never_votes_under_its_old_id_and_is_replaced() {
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    all_started(&group).await;
    put(group.store(leader), "a", "1").await.expect("written");
    group.stop_member(follower).await;
    std::fs::remove_dir_all(group.data_dir(follower)).expect("wiped");

    let reason = group.start_refused(follower).await;
    assert!(reason.contains("barque member remove") && reason.contains("barque member add"), "{reason}");
    group.stop_member(follower).await;

    let mut client = client(&group, leader).await;
    client.member_remove(pb::MemberRemoveRequest { id: follower }).await.expect("removed");
    let (listener, address) = group.reserve();
    let id = add(&mut client, &address, false).await.expect("added");
    assert_ne!(id, follower);
    group.join(id, listener).await;
    voters(&group, 3).await;
    group.converged().await;
    assert_eq!(get(group.store(id), "a").as_deref(), Some("1"));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_waits_while_nobody_can_tell() {
    let mut group = Group::start(3, |_| {}).await;
    group.leader().await;
    all_started(&group).await;
    for id in [1, 2, 3] {
        group.stop_member(id).await;
    }
    std::fs::remove_dir_all(group.data_dir(1)).expect("wiped");
    // With the vote of the wiped one, this one could elect itself, and lose what only the third has.
    group.start_member(2).await;
    let reason = group.start_refused(1).await;
    assert!(reason.contains("its directory is empty"), "{reason}");
    assert!(!group.store(2).leadership().is_self);
    group.stop().await;
}

/// Waits until the leader knows that a member has all its entries, unless it leads no more.
async fn acknowledged(leader: &Store, id: MemberId) {
    eventually("the leader has the follower's acknowledgement", || {
        let status = leader.status();
        let follower = status.members.iter().find(|member| member.id == id);
        let matched = follower.and_then(|member| member.matched_index);
        matched >= Some(status.applied_index) || !leader.leadership().is_self
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_directory_is_noticed() {
    let mut group = Group::start(3, |_| {}).await;
    all_started(&group).await;
    // What a leader knows of acknowledgements goes with its leadership, so an election in between proves
    // nothing either way.
    for attempt in 0..10 {
        let leader = group.leader().await;
        let follower = group.a_follower().await;
        group.stop_member(follower).await;
        let (current, old) = (group.data_dir(follower), group.data_dir(90 + attempt));
        copy(&current, &old);
        group.start_member(follower).await;
        put(group.store(leader), "a", "1").await.expect("written");
        group.converged().await;
        acknowledged(group.store(leader), follower).await;
        group.stop_member(follower).await;
        let leadership = group.store(leader).leadership();
        if !leadership.is_self {
            group.start_member(follower).await;
            continue;
        }
        let newer = current.with_extension("newer");
        std::fs::rename(&current, &newer).expect("put aside");
        std::fs::rename(&old, &current).expect("put back");
        group.start_member(follower).await;
        let noticed = {
            let failed = group.store(follower).failed();
            tokio::time::timeout(std::time::Duration::from_secs(10), failed).await
        };
        if let Ok(reason) = noticed {
            assert!(reason.contains("an older copy of its directory"), "{reason}");
            return group.stop().await;
        }
        assert_ne!(group.store(leader).leadership().term, leadership.term, "the leader knew better");
        group.stop_member(follower).await;
        std::fs::remove_dir_all(&current).expect("removed");
        std::fs::rename(&newer, &current).expect("put back");
        group.start_member(follower).await;
    }
    panic!("the leadership never stayed for a moment");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_change_is_followed() {
    let mut group = Group::start(3, |_| {}).await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    all_started(&group).await;
    group.stop_member(follower).await;
    let mut client = client(&group, leader).await;
    let (listener, address) = group.reserve();
    let request = pb::MemberUpdateRequest { id: follower, peer_ur_ls: url(&address) };
    client.member_update(request).await.expect("updated");
    group.join(follower, listener).await;
    put(group.store(leader), "a", "1").await.expect("written");
    group.converged().await;
    assert_eq!(get(group.store(follower), "a").as_deref(), Some("1"));
    group.stop().await;
}
