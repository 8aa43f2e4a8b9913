//! The table's sets, chains and rules, and what is written into them. Nothing but the sets' elements depends on which
//! pods and policies there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Block, Ports};
use crate::net::nft::{
    Batch, Bytes, ConnectionState, FORWARD, Header, Hook, Mapped, Meta, PRIORITY_FILTER, Register, Rule,
    SetSpec, Verdict,
};

/// Connections are judged before the table of Services refuses what nobody has.
const PRIORITY: i32 = PRIORITY_FILTER - 5;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const NO_BITS: [u8; 4] = [0; 4];

const R0: Register = Register::new(0);
const R1: Register = Register::new(1);
const R2: Register = Register::new(2);
const R4: Register = Register::new(4);
const R5: Register = Register::new(5);
const R6: Register = Register::new(6);

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn hook_chain(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(super) fn check_chain(self) -> &'static str {
        match self {
            Self::Ingress => "ingress-check",
            Self::Egress => "egress-check",
        }
    }

    /// Where the pod's own address stands, and the other side's.
    fn sides(self) -> (u32, u32) {
        match self {
            Self::Ingress => (DESTINATION_OFFSET, SOURCE_OFFSET),
            Self::Egress => (SOURCE_OFFSET, DESTINATION_OFFSET),
        }
    }
}

/// Sets and maps that this program fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// pod ─► chain, for pods that are held to anything
    Held(Direction),
    /// pod ─► class
    Classes(Direction),
    /// A pod that calls itself.
    Itself,
    /// class, address ─► ports
    Peers,
    /// class, range of addresses ─► ports
    Blocks,
    /// ports: protocol, range of numbers
    Ports,
}

impl Set {
    pub(super) const OURS: [Self; 8] = [
        Self::Held(Direction::Ingress),
        Self::Held(Direction::Egress),
        Self::Classes(Direction::Ingress),
        Self::Classes(Direction::Egress),
        Self::Itself,
        Self::Peers,
        Self::Blocks,
        Self::Ports,
    ];

    pub(super) fn name(self) -> &'static str {
        self.spec().name
    }

    fn spec(self) -> SetSpec {
        let id = Mapped::Bytes(4);
        let (name, key_bytes, mapped, of_ranges) = match self {
            Self::Held(Direction::Ingress) => ("ingress-held", 4, Mapped::Verdicts, false),
            Self::Held(Direction::Egress) => ("egress-held", 4, Mapped::Verdicts, false),
            Self::Classes(Direction::Ingress) => ("ingress-classes", 4, id, false),
            Self::Classes(Direction::Egress) => ("egress-classes", 4, id, false),
            Self::Itself => ("itself", 8, Mapped::Nothing, false),
            Self::Peers => ("peers", 8, id, false),
            Self::Blocks => ("blocks", 12, id, true),
            Self::Ports => ("ports", 12, Mapped::Nothing, true),
        };
        SetSpec { name, key_bytes, mapped, remembers: None, of_ranges }
    }
}

fn address(offset: u32) -> Bytes {
    Bytes { header: Header::Network, offset, length: 4 }
}

/// The pod's class goes into the fifth register, the other side's address into the sixth.
fn sides(direction: Direction) -> Rule {
    let (own, other) = direction.sides();
    Rule::default()
        .load_bytes(address(own), R0)
        .look_up(Set::Classes(direction).name(), R0, R4)
        .load_bytes(address(other), R5)
}

/// Accepts if the port is among those whose number is in the first register.
fn at_port(rule: Rule) -> Rule {
    let destination_port = Bytes { header: Header::Transport, offset: 2, length: 2 };
    rule.load_meta(Meta::TransportProtocol, R1)
        .load_bytes(destination_port, R2)
        .among(Set::Ports.name(), R0)
        .verdict(&Verdict::Accept)
}

fn check(direction: Direction) -> Vec<Rule> {
    let (own, other) = direction.sides();
    let both = Rule::default().load_bytes(address(own), R0).load_bytes(address(other), R1);
    let among_ranges = sides(direction).bits(R5, R6, (NO_BITS, NO_BITS));
    vec![
        both.among(Set::Itself.name(), R0).verdict(&Verdict::Accept),
        at_port(sides(direction).look_up(Set::Peers.name(), R4, R0)),
        at_port(among_ranges.look_up(Set::Blocks.name(), R4, R0)),
        Rule::default().verdict(&Verdict::Drop),
    ]
}

fn entry(direction: Direction) -> Vec<Rule> {
    let (own, _) = direction.sides();
    vec![
        Rule::default().connection(ConnectionState::Known).verdict(&Verdict::Accept),
        Rule::default().load_bytes(address(own), R0).decide(Set::Held(direction).name(), R0),
    ]
}

/// Makes the table without any pod.
pub(super) fn make(batch: &mut Batch) {
    batch.make_table();
    for set in Set::OURS {
        batch.set(&set.spec());
    }
    for direction in Direction::BOTH {
        batch.inner_chain(direction.check_chain());
        let hook = Hook { kind: "filter", number: FORWARD, priority: PRIORITY };
        batch.chain(direction.hook_chain(), hook);
    }
    for direction in Direction::BOTH {
        check(direction).into_iter().for_each(|rule| batch.rule(direction.check_chain(), rule));
        entry(direction).into_iter().for_each(|rule| batch.rule(direction.hook_chain(), rule));
    }
}

