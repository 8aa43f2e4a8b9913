//! Containers' addresses and the ports of the host that lead to them. One command at a time does anything here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use runtime::net::{Netlink, Prefix};

use super::locks::Lock;
use super::options::PublishedPort;
use super::record::Record;
use super::{Engine, EngineConfig, EngineError};
use crate::network::{BridgeNetwork, PodNetwork as _, Topology};
use crate::pods::admission::HostPort;

/// Tries to find a port of the host that nobody has.
const FREE_PORT_TRIES: usize = 64;

/// The engine's network, while the lock of all containers is held.
pub(super) struct Network<'a> {
    engine: &'a Engine,
    bridge: BridgeNetwork,
    _lock: Lock,
}

impl Engine {
    /// The network, made if it is not there.
    pub(super) fn network(&self) -> Result<Network<'_>, EngineError> {
        let lock = self.records.lock_all()?;
        let dir = self.config.data_dir.join("network");
        std::fs::create_dir_all(&dir).map_err(EngineError::io("create", &dir))?;
        refuse_range_in_use(&self.config)?;
        let bridge = BridgeNetwork::open(&dir, &self.config.bridge_name, None)?;
        bridge.want(Topology { pod_cidr: self.config.bridge_range.clone(), ..Topology::default() })?;
        Ok(Network { engine: self, bridge, _lock: lock })
    }
}

impl Network<'_> {
    /// Gives a container an address; its veth and ports come with [`connect`](Self::connect).
    pub(super) fn reserve(&self, id: &str) -> Result<IpAddr, EngineError> {
        Ok(self.bridge.address_for(id)?)
    }

    /// Ports as they were asked for, none 0 and none somebody else's.
    pub(super) fn ports(&self, record: &Record) -> Result<Vec<PublishedPort>, EngineError> {
        let mut chosen: Vec<PublishedPort> = Vec::new();
        let others = self.others(&record.id)?;
        for asked in &record.asked.ports {
            let taken = |port: &PublishedPort| {
                let own = chosen.iter().map(|other| (record.name.as_str(), other));
                let others = others
                    .iter()
                    .flat_map(|other| other.ports.iter().map(|port| (other.name.as_str(), port)));
                let of_container = own.chain(others).find(|(_, other)| conflict(other, port));
                match of_container {
                    Some((name, _)) => Some(format!("container {name}")),
                    None => is_bound(port).then(|| "a program of this host".to_owned()),
                }
            };
            let port = match asked.host_port {
                0 => (0..FREE_PORT_TRIES)
                    .map(|_| PublishedPort { host_port: rand::random_range(32768..=60999), ..asked.clone() })
                    .find(|port| taken(port).is_none())
                    .unwrap_or_else(|| asked.clone()),
                _ => asked.clone(),
            };
            if let Some(by) = taken(&port) {
                let address = port.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                let port = format!("{}/{}", SocketAddr::new(address, port.host_port), port.protocol);
                return Err(EngineError::PortTaken { port, by });
            }
            chosen.push(port);
        }
        Ok(chosen)
    }

    /// Connects a container's network namespace, and makes its ports lead to it.
    pub(super) fn connect(&self, record: &Record, ip: IpAddr, netns: &Path) -> Result<(), EngineError> {
        self.bridge.connect(&record.id, ip, netns)?;
        self.publish_others(&record.id)?;
        Ok(self.bridge.publish(&record.id, ip, &host_ports(&record.ports))?)
    }

    /// Frees all that a container has.
    pub(super) fn release(&self, id: &str) -> Result<(), EngineError> {
        self.publish_others(id)?;
        Ok(self.bridge.release(id)?)
    }

    fn publish_others(&self, id: &str) -> Result<(), EngineError> {
        let others = self.others(id)?;
        let ports =
            others.iter().filter_map(|other| Some((other.id.clone(), other.ip?, host_ports(&other.ports))));
        Ok(self.bridge.publish_all(&ports.collect::<Vec<_>>())?)
    }

    /// Containers besides this one that have ports.
    fn others(&self, id: &str) -> Result<Vec<Record>, EngineError> {
        let mut all = self.engine.records.all()?;
        all.retain(|record| record.standing && record.id != id && !record.ports.is_empty());
        Ok(all)
    }
}

fn host_ports(ports: &[PublishedPort]) -> Vec<HostPort> {
    let one = |port: &PublishedPort| HostPort {
        protocol: port.protocol.to_ascii_uppercase(),
        address: port.address,
        host_port: port.host_port,
        container_port: port.container_port,
    };
    ports.iter().map(one).collect()
}

fn conflict(a: &PublishedPort, b: &PublishedPort) -> bool {
    let apart = a.address.zip(b.address).is_some_and(|(a, b)| a != b);
    a.host_port == b.host_port && a.protocol == b.protocol && !apart
}

/// Whether a program of the host listens there.
fn is_bound(port: &PublishedPort) -> bool {
    let address = SocketAddr::new(port.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port.host_port);
    let bound = match port.protocol.as_str() {
        "tcp" => TcpListener::bind(address).map(drop),
        "udp" => UdpSocket::bind(address).map(drop),
        _ => return false,
    };
    bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

/// Another network of this machine in the same range would lead nowhere for both.
fn refuse_range_in_use(config: &EngineConfig) -> Result<(), EngineError> {
    let Ok(range) = config.bridge_range.parse::<Prefix>() else { return Ok(()) };
    let range = range.network();
    let refused = |error: runtime::net::Error| EngineError::Network(error.to_string());
    let mut netlink = Netlink::open().map_err(refused)?;
    let links = netlink.links().map_err(refused)?;
    if links.iter().any(|link| link.name == config.bridge_name) {
        return Ok(());
    }
    for link in links {
        for used in netlink.addresses_of(&link.name).map_err(refused)? {
            if range.contains(used.address()) || used.network().contains(range.address()) {
                return Err(EngineError::Network(format!(
                    "the range {} of containers' addresses is in use at {} ({used}): choose another bridgeRange",
                    config.bridge_range, link.name
                )));
            }
        }
    }
    Ok(())
}
