//! Ports of the host that lead to pods: who has which, and the packet filter's table that makes it so.
//!
//! Owns the table, one for each agent, named after its bridge. What is published is kept in memory only: a
//! starting agent says it all again from its pods' records, which also clears away what a dead one left.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use runtime::net::{Behind, Netlink, PortForward, Prefix, Transport, forget_flows, set_port_forwards};

use super::NetworkError;
use crate::pods::admission::HostPort;

/// See the module.
#[derive(Debug)]
pub(super) struct HostPorts {
    bridge: String,
    table: String,
    /// By pod uid; the lock also serialises changes of the table.
    published: Mutex<BTreeMap<String, Vec<PortForward>>>,
}

impl HostPorts {
    pub(super) fn new(bridge: &str) -> Self {
        Self { bridge: bridge.to_owned(), table: format!("barque-{bridge}"), published: Mutex::default() }
    }

    /// Exactly these pods have ports.
    pub(super) fn set_all(
        &self,
        all: BTreeMap<String, Vec<PortForward>>,
        network: Prefix,
    ) -> Result<(), NetworkError> {
        let mut published = self.published.lock().expect("no holder of the ports panics");
        self.write(&all, network)?;
        *published = all;
        Ok(())
    }

    /// The pod has these ports.
    pub(super) fn publish(
        &self,
        uid: &str,
        link: &str,
        forwards: Vec<PortForward>,
        network: Prefix,
    ) -> Result<(), NetworkError> {
        if forwards.is_empty() {
            return Ok(());
        }
        // So that the pod can call itself by the host's address.
        Netlink::open()?.set_hairpin(link, true)?;
        let mut published = self.published.lock().expect("no holder of the ports panics");
        let mut next = published.clone();
        next.insert(uid.to_owned(), forwards.clone());
        self.write(&next, network)?;
        *published = next;
        forget(&forwards);
        Ok(())
    }

    /// The pod has no ports any more.
    pub(super) fn withdraw(&self, uid: &str, network: Prefix) -> Result<(), NetworkError> {
        let mut published = self.published.lock().expect("no holder of the ports panics");
        if !published.contains_key(uid) {
            return Ok(());
        }
        let mut next = published.clone();
        let withdrawn = next.remove(uid).unwrap_or_default();
        self.write(&next, network)?;
        *published = next;
        forget(&withdrawn);
        Ok(())
    }

    fn write(&self, all: &BTreeMap<String, Vec<PortForward>>, network: Prefix) -> Result<(), NetworkError> {
        let forwards: Vec<PortForward> = all.values().flatten().copied().collect();
        let behind = Behind { bridge: &self.bridge, network };
        Ok(set_port_forwards(&self.table, behind, &forwards)?)
    }
}

/// Flows that were there before a change follow it. Not being able to is told, not fatal: they run out by themselves.
fn forget(forwards: &[PortForward]) {
    match forget_flows(forwards) {
        Ok(0) => {}
        Ok(flows) => tracing::debug!(flows, "flows of forwarded ports are forgotten"),
        Err(error) => {
            tracing::warn!(%error, "flows of forwarded ports go on until they have been quiet for a while")
        }
    }
}

/// A pod's ports as the packet filter is told. Pods have IPv4 addresses, so ports at IPv6 addresses lead nowhere.
pub(super) fn forwards(ip: IpAddr, ports: &[HostPort]) -> Vec<PortForward> {
    let IpAddr::V4(address) = ip else { return Vec::new() };
    let forward = |port: &HostPort| {
        let host_address: Option<Ipv4Addr> = match port.address {
            None => None,
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(_)) => return None,
        };
        let transport = match port.protocol.as_str() {
            "UDP" => Transport::Udp,
            "SCTP" => Transport::Sctp,
            _ => Transport::Tcp,
        };
        let (host_port, port) = (port.host_port, port.container_port);
        Some(PortForward { transport, host_address, host_port, address, port })
    };
    ports.iter().filter_map(forward).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_become_forwards() {
        let port = |address: Option<&str>, protocol: &str| HostPort {
            protocol: protocol.to_owned(),
            address: address.map(|address| address.parse().unwrap()),
            host_port: 80,
            container_port: 8080,
        };
        let ports = [port(None, "UDP"), port(Some("10.0.0.1"), "TCP"), port(Some("fd00::1"), "TCP")];
        let found = forwards("10.1.0.5".parse().unwrap(), &ports);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].transport, found[0].host_address), (Transport::Udp, None));
        assert_eq!((found[1].host_port, found[1].port), (80, 8080));
    }
}