/// How many rules each chain has.
pub(super) fn rules() -> BTreeMap<String, usize> {
    let of = |direction: Direction| {
        [
            (direction.hook_chain().to_owned(), entry(direction).len()),
            (direction.check_chain().to_owned(), check(direction).len()),
        ]
    };
    Direction::BOTH.into_iter().flat_map(of).collect()
}

/// A number as it is in a register.
pub(super) fn id_bytes(id: u32) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

/// The keys at which a range begins and before which it ends, without what stands in front. They end in four bytes
/// that are 0 in packets, so that a range's end is no other range's beginning.
pub(super) fn address_range(first: Ipv4Addr, last: Ipv4Addr) -> (Vec<u8>, Vec<u8>) {
    ([first.octets(), NO_BITS].concat(), [last.octets(), [0, 0, 0, 1]].concat())
}

/// The same of ports: each range begins and ends within one protocol, but for the one that is everything.
pub(super) fn port_ranges(ports: &BTreeSet<Ports>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key = |protocol: u8, port: u16, after: u8| {
        let [high, low] = port.to_be_bytes();
        vec![protocol, 0, 0, 0, high, low, 0, after]
    };
    if ports.contains(&Ports::All) {
        return vec![(key(0, 0, 0), key(u8::MAX, u16::MAX, 1))];
    }
    let mut merged: Vec<(u8, u16, u16)> = Vec::new();
    let mut ranges: Vec<(u8, u16, u16)> = ports
        .iter()
        .filter_map(|ports| match ports {
            Ports::All => None,
            Ports::Of { transport, first, last } => Some((transport.number(), *first, *last)),
        })
        .filter(|(_, first, last)| first <= last)
        .collect();
    ranges.sort_unstable();
    for (protocol, first, last) in ranges {
        match merged.last_mut() {
            Some((same, _, end)) if *same == protocol && u32::from(first) <= u32::from(*end) + 1 => {
                *end = last.max(*end);
            }
            _ => merged.push((protocol, first, last)),
        }
    }
    merged
        .into_iter()
        .map(|(protocol, first, last)| (key(protocol, first, 0), key(protocol, last, 1)))
        .collect()
}

/// The same blocks as ranges that do not overlap, each with the ports of all blocks that it is part of.
pub(super) fn disjoint(blocks: &[Block]) -> Vec<(Ipv4Addr, Ipv4Addr, BTreeSet<Ports>)> {
    let mut edges: BTreeMap<u64, Vec<(bool, usize)>> = BTreeMap::new();
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.first <= block.last) {
        edges.entry(u64::from(block.first.to_bits())).or_default().push((true, index));
        edges.entry(u64::from(block.last.to_bits()) + 1).or_default().push((false, index));
    }
    let mut ranges: Vec<(Ipv4Addr, Ipv4Addr, BTreeSet<Ports>)> = Vec::new();
    let mut open = BTreeSet::new();
    let mut begun = 0;
    for (at, changes) in edges {
        if let (Ok(first), Ok(last), false) =
            (u32::try_from(begun), u32::try_from(at.saturating_sub(1)), open.is_empty())
        {
            let ports: BTreeSet<Ports> =
                open.iter().flat_map(|index: &usize| blocks[*index].ports.iter().copied()).collect();
            let first = Ipv4Addr::from_bits(first);
            match ranges.last_mut() {
                Some((_, end, same))
                    if *same == ports && end.to_bits().checked_add(1) == Some(first.to_bits()) =>
                {
                    *end = Ipv4Addr::from_bits(last);
                }
                _ => ranges.push((first, Ipv4Addr::from_bits(last), ports)),
            }
        }
        for (opens, index) in changes {
            if opens {
                open.insert(index)
            } else {
                open.remove(&index)
            };
        }
        begun = at;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Transport;

    fn tcp(first: u16, last: u16) -> Ports {
        Ports::Of { transport: Transport::Tcp, first, last }
    }

    #[test]
    fn ranges_of_ports_merge_and_stay_in_their_protocol() {
        let udp = Ports::Of { transport: Transport::Udp, first: 81, last: 65535 };
        let ranges = port_ranges(&[tcp(80, 80), tcp(81, 90), tcp(85, 86), tcp(100, 100), udp].into());
        let numbers: Vec<_> =
            ranges.iter().map(|(first, end)| (first[0], first[5], end[4..].to_vec())).collect();
        assert_eq!(
            numbers,
            [(6, 80, vec![0, 90, 0, 1]), (6, 100, vec![0, 100, 0, 1]), (17, 81, vec![255, 255, 0, 1])]
        );
        assert_eq!(port_ranges(&[Ports::All, tcp(1, 2)].into()).len(), 1);
        assert!(port_ranges(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn blocks_that_overlap_become_ranges_with_the_ports_of_both() {
        let block = |first: &str, last: &str, port| Block {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
            ports: [tcp(port, port)].into(),
        };
        let ranges = disjoint(&[
            block("10.0.0.0", "10.0.0.255", 1),
            block("10.0.0.16", "10.0.0.31", 2),
            block("10.0.1.0", "10.0.1.255", 1),
            block("255.255.255.0", "255.255.255.255", 3),
        ]);
        let text: Vec<String> =
            ranges.iter().map(|(first, last, ports)| format!("{first}-{last} {}", ports.len())).collect();
        assert_eq!(
            text,
            [
                "10.0.0.0-10.0.0.15 1",
                "10.0.0.16-10.0.0.31 2",
                "10.0.0.32-10.0.1.255 1",
                "255.255.255.0-255.255.255.255 1"
            ]
        );
        let whole = disjoint(&[block("0.0.0.0", "255.255.255.255", 1)]);
        assert_eq!(whole.len(), 1);
    }
}
