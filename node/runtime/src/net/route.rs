//! Routes of the main table.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{Error, Netlink, Prefix};

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; its host part is ignored.
    pub destination: Prefix,
    /// The next hop, if it is not on the link.
    pub gateway: Option<IpAddr>,
    /// The link's name; may be left out when a gateway is given.
    pub device: Option<String>,
    /// The next hop is on the device's link, although no prefix of the device says so.
    pub gateway_is_on_link: bool,
    /// The source address that the host prefers for it.
    pub source: Option<IpAddr>,
}

impl Route {
    /// A route through a next hop.
    pub fn via(destination: Prefix, gateway: IpAddr) -> Route {
        Route { destination, gateway: Some(gateway), device: None, gateway_is_on_link: false, source: None }
    }

    /// A route to a destination that is on the link itself.
    pub fn on_link(destination: Prefix, device: impl Into<String>) -> Route {
        Route {
            destination,
            gateway: None,
            device: Some(device.into()),
            gateway_is_on_link: false,
            source: None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination.network())?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(device) = &self.device {
            write!(f, " dev {device}")?;
        }
        Ok(())
    }
}

impl Netlink {
    /// The unicast routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let names: Vec<(u32, String)> =
            self.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for message in self.dump("list routes", &RouteNetlinkMessage::GetRoute(request))? {
                if let RouteNetlinkMessage::NewRoute(message) = message {
                    routes.extend(read(&message, &names));
                }
            }
        }
        Ok(routes)
    }

    /// Adds a route, replacing one to the same destination.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let message = self.write(route)?;
        let request = RouteNetlinkMessage::NewRoute(message);
        self.change("add route", route, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Deletes a route. Returns whether it was there.
    pub fn delete_route(&mut self, route: &Route) -> Result<bool, Error> {
        let message = match self.write(route) {
            // A link takes its routes with it.
            Err(Error::NoSuchLink { .. }) => return Ok(false),
            written => written?,
        };
        match self.change("delete route", route, RouteNetlinkMessage::DelRoute(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, route: &Route) -> Result<RouteMessage, Error> {
        let network = route.destination.network();
        let mut message = RouteMessage::default();
        message.header.address_family =
            if network.address().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = network.length();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        if route.gateway_is_on_link {
            message.header.flags = RouteFlags::Onlink;
        }
        if network.length() > 0 {
            message.attributes.push(RouteAttribute::Destination(network.address().into()));
        }
        if let Some(gateway) = route.gateway {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(device) = &route.device {
            message.attributes.push(RouteAttribute::Oif(self.index(device)?));
        }
        if let Some(source) = route.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        Ok(message)
    }
}

fn read(message: &RouteMessage, names: &[(u32, String)]) -> Option<Route> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => Prefix::DEFAULT_V4,
        AddressFamily::Inet6 => Prefix::DEFAULT_V6,
        _ => return None,
    };
    let gateway_is_on_link = message.header.flags.contains(RouteFlags::Onlink);
    let mut route = Route { destination: any, gateway: None, device: None, gateway_is_on_link, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let length = message.header.destination_prefix_length;
                route.destination = Prefix::new(ip(address)?, length)?;
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => {
                route.device = names.iter().find(|(known, _)| known == index).map(|(_, name)| name.clone());
            }
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
