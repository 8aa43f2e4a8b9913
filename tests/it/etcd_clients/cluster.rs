//! member, endpoint, move-leader.

use super::ctl::{Ctl, json};
use super::group::free_addresses;
use super::with_every_etcdctl;
use crate::support::eventually;

/// The members' ids in hexadecimal, in the order of `member list`.
fn ids(ctl: &Ctl<'_>) -> Vec<String> {
    let list = ctl.ok(&["member", "list"]);
    list.lines().map(|line| line.split(',').next().unwrap().to_owned()).collect()
}

/// Waits until each member has told the others its name and where clients reach it (an empty field until
/// then: etcd starts a member before it knows); returns the list.
fn all_started(ctl: &Ctl<'_>) -> String {
    eventually(|| {
        let list = ctl.ok(&["member", "list"]);
        let started = list.matches(", started, ").count() == 3;
        (started && !list.contains(", , ")).then_some(list)
    })
}

/// The leader's and one follower's number among the endpoints, and the follower's id.
fn leader_and_follower(ctl: &Ctl<'_>) -> (usize, usize, String) {
    let status = |member: usize| {
        let status = json(&ctl.ok_at(member, &["endpoint", "status", "-w", "json"]));
        status[0]["Status"].clone()
    };
    let leads = |status: &serde_json::Value| status["leader"] == status["header"]["member_id"];
    // An election may be under way.
    let (all, leader) = eventually(|| {
        let all: Vec<_> = (0..3).map(status).collect();
        let leader = all.iter().position(leads)?;
        Some((all, leader))
    });
    let follower = all.iter().position(|status| !leads(status)).expect("one follows");
    let id = all[follower]["header"]["member_id"].as_u64().unwrap();
    (leader, follower, format!("{id:x}"))
}

#[test]
fn etcdctl_shows_members_and_endpoints() {
    with_every_etcdctl("members and endpoints", |ctl| {
        let list = all_started(ctl);
        // An empty store of ours takes no space.
        ctl.ok(&["put", &ctl.key("something"), "v"]);
        for (number, client) in ctl.group.clients.iter().enumerate() {
            let line = list.lines().find(|line| line.contains(&format!(", m{number}, "))).expect("its name");
            assert!(line.ends_with(&format!(", http://{client}, false")), "{line}");
        }
        let table = ctl.ok(&["member", "list", "-w", "table"]);
        assert!(table.contains("PEER ADDRS") && table.contains("IS LEARNER"), "{table}");

        let health = ctl.command(&["endpoint", "health"]).output().unwrap();
        let health = [health.stdout, health.stderr].concat();
        let health = String::from_utf8(health).unwrap();
        assert_eq!(health.matches("is healthy: successfully committed proposal").count(), 3, "{health}");
        // etcdctl 3.4 sends whole URLs as :authority here, which is not HTTP/2 (RFC 9113, section 8.3.1).
        let all = ctl.ok(&["endpoint", "status", "-w", "json", "--cluster"]);
        let all = json(&all);
        let all = all.as_array().unwrap();
        assert_eq!(all.len(), 3);
        for one in all {
            let status = &one["Status"];
            assert!(status["version"].as_str().unwrap().starts_with("3."), "{status}");
            assert!(status["dbSize"].as_u64().unwrap() > 0, "{status}");
            assert!(
                status["raftTerm"].as_u64().unwrap() > 0 && status["raftIndex"].as_u64().unwrap() > 0,
                "{status}"
            );
        }
        let leaders =
            all.iter().filter(|one| one["Status"]["leader"] == one["Status"]["header"]["member_id"]);
        assert_eq!(leaders.count(), 1);
        let table = ctl.ok(&["endpoint", "status", "-w", "table"]);
        assert!(table.contains("RAFT TERM"), "{table}");
    });
}

#[test]
fn all_members_have_the_same_hash() {
    with_every_etcdctl("hashes", |ctl| {
        for number in 0..20 {
            ctl.ok_at(number % 3, &["put", &ctl.key("hash"), &number.to_string()]);
        }
        let revision = ctl.revision().to_string();
        let text = eventually(|| {
            let output =
                ctl.command(&["endpoint", "hashkv", "--rev", &revision, "-w", "json"]).output().unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        });
        let hashes: Vec<u64> = json(&text)
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["HashKV"]["hash"].as_u64().unwrap())
            .collect();
        assert_eq!(hashes.len(), 3);
        assert!(hashes.iter().all(|hash| *hash == hashes[0] && *hash != 0), "{hashes:?}");
    });
}

#[test]
fn etcdctl_moves_the_leader() {
    with_every_etcdctl("moving the leader", |ctl| {
        let (leader, follower, id) = leader_and_follower(ctl);
        let moved = ctl.ok_at(leader, &["move-leader", &id]);
        assert!(moved.starts_with("Leadership transferred from ") && moved.contains(&id), "{moved}");
        eventually(|| (leader_and_follower(ctl).0 == follower).then_some(()));
        ctl.fails(&["move-leader", "1234"], "etcdserver: bad leader transferee");
    });
}

#[test]
fn etcdctl_changes_membership() {
    with_every_etcdctl("membership", |ctl| {
        all_started(ctl);
        let before = ids(ctl);
        let peer = format!("http://{}", free_addresses(1)[0]);
        // etcd changes nothing before its members have been connected for a while.
        let added = ctl.ok_eventually(&["member", "add", "m4", "--learner", "--peer-urls", &peer]);
        assert!(
            added.contains("added to cluster") && added.contains("ETCD_INITIAL_CLUSTER_STATE"),
            "{added}"
        );
        let id = ids(ctl).into_iter().find(|id| !before.contains(id)).expect("a new member");
        let list = ctl.ok(&["member", "list"]);
        assert!(list.contains(&format!("{id}, unstarted, , {peer}, , true")), "{id} at {peer}: {list}");
        ctl.fails(
            &["member", "promote", &id],
            "can only promote a learner member which is in sync with leader",
        );
        ctl.fails(&["member", "promote", &before[0]], "can only promote a learner member");
        ctl.fails(&["member", "add", "m5", "--peer-urls", &peer], "already exist");
        let other = format!("http://{}", free_addresses(1)[0]);
        // etcdctl pads ids in its sentences, and not in its lists.
        let updated = ctl.ok(&["member", "update", &id, "--peer-urls", &other]);
        assert!(updated.contains(&format!("Member {id:>16} updated in cluster")), "{updated}");
        assert!(ctl.ok(&["member", "list"]).contains(&other));
        let removed = ctl.ok(&["member", "remove", &id]);
        assert!(removed.contains(&format!("Member {id:>16} removed from cluster")), "{removed}");
        assert_eq!(ids(ctl), before);
        ctl.fails(&["member", "remove", &id], "etcdserver: member not found");
    });
}
