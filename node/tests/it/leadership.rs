//! Leaders come and go: the newest epoch is heard, everything is told again, pods do not notice.

use proto::node::{PodSet, to_node};

use crate::Test;
use crate::adoption::leaderless;
use crate::host::{pod, run};

pub(crate) const TESTS: &[Test] =
    &[("leadership::a_new_leader_hears_everything", || run(a_new_leader_hears_everything()))];

async fn a_new_leader_hears_everything() {
    let (host, replicas) = leaderless(2).await;
    let (first, second) = (&replicas[0], &replicas[1]);
    for replica in &replicas {
        replica.until("a session with every replica", |h| (h.heartbeats > 1).then_some(())).await;
    }
    first.lead(5, &host.pod_cidr);
    let pod = pod("steady", &["serve"], |_| {});
    first.put(&pod);
    let (_, before) = first.running("steady-uid").await;
    assert!(second.heard().statuses.is_empty(), "followers are told nothing");
    // The new leader knows the pod from the log.
    second.know(&pod);
    second.lead(6, &host.pod_cidr);
    let (_, after) = second.running("steady-uid").await;
    assert_eq!(before.container_statuses, after.container_statuses);
    // The old one does not know yet that it is deposed: what it says of pods is not heard.
    first.say(to_node::Message::PodSet(PodSet { epoch: 5, pods_json: Vec::new() }));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(second.heard().terminated.is_empty() && first.heard().terminated.is_empty());
    // Losing every replica changes nothing.
    first.follow();
    second.follow();
    replicas.iter().for_each(crate::control::Control::hang_up);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    second.heard().statuses.clear();
    second.lead(7, &host.pod_cidr);
    let (_, again) = second.running("steady-uid").await;
    assert_eq!(before.container_statuses, again.container_statuses);
    second.delete("steady-uid", 30);
    second.gone("steady-uid").await;
    host.finish().await;
}
