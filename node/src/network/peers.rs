//! The way to other nodes' pods: over the link that both nodes are on, else inside of packets between the nodes.
//!
//! ```text
//! on one link:  10.244.2.0/24 via <peer's InternalIP>
//! otherwise:    10.244.2.0/24 via 10.244.2.0 dev vx-cbr0      the peer's end of the VXLAN (RFC 7348)
//!                  10.244.2.0 is at 02:42:0a:f4:02:00         a neighbour, told by hand
//!                  02:42:0a:f4:02:00 is at <InternalIP>       where the link sends the frame
//! ```
//! Every end's addresses follow from its node's range, so no node has to tell them. Each end has the first
//! address of its range, from which the host's own packets to the peers' pods come: their answers find the same way
//! back.

use std::net::{IpAddr, Ipv4Addr};

use runtime::net::{LINK_NAME_BYTES_MAX, Netlink, Prefix, Route, Vxlan, mac_of, vxlan_overhead};
use serde::{Deserialize, Serialize};

use super::bridge::Peer;
use super::ipam::Range;
use super::{CniConfig, NetworkError};

/// Network identifiers have 24 bits.
const VXLAN_ID_MAX: u32 = (1 << 24) - 1;

/// When packets between pods of different nodes travel inside of packets between the nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Encapsulation {
    /// To nodes that are not on this node's link, as its address's prefix says.
    #[default]
    CrossSubnet,
    /// To every node.
    Always,
    /// To none: whatever lies between nodes has routes to their pods.
    Never,
}

/// How pods reach those of other nodes. All nodes of a cluster should have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodNetworkConfig {
    /// When packets are encapsulated.
    pub encapsulation: Encapsulation,
    /// The VXLAN network identifier: 1 to 16777215.
    pub vxlan_id: u32,
    /// The UDP port of encapsulated packets; firewalls between nodes must let it through.
    pub vxlan_port: u16,
    /// Plugins that connect this node's pods, instead of the node's own bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniConfig>,
}

impl Default for PodNetworkConfig {
    fn default() -> Self {
        // The port that IANA assigned.
        Self { encapsulation: Encapsulation::default(), vxlan_id: 4096, vxlan_port: 4789, cni: None }
    }
}

impl PodNetworkConfig {
    /// The key that is wrong and what is, if anything.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        if !(1..=VXLAN_ID_MAX).contains(&self.vxlan_id) {
            let problem = format!("{} is not from 1 to {VXLAN_ID_MAX}", self.vxlan_id);
            return Some(("podNetwork.vxlanId", problem));
        }
        if self.vxlan_port == 0 {
            return Some(("podNetwork.vxlanPort", "must not be 0".to_owned()));
        }
        self.cni.as_ref()?.problem()
    }
}

/// The node among its peers.
#[derive(Debug, Clone)]
pub(crate) struct Underlay {
    /// The node's address.
    pub(crate) internal_ip: IpAddr,
    /// How it is configured.
    pub(crate) config: PodNetworkConfig,
}

/// The link that has the node's address.
#[derive(Debug)]
pub(super) struct OwnLink {
    name: String,
    mtu: u32,
    prefix: Prefix,
}

/// Makes the ways to peers.
#[derive(Debug)]
pub(super) struct Ways {
    underlay: Option<Underlay>,
    tunnel: String,
}

impl Ways {
    /// `underlay`: what the node is in; without it there are only routes by the peers' addresses.
    pub(super) fn new(bridge: &str, underlay: Option<Underlay>) -> Self {
        let mut tunnel = format!("vx-{bridge}");
        tunnel.truncate(LINK_NAME_BYTES_MAX);
        Self { underlay, tunnel }
    }

    /// The largest packet of this node's pods in bytes.
    pub(super) fn pods_mtu(&self, link: &OwnLink) -> u32 {
        match self.encapsulation() {
            Encapsulation::Always => link.mtu.saturating_sub(vxlan_overhead(link.prefix.address())),
            // Packets that are too large for the peers inside: the host says so to who sent them (RFC 1191).
            Encapsulation::CrossSubnet | Encapsulation::Never => link.mtu,
        }
    }

