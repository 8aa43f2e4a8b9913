//! Links: bridges, veth pairs, their state, and what is there.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::{Error, LINK_NAME_BYTES_MAX, NetNs, Netlink};

/// What sort of interface a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A software bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// One end of a VXLAN.
    Vxlan,
    /// A virtual kind that this crate does not make, by the kernel's name for it.
    Virtual(String),
    /// No virtual kind: hardware or loopback.
    Physical,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkKind::Bridge => "bridge",
            LinkKind::Veth => "veth",
            LinkKind::Vxlan => "vxlan",
            LinkKind::Virtual(name) => name,
            LinkKind::Physical => "physical device",
        })
    }
}

/// A link as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index in its namespace.
    pub index: u32,
    /// The interface name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether a carrier is there: a veth's peer is up, a bridge has a port that is.
    pub carrier: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
}

/// A veth pair to make. The first end stays in the socket's namespace.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    /// Name of the end that stays.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Namespace of the other end; `None`: the same one.
    pub peer_netns: Option<&'a NetNs>,
    /// MTU of both ends; `None`: the kernel's default.
    pub mtu: Option<u32>,
    /// Bridge that the staying end becomes a port of.
    pub master: Option<&'a str>,
    /// Whether the staying end is set up at once.
    pub up: bool,
}

impl Netlink {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        Ok(self.link_messages()?.into_iter().map(Link::from).collect())
    }

    /// All links as the kernel tells them.
    pub(super) fn link_messages(&mut self) -> Result<Vec<LinkMessage>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let listed = self.dump("list links", &request)?.into_iter();
        let links = listed.filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        Ok(links.collect())
    }

    /// The link of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Makes a bridge, down and without ports. An existing bridge of that name is left as it is.
    pub fn add_bridge(&mut self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.create("create bridge", name, message, LinkKind::Bridge, "bridge")
    }

    /// Makes a veth pair. An existing veth of that name is left as it is, peer and all.
    pub fn add_veth(&mut self, pair: VethPair<'_>) -> Result<(), Error> {
        check_name(pair.name)?;
        check_name(pair.peer_name)?;
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(pair.peer_name.to_owned()));
        if let Some(netns) = pair.peer_netns {
            peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(pair.name.to_owned()));
        if let Some(mtu) = pair.mtu {
            message.attributes.push(LinkAttribute::Mtu(mtu));
            peer.attributes.push(LinkAttribute::Mtu(mtu));
        }
        if let Some(master) = pair.master {
            message.attributes.push(LinkAttribute::Controller(self.index(master)?));
        }
        if pair.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create("create veth", pair.name, message, LinkKind::Veth, "veth")
    }

    /// Makes a link a port of a bridge (`Some`), or of none (`None`).
    pub fn set_master(&mut self, name: &str, master: Option<&str>) -> Result<(), Error> {
        let index = match master {
            Some(master) => self.index(master)?,
            None => 0,
        };
        self.set("set master of", name, vec![LinkAttribute::Controller(index)])
    }

    /// Sets a link's largest packet size in bytes.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), Error> {
        self.set("set MTU of", name, vec![LinkAttribute::Mtu(mtu)])
    }

    /// Sets a link's hardware address.
    pub fn set_mac(&mut self, name: &str, mac: [u8; 6]) -> Result<(), Error> {
        self.set("set hardware address of", name, vec![LinkAttribute::Address(mac.to_vec())])
    }

    /// Lets a bridge send frames back over the port that they came from: to whoever calls itself by an address
    /// of the host's. The port must be the bridge's already.
    pub fn set_hairpin(&mut self, name: &str, on: bool) -> Result<(), Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        let mode = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)]);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(mode)];
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        // Port data is heard in this message only, which makes nothing without being asked to.
        self.change("set hairpin mode of", &name, RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, name: &str) -> Result<(), Error> {
        self.set_state("set up", name, LinkFlags::Up)
    }

    /// Sets a link down: its addresses stay, its routes go.
    pub fn set_down(&mut self, name: &str) -> Result<(), Error> {
        self.set_state("set down", name, LinkFlags::empty())
    }

    /// Deletes a link; the other end of a veth goes with it. Returns whether it was there.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change("delete link", &name, RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The interface index of a name in this namespace.
    pub fn index(&mut self, name: &str) -> Result<u32, Error> {
        self.link(name)?.map(|link| link.index).ok_or_else(|| Error::NoSuchLink { name: name.to_owned() })
    }

    pub(super) fn create(
        &mut self,
        operation: &'static str,
        name: &str,
        message: LinkMessage,
        kind: LinkKind,
        wanted: &'static str,
    ) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewLink(message);
        let error = match self.change(operation, &name, request, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(Errno::EEXIST as i32) {
            return Err(error);
        }
        match self.link(name)? {
            Some(link) if link.kind == kind => Ok(()),
            Some(link) => {
                Err(Error::WrongKind { name: name.to_owned(), found: link.kind.to_string(), wanted })
            }
            // The name that exists is the peer's, in its namespace.
            None => Err(error),
        }
    }

    fn set(
        &mut self,
        operation: &'static str,
        name: &str,
        attributes: Vec<LinkAttribute>,
    ) -> Result<(), Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.change_link(operation, name, message)
    }

    fn set_state(&mut self, operation: &'static str, name: &str, state: LinkFlags) -> Result<(), Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.header.flags = state;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.change_link(operation, name, message)
    }

    fn change_link(
        &mut self,
        operation: &'static str,
        name: &str,
        message: LinkMessage,
    ) -> Result<(), Error> {
        match self.change(operation, &name, RouteNetlinkMessage::SetLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => {
                Err(Error::NoSuchLink { name: name.to_owned() })
            }
            result => result,
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            kind: LinkKind::Physical,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            mtu: 0,
            master: None,
            mac: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(kind_of).unwrap_or(LinkKind::Physical);
                }
                _ => {}
            }
        }
        link
    }
}

