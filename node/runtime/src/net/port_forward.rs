//! Ports of the host that lead to addresses behind one of its bridges: a table of the packet filter that
//! belongs to one owner and is replaced as a whole.
//!
//! ```text
//! from outside ── prerouting ─┐                               ┌─ postrouting: from the host itself, or back
//! from the host ── output ────┴─ port of this host? to the pod ┴  over the bridge: with the host's address
//! ```
//! Does not: know which ports are free, or remember what it was told.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::nft::{
    Batch, Header, Hook, LOCAL_OUT, Meta, POST_ROUTING, PRE_ROUTING, PRIORITY_DESTINATION_NAT, PRIORITY_RAW,
    PRIORITY_SOURCE_NAT, Rule,
};
use super::{Error, LINK_NAME_BYTES_MAX, Prefix, sysctl};

/// Longest name that the kernel takes for a table (NFT_NAME_MAXLEN less the final zero).
const TABLE_NAME_BYTES_MAX: usize = 255;
/// Offsets of addresses in an IPv4 header, and of the destination port in every transport's.
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const PORT_OFFSET: u32 = 2;
/// The first byte of every loopback address.
const LOOPBACK: [u8; 1] = [127];

/// Protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// Messages.
    Sctp,
}

impl Transport {
    pub(super) fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        })
    }
}

/// One port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// Its protocol.
    pub transport: Transport,
    /// The one address of the host at which it is, or all of them.
    pub host_address: Option<Ipv4Addr>,
    /// Its number.
    pub host_port: u16,
    /// Where it leads.
    pub address: Ipv4Addr,
    /// The port there.
    pub port: u16,
}

/// Behind which bridge the ports' addresses are, and which all of them are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind<'a> {
    /// The bridge's name.
    pub bridge: &'a str,
    /// The range of IPv4 addresses behind it.
    pub network: Prefix,
}

/// Makes the table hold exactly these forwards; without any there is no table. In force as a whole or not at
/// all, in the calling thread's network namespace.
pub fn set_port_forwards(table: &str, behind: Behind<'_>, forwards: &[PortForward]) -> Result<(), Error> {
    let bridge = behind.bridge;
    check(table, "table", TABLE_NAME_BYTES_MAX)?;
    check(bridge, "link", LINK_NAME_BYTES_MAX)?;
    let mut batch = Batch::anew(table);
    if forwards.is_empty() {
        return batch.commit("remove");
    }
    // Else nothing with a loopback address leaves over the bridge, whatever it is translated to.
    sysctl::set(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")?;
    batch.make_table();
    guard_loopback(&mut batch, bridge);
    let nat = |number, priority| Hook { kind: "nat", number, priority };
    for (chain, number) in [("prerouting", PRE_ROUTING), ("output", LOCAL_OUT)] {
        batch.chain(chain, nat(number, PRIORITY_DESTINATION_NAT));
        forwards.iter().for_each(|forward| batch.rule(chain, rule(forward)));
    }
    batch.chain("postrouting", nat(POST_ROUTING, PRIORITY_SOURCE_NAT));
    let out = || Rule::default().link(Meta::OutputName, bridge);
    batch.rule("postrouting", out().payload(Header::Network, SOURCE_OFFSET, &LOOPBACK).masquerade());
    if let IpAddr::V4(network) = behind.network.network().address() {
        // The answer would go from pod to pod past the host, and be nobody's. Told by the address, not by the
        // link: a packet that the bridge itself passes on came in over none.
        let mask = u32::MAX.checked_shl(32 - u32::from(behind.network.length())).unwrap_or(0).to_be_bytes();
        let from_pods = out().masked(Header::Network, SOURCE_OFFSET, (mask, network.octets()));
        batch.rule("postrouting", from_pods.was_forwarded().masquerade());
    }
    batch.commit("fill")
}

/// What `route_localnet` opens is shut again: pods do not reach what listens at the host's loopback.
fn guard_loopback(batch: &mut Batch, bridge: &str) {
    batch.chain("guard", Hook { kind: "filter", number: PRE_ROUTING, priority: PRIORITY_RAW });
    let from_pods = Rule::default().link(Meta::InputName, bridge);
    batch.rule("guard", from_pods.payload(Header::Network, DESTINATION_OFFSET, &LOOPBACK).drop());
}

fn rule(forward: &PortForward) -> Rule {
    let rule = match forward.host_address {
        Some(address) => Rule::default().payload(Header::Network, DESTINATION_OFFSET, &address.octets()),
        None => Rule::default().for_this_host(),
    };
    rule.meta(Meta::TransportProtocol, &[forward.transport.number()])
        .payload(Header::Transport, PORT_OFFSET, &forward.host_port.to_be_bytes())
        .forward(forward.address.octets(), forward.port)
}

fn check(name: &str, what: &'static str, bytes_max: usize) -> Result<(), Error> {
    let why = match name {
        "" => "it is empty",
        name if name.len() > bytes_max => "it is too long",
        name if name.contains(['/', '\0']) => "it has a slash or a zero",
        _ => return Ok(()),
    };
    Err(Error::InvalidName { name: name.to_owned(), what, why })
}
