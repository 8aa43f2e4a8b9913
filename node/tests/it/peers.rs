//! The way to other nodes' pods, when it is not there from the beginning.

use proto::node::{NodeNetwork, PeerRoute, to_node};
use runtime::net::Netlink;

use crate::Test;
use crate::host::{eventually, pod, run};
use crate::lifecycle::led_host;

pub(crate) const TESTS: &[Test] = &[("peers::a_peer_that_cannot_be_reached_is_reached_when_it_can", || {
    run(a_peer_that_cannot_be_reached_is_reached_when_it_can())
})];

const LINK: &str = "late";
const PEER: &str = "10.99.7.0/24";

async fn a_peer_that_cannot_be_reached_is_reached_when_it_can() {
    let (host, control) = led_host().await;
    let peer = PeerRoute { node_name: "other".into(), pod_cidr: PEER.into(), via: "10.98.0.2".into() };
    let network = NodeNetwork {
        epoch: 1,
        pod_cidr: host.pod_cidr.clone(),
        peers: vec![peer],
        ..NodeNetwork::default()
    };
    control.heard().network = Some(network.clone());
    control.say(to_node::Message::NodeNetwork(network));
    // The node's own pods do not wait for it.
    control.put(&pod("own", &["serve"], |_| {}));
    control.running("own-uid").await;
    let is_routed = || {
        let routes = Netlink::open().unwrap().routes().unwrap();
        routes.iter().any(|route| route.destination == PEER.parse().unwrap())
    };
    assert!(!is_routed());

    let mut netlink = Netlink::open().unwrap();
    netlink.add_bridge(LINK).unwrap();
    netlink.add_address(LINK, "10.98.0.1/24".parse().unwrap()).unwrap();
    netlink.set_up(LINK).unwrap();
    eventually("the peer's pods are reached", is_routed);
    netlink.delete_link(LINK).unwrap();
    control.delete("own-uid", 0);
    control.gone("own-uid").await;
    host.finish().await;
}