    /// Makes those of now be reached, and those of before that are gone not any more. Says whether all are; who is
    /// not is told of when `is_new`, and not at each further try.
    pub(super) fn apply(
        &self,
        netlink: &mut Netlink,
        own: Range,
        link: Option<&OwnLink>,
        (before, now): (&[Peer], &[Peer]),
        is_new: bool,
    ) -> Result<bool, NetworkError> {
        for gone in before.iter().filter(|old| !now.iter().any(|peer| peer.pod_cidr == old.pod_cidr)) {
            self.forget(netlink, gone)?;
        }
        let is_far = |peer: &Peer| link.is_some_and(|link| self.is_far(link, peer));
        match link {
            Some(link) if now.iter().any(is_far) => {
                if let Err(error) = self.make_tunnel(netlink, own, link)
                    && is_new
                {
                    tracing::warn!(
                        link = self.tunnel, %error,
                        "nodes of other networks are not reached; has the kernel VXLAN (its module vxlan)?"
                    );
                }
            }
            Some(_) => drop(netlink.delete_link(&self.tunnel)?),
            None => {}
        }
        let mut are_reached = true;
        for peer in now {
            let reached = match is_far(peer) {
                true => self.reach_inside(netlink, peer),
                false => netlink.replace_route(&direct(peer)?).map_err(Into::into),
            };
            // One peer that cannot be routed to must not take this node's own pods with it.
            if let Err(error) = reached {
                are_reached = false;
                if is_new {
                    let Peer { pod_cidr, via } = peer;
                    tracing::warn!(%pod_cidr, %via, %error, "no route to a peer's pods; trying on");
                }
            }
        }
        Ok(are_reached)
    }

    fn encapsulation(&self) -> Encapsulation {
        self.underlay.as_ref().map_or(Encapsulation::Never, |underlay| underlay.config.encapsulation)
    }

    /// The link that has the node's address, if there is one.
    pub(super) fn own_link(&self, netlink: &mut Netlink) -> Result<Option<OwnLink>, NetworkError> {
        // A host that others reach by its loopback is one that nobody else reaches.
        let underlay = self.underlay.as_ref().filter(|underlay| !underlay.internal_ip.is_loopback());
        let Some(underlay) = underlay else { return Ok(None) };
        let addresses = netlink.addresses()?;
        let found = addresses.into_iter().find(|found| found.prefix.address() == underlay.internal_ip);
        let Some(found) = found else { return Ok(None) };
        let link = netlink.links()?.into_iter().find(|link| link.index == found.link_index);
        Ok(link.map(|link| OwnLink { name: link.name, mtu: link.mtu, prefix: found.prefix }))
    }

    fn is_far(&self, link: &OwnLink, peer: &Peer) -> bool {
        match self.encapsulation() {
            Encapsulation::Always => true,
            Encapsulation::CrossSubnet => !link.prefix.contains(peer.via),
            Encapsulation::Never => false,
        }
    }

    /// This node's end.
    fn make_tunnel(&self, netlink: &mut Netlink, own: Range, link: &OwnLink) -> Result<(), NetworkError> {
        let Some(Underlay { config, .. }) = &self.underlay else { return Ok(()) };
        let end = own.network();
        let vxlan = Vxlan {
            name: &self.tunnel,
            id: config.vxlan_id,
            port: config.vxlan_port,
            local: link.prefix.address(),
            device: &link.name,
        };
        netlink.add_vxlan(vxlan)?;
        let mac = mac_of(end.into());
        // Told once more what it has, a link would forget its neighbours.
        if netlink.link(&self.tunnel)?.is_none_or(|link| link.mac != Some(mac)) {
            netlink.set_mac(&self.tunnel, mac)?;
        }
        let wanted = Prefix::host(end.into());
        let held = netlink.addresses_of(&self.tunnel)?;
        for other in held.iter().filter(|held| held.address().is_ipv4() && **held != wanted) {
            netlink.delete_address(&self.tunnel, *other)?;
        }
        if !held.contains(&wanted) {
            netlink.add_address(&self.tunnel, wanted)?;
        }
        Ok(netlink.set_up(&self.tunnel)?)
    }

    /// The last is the route: whoever takes it finds the rest.
    fn reach_inside(&self, netlink: &mut Netlink, peer: &Peer) -> Result<(), NetworkError> {
        let end = end_of(peer)?;
        netlink.replace_remote(&self.tunnel, mac_of(end.into()), peer.via)?;
        netlink.replace_neighbour(&self.tunnel, end.into(), mac_of(end.into()))?;
        Ok(netlink.replace_route(&self.inside(peer)?)?)
    }

