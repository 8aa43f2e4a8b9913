//! VXLAN links (RFC 7348) that know their peers by what they are told: without multicast, without learning.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{Error, Link, LinkKind, Netlink};

/// Outer headers of UDP, VXLAN and the inner Ethernet header; that of IP comes with them.
const HEADERS_BYTES: u32 = 8 + 8 + 14;

/// A VXLAN link to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// The network identifier (VNI) of 24 bits; hosts of one network have the same.
    pub id: u32,
    /// The UDP port that hosts send to.
    pub port: u16,
    /// This host's address in the outer packets.
    pub local: IpAddr,
    /// The link that has that address; its MTU bounds that of the VXLAN link.
    pub device: &'a str,
}

/// What a packet grows by, in bytes, on its way between hosts with such addresses.
pub fn vxlan_overhead(local: IpAddr) -> u32 {
    HEADERS_BYTES + if local.is_ipv4() { 20 } else { 40 }
}

impl Netlink {
    /// Makes a VXLAN link, down. One of that name is left as it is if it is the same, and made anew if it is not.
    pub fn add_vxlan(&mut self, vxlan: Vxlan<'_>) -> Result<(), Error> {
        let data = [
            InfoVxlan::Id(vxlan.id),
            match vxlan.local {
                IpAddr::V4(local) => InfoVxlan::Local(local),
                IpAddr::V6(local) => InfoVxlan::Local6(local),
            },
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Link(self.index(vxlan.device)?),
        ];
        let is_same = |found: &LinkMessage| {
            let infos = found.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
            infos.into_iter().flatten().any(|info| match info {
                LinkInfo::Data(InfoData::Vxlan(found)) => data.iter().all(|wanted| found.contains(wanted)),
                _ => false,
            })
        };
        let has_name = |found: &LinkMessage| {
            found.attributes.iter().any(|it| matches!(it, LinkAttribute::IfName(name) if name == vxlan.name))
        };
        if let Some(found) = self.link_messages()?.into_iter().find(has_name) {
            if is_same(&found) {
                return Ok(());
            }
            if Link::from(found).kind == LinkKind::Vxlan {
                self.delete_link(vxlan.name)?;
            }
        }
        let mut message = LinkMessage::default();
        let data = data.into_iter().chain([InfoVxlan::Learning(false)]).collect();
        message.attributes = vec![
            LinkAttribute::IfName(vxlan.name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ];
        self.create("create vxlan", vxlan.name, message, LinkKind::Vxlan, "vxlan")
    }

    /// Says which hardware address a neighbour on a link has, for good.
    pub fn replace_neighbour(&mut self, link: &str, address: IpAddr, mac: [u8; 6]) -> Result<(), Error> {
        let message = self.neighbour(link, address, Some(mac))?;
        let subject = format!("{address} on {link}");
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.change("add neighbour", &subject, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Forgets a neighbour. Returns whether it was there.
    pub fn delete_neighbour(&mut self, link: &str, address: IpAddr) -> Result<bool, Error> {
        let message = self.neighbour(link, address, None);
        self.forget("delete neighbour", format!("{address} on {link}"), message)
    }

    /// Says to which host a VXLAN link sends frames for a hardware address, for good.
    pub fn replace_remote(&mut self, link: &str, mac: [u8; 6], host: IpAddr) -> Result<(), Error> {
        let message = self.remote(link, mac, host)?;
        let subject = format!("{host} of {link}");
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.change("add remote host", &subject, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Forgets that frames for a hardware address go to a host. (The kernel does not say whether they did.)
    pub fn delete_remote(&mut self, link: &str, mac: [u8; 6], host: IpAddr) -> Result<(), Error> {
        let message = self.remote(link, mac, host);
        self.forget("delete remote host", format!("{host} of {link}"), message).map(|_| ())
    }

    fn neighbour(
        &mut self,
        link: &str,
        address: IpAddr,
        mac: Option<[u8; 6]>,
    ) -> Result<NeighbourMessage, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = self.index(link)?;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(inet(address)));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLocalAddress(mac.to_vec())));
        Ok(message)
    }

    /// An entry of the link's own forwarding table.
    fn remote(&mut self, link: &str, mac: [u8; 6], host: IpAddr) -> Result<NeighbourMessage, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.index(link)?;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLocalAddress(mac.to_vec()),
            NeighbourAttribute::Destination(inet(host)),
        ];
        Ok(message)
    }

    fn forget(
        &mut self,
        operation: &'static str,
        subject: String,
        message: Result<NeighbourMessage, Error>,
    ) -> Result<bool, Error> {
        let message = match message {
            // A link takes its tables with it.
            Err(Error::NoSuchLink { .. }) => return Ok(false),
            message => message?,
        };
        match self.change(operation, &subject, RouteNetlinkMessage::DelNeighbour(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn inet(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}
