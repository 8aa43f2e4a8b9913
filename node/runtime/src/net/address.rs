//! Addresses of links.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{Error, Netlink, Prefix};

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link that has it.
    pub link_index: u32,
    /// The address with its prefix length.
    pub prefix: Prefix,
}

impl Netlink {
    /// All addresses of the namespace, both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let listed = self.dump("list addresses", &request)?;
        Ok(listed
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(message) => read(&message),
                _ => None,
            })
            .collect())
    }

    /// The name of the link that has an address.
    pub fn link_of(&mut self, address: IpAddr) -> Result<Option<String>, Error> {
        let found = self.addresses()?.into_iter().find(|found| found.prefix.address() == address);
        let Some(found) = found else { return Ok(None) };
        let link = self.links()?.into_iter().find(|link| link.index == found.link_index);
        Ok(link.map(|link| link.name))
    }

    /// The addresses of one link.
    pub fn addresses_of(&mut self, link: &str) -> Result<Vec<Prefix>, Error> {
        let index = self.index(link)?;
        let all = self.addresses()?;
        Ok(all.into_iter().filter(|found| found.link_index == index).map(|found| found.prefix).collect())
    }

    /// Gives a link an address; its prefix's route comes with it when the link is up. IPv6 addresses
    /// are usable at once (no duplicate detection).
    pub fn add_address(&mut self, link: &str, prefix: Prefix) -> Result<(), Error> {
        let message = write(self.index(link)?, prefix);
        let subject = format!("{prefix} to {link}");
        let request = RouteNetlinkMessage::NewAddress(message);
        self.change("add address", &subject, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Gives a link an address for a time, in whole seconds; the kernel takes it away unless it is lent again before.
    pub fn lend_address(&mut self, link: &str, prefix: Prefix, lifetime: Duration) -> Result<(), Error> {
        let mut message = write(self.index(link)?, prefix);
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut times = CacheInfo::default();
        (times.ifa_preferred, times.ifa_valid) = (seconds, seconds);
        message.attributes.push(AddressAttribute::CacheInfo(times));
        let subject = format!("{prefix} to {link}");
        let request = RouteNetlinkMessage::NewAddress(message);
        self.change("lend address", &subject, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address from a link. Returns whether it was there.
    pub fn delete_address(&mut self, link: &str, prefix: Prefix) -> Result<bool, Error> {
        let message = write(self.index(link)?, prefix);
        let subject = format!("{prefix} from {link}");
        match self.change("delete address", &subject, RouteNetlinkMessage::DelAddress(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn write(index: u32, prefix: Prefix) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix.length();
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(prefix.address()));
    message.attributes.push(AddressAttribute::Address(prefix.address()));
    match prefix.address() {
        IpAddr::V4(_) => message.header.family = AddressFamily::Inet,
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

fn read(message: &AddressMessage) -> Option<Address> {
    // For IPv4 `Local` is the link's own address and `Address` may be a point-to-point peer's.
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    let prefix = Prefix::new(found?, message.header.prefix_len)?;
    Some(Address { link_index: message.header.index, prefix })
}