fn kind_of(info: LinkInfo) -> Option<LinkKind> {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(LinkKind::Bridge),
        LinkInfo::Kind(InfoKind::Veth) => Some(LinkKind::Veth),
        LinkInfo::Kind(InfoKind::Vxlan) => Some(LinkKind::Vxlan),
        LinkInfo::Kind(other) => Some(LinkKind::Virtual(other.to_string())),
        _ => None,
    }
}

/// A hardware address derived from an IPv4 address (`02:42:` and its four bytes), so that a pod that
/// takes over an address does not meet stale neighbour entries of the one before. IPv6 takes the last
/// four bytes.
pub fn mac_of(address: IpAddr) -> [u8; 6] {
    let tail = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    [0x02, 0x42, tail[0], tail[1], tail[2], tail[3]]
}

fn check_name(name: &str) -> Result<(), Error> {
    let refused = |why| Err(Error::InvalidName { name: name.to_owned(), what: "link", why });
    if name.is_empty() || name == "." || name == ".." {
        return refused("it is empty or a directory name");
    }
    if name.len() > LINK_NAME_BYTES_MAX {
        return refused("it is longer than 15 bytes");
    }
    if name.bytes().any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace()) {
        return refused("it holds a slash, a colon or white space");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_refuses_are_refused_before_it_is_asked() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-16"] {
            assert!(matches!(check_name(name), Err(Error::InvalidName { .. })), "{name}");
        }
        for name in ["lo", "veth0", "fifteen-bytes15"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn hardware_addresses_are_local_and_follow_the_address() {
        assert_eq!(mac_of("10.1.2.3".parse().unwrap()), [0x02, 0x42, 10, 1, 2, 3]);
        assert_eq!(mac_of("fd00::102:304".parse().unwrap()), [0x02, 0x42, 1, 2, 3, 4]);
    }
}