    fn forget(&self, netlink: &mut Netlink, peer: &Peer) -> Result<(), NetworkError> {
        netlink.delete_route(&direct(peer)?)?;
        netlink.delete_route(&self.inside(peer)?)?;
        let end = end_of(peer)?;
        netlink.delete_neighbour(&self.tunnel, end.into())?;
        netlink.delete_remote(&self.tunnel, mac_of(end.into()), peer.via)?;
        Ok(())
    }

    fn inside(&self, peer: &Peer) -> Result<Route, NetworkError> {
        let route = Route::via(network_of(peer)?, end_of(peer)?.into());
        Ok(Route { device: Some(self.tunnel.clone()), gateway_is_on_link: true, ..route })
    }
}

fn direct(peer: &Peer) -> Result<Route, NetworkError> {
    Ok(Route::via(network_of(peer)?, peer.via))
}

/// The peer's end of the tunnel.
fn end_of(peer: &Peer) -> Result<Ipv4Addr, NetworkError> {
    Ok(Range::parse(&peer.pod_cidr)?.network())
}

fn network_of(peer: &Peer) -> Result<Prefix, NetworkError> {
    Ok(Range::parse(&peer.pod_cidr)?.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(via: &str) -> Peer {
        Peer { pod_cidr: "10.244.2.9/24".into(), via: via.parse().unwrap() }
    }

    fn ways(encapsulation: Encapsulation) -> Ways {
        let config = PodNetworkConfig { encapsulation, ..PodNetworkConfig::default() };
        Ways::new("a-long-bridge-1", Some(Underlay { internal_ip: "10.0.0.1".parse().unwrap(), config }))
    }

    #[test]
    fn peers_are_routed_by_their_network() {
        let near = peer("10.0.0.2");
        let route = direct(&near).unwrap();
        assert_eq!(route.destination, "10.244.2.0/24".parse().unwrap());
        assert_eq!((route.gateway, route.device), (Some(near.via), None));
        let ways = ways(Encapsulation::CrossSubnet);
        let route = ways.inside(&near).unwrap();
        assert_eq!(route.destination, "10.244.2.0/24".parse().unwrap());
        assert_eq!(route.gateway, Some("10.244.2.0".parse().unwrap()));
        assert_eq!(route.device.as_deref(), Some("vx-a-long-bridg"));
    }

    #[test]
    fn who_is_on_another_link_is_far() {
        let link = OwnLink { name: "eth0".into(), mtu: 1500, prefix: "10.0.0.1/24".parse().unwrap() };
        for (encapsulation, near, far) in [
            (Encapsulation::CrossSubnet, false, true),
            (Encapsulation::Always, true, true),
            (Encapsulation::Never, false, false),
        ] {
            let ways = ways(encapsulation);
            assert_eq!(ways.is_far(&link, &peer("10.0.0.2")), near, "{encapsulation:?}");
            assert_eq!(ways.is_far(&link, &peer("10.0.1.2")), far, "{encapsulation:?}");
        }
    }

    #[test]
    fn identifiers_and_ports_are_checked() {
        let default = PodNetworkConfig::default();
        assert_eq!(default.problem(), None);
        let large = PodNetworkConfig { vxlan_id: 1 << 24, ..default.clone() };
        assert_eq!(large.problem().map(|(key, _)| key), Some("podNetwork.vxlanId"));
        let zero = PodNetworkConfig { vxlan_port: 0, ..default.clone() };
        assert_eq!(zero.problem().map(|(key, _)| key), Some("podNetwork.vxlanPort"));
        let nowhere = CniConfig { bin_dirs: Vec::new(), ..CniConfig::default() };
        let bare = PodNetworkConfig { cni: Some(nowhere), ..default.clone() };
        assert_eq!(bare.problem().map(|(key, _)| key), Some("podNetwork.cni.binDirs"));
        let here = CniConfig { conf_dir: "net.d".into(), ..CniConfig::default() };
        let relative = PodNetworkConfig { cni: Some(here), ..default };
        assert_eq!(relative.problem().map(|(key, _)| key), Some("podNetwork.cni"));
    }
}
