//! Attributes and rules: the expressions that a packet meets, in order.
//!
//! Registers of four bytes are named by their number. The kernel refuses a rule that reads one which the same rule
//! has not written, so nothing is handed from rule to rule but by the packet's mark.

use std::time::Duration;

use super::{ALIGNMENT, FAMILY_IPV4};

const NLA_F_NESTED: u16 = 0x8000;
/// The register that rules load into first; each holds 16 bytes.
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;
const REGISTER_VERDICT: u32 = 0;
/// The first of the registers of four bytes, and how many there are.
const SMALL_REGISTER_0: u32 = 8;
const SMALL_REGISTERS: u32 = 16;
pub(super) const LIST_ELEMENT: u16 = 1;

/// Values that `meta` loads.
#[derive(Clone, Copy)]
pub(in crate::net) enum Meta {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    TransportProtocol = 16,
}

/// Headers that `payload` loads from.
#[derive(Clone, Copy)]
pub(in crate::net) enum Header {
    Network = 1,
    Transport = 2,
}

/// Attributes, nested or not.
#[derive(Clone, Default)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Numbers of nf_tables are big-endian.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// The expressions of one rule, in the order in which a packet meets them.
#[derive(Clone, Default)]
pub(in crate::net) struct Rule(pub(super) Attributes);

impl Rule {
    fn expression(self, name: &str, data: Attributes) -> Self {
        let element = Attributes::default().text(1, name).nested(2, data);
        Self(self.0.nested(LIST_ELEMENT, element))
    }

    fn compared(self, operator: u32, value: &[u8]) -> Self {
        let value = Attributes::default().bytes(1, value);
        let data = Attributes::default().number(1, REGISTER_1).number(2, operator).nested(3, value);
        self.expression("cmp", data)
    }

    /// Goes on if what was loaded last equals the value.
    fn equals(self, value: &[u8]) -> Self {
        self.compared(0, value)
    }

    /// Goes on if a property of the packet has the value.
    pub(in crate::net) fn meta(self, key: Meta, value: &[u8]) -> Self {
        let data = Attributes::default().number(1, REGISTER_1).number(2, key as u32);
        self.expression("meta", data).equals(value)
    }

    /// Goes on if the packet came in, or goes out, over the link.
    pub(in crate::net) fn link(self, key: Meta, name: &str) -> Self {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key, &padded)
    }

    /// Goes on if these bytes of a header have the value.
    pub(in crate::net) fn payload(self, header: Header, offset: u32, value: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, REGISTER_1)
            .number(2, header as u32)
            .number(3, offset)
            .number(4, value.len() as u32);
        self.expression("payload", data).equals(value)
    }

    /// Goes on if four bytes of a header, under the mask, have the value.
    pub(in crate::net) fn masked(
        self,
        header: Header,
        offset: u32,
        (mask, value): ([u8; 4], [u8; 4]),
    ) -> Self {
        let data = Attributes::default()
            .number(1, REGISTER_1)
            .number(2, header as u32)
            .number(3, offset)
            .number(4, 4);
        self.expression("payload", data).under(mask).equals(&value)
    }

    /// What was loaded last, without the bits that the mask lacks.
    fn under(self, mask: [u8; 4]) -> Self {
        let value = |bytes: [u8; 4]| Attributes::default().bytes(1, &bytes);
        let data = Attributes::default()
            .number(1, REGISTER_1)
            .number(2, REGISTER_1)
            .number(3, 4)
            .nested(4, value(mask))
            .nested(5, value([0; 4]));
        self.expression("bitwise", data)
    }

    /// Goes on if the packet is meant for one of this host's own addresses.
    pub(in crate::net) fn for_this_host(self) -> Self {
        const ADDRESS_TYPE: u32 = 3;
        const OF_DESTINATION: u32 = 2;
        const LOCAL: u32 = 2;
        let data =
            Attributes::default().number(1, REGISTER_1).number(2, ADDRESS_TYPE).number(3, OF_DESTINATION);
        self.expression("fib", data).equals(&LOCAL.to_ne_bytes())
    }

    /// Goes on if the connection's destination was translated.
    pub(in crate::net) fn was_forwarded(self) -> Self {
        const STATUS: u32 = 2;
        const DESTINATION_NAT: u32 = 1 << 5;
        let load = Attributes::default().number(1, REGISTER_1).number(2, STATUS);
        self.expression("ct", load).under(DESTINATION_NAT.to_ne_bytes()).compared(1, &[0; 4])
    }

    fn load(self, register: u32, value: &[u8]) -> Self {
        let value = Attributes::default().bytes(1, value);
        self.expression("immediate", Attributes::default().number(1, register).nested(2, value))
    }

    /// Sends the connection to another address and port.
    pub(in crate::net) fn forward(self, address: [u8; 4], port: u16) -> Self {
        const DESTINATION: u32 = 1;
        let data = Attributes::default()
            .number(1, DESTINATION)
            .number(2, u32::from(FAMILY_IPV4))
            .number(3, REGISTER_1)
            .number(5, REGISTER_2);
        self.load(REGISTER_1, &address).load(REGISTER_2, &port.to_be_bytes()).expression("nat", data)
    }

    /// Gives the connection this host's address towards where it goes.
    pub(in crate::net) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    /// Drops the packet.
    pub(in crate::net) fn drop(self) -> Self {
        let verdict = Attributes::default().nested(2, Attributes::default().number(1, 0));
        self.expression("immediate", Attributes::default().number(1, REGISTER_VERDICT).nested(2, verdict))
    }
}

/// A register of four bytes; longer values take the next ones, too.
#[derive(Clone, Copy)]
pub(in crate::net) struct Register(u32);

impl Register {
    pub(in crate::net) const fn new(number: u32) -> Self {
        assert!(number < SMALL_REGISTERS, "there are 16 registers");
        Self(SMALL_REGISTER_0 + number)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::net) enum Verdict {
    Drop,
    Accept,
    Goto(String),
}

impl Verdict {
    pub(super) fn attributes(&self) -> Attributes {
        const GOTO: u32 = -4_i32 as u32;
        match self {
            Self::Drop => Attributes::default().number(1, 0),
            Self::Accept => Attributes::default().number(1, 1),
            Self::Goto(chain) => Attributes::default().number(1, GOTO).text(2, chain),
        }
    }
}

/// A connection's state, as `ct state` has it.
#[derive(Clone, Copy)]
pub(in crate::net) enum ConnectionState {
    /// Both sides have been heard, or it belongs to one of which they were.
    Known = 6,
    New = 8,
}

/// Which bytes of a packet are loaded.
#[derive(Clone, Copy)]
pub(in crate::net) struct Bytes {
    pub(in crate::net) header: Header,
    pub(in crate::net) offset: u32,
    pub(in crate::net) length: u32,
}

/// Expressions over registers that the caller names.
impl Rule {
    /// The bytes of a header go into the register.
    pub(in crate::net) fn load_bytes(self, bytes: Bytes, into: Register) -> Self {
        let data = Attributes::default()
            .number(1, into.0)
            .number(2, bytes.header as u32)
            .number(3, bytes.offset)
            .number(4, bytes.length);
        self.expression("payload", data)
    }

    /// A property of the packet goes into the register.
    pub(in crate::net) fn load_meta(self, key: Meta, into: Register) -> Self {
        self.expression("meta", Attributes::default().number(1, into.0).number(2, key as u32))
    }

    /// The packet's property becomes what the register holds.
    pub(in crate::net) fn set_meta(self, key: Meta, from: Register) -> Self {
        self.expression("meta", Attributes::default().number(2, key as u32).number(3, from.0))
    }

    /// `into = from & mask ^ flip`, of four bytes.
    pub(in crate::net) fn bits(
        self,
        from: Register,
        into: Register,
        (mask, flip): ([u8; 4], [u8; 4]),
    ) -> Self {
        let value = |bytes: [u8; 4]| Attributes::default().bytes(1, &bytes);
        let data = Attributes::default()
            .number(1, from.0)
            .number(2, into.0)
            .number(3, 4)
            .nested(4, value(mask))
            .nested(5, value(flip));
        self.expression("bitwise", data)
    }

    /// Goes on if the register holds the value, or if it does not.
    pub(in crate::net) fn holds(self, register: Register, value: &[u8], wanted: bool) -> Self {
        self.comparison(register, u32::from(!wanted), value)
    }

    fn comparison(self, register: Register, operator: u32, value: &[u8]) -> Self {
        let value = Attributes::default().bytes(1, value);
        let data = Attributes::default().number(1, register.0).number(2, operator).nested(3, value);
        self.expression("cmp", data)
    }

    /// Goes on if the set has what begins at the register.
    pub(in crate::net) fn among(self, set: &str, key: Register) -> Self {
        self.expression("lookup", Attributes::default().text(1, set).number(2, key.0))
    }

    /// What the map has for the key goes into the register; without an entry the rule ends.
    pub(in crate::net) fn look_up(self, map: &str, key: Register, into: Register) -> Self {
        self.expression("lookup", Attributes::default().text(1, map).number(2, key.0).number(3, into.0))
    }

    /// The verdict that the map has for the key; without an entry the rule ends.
    pub(in crate::net) fn decide(self, map: &str, key: Register) -> Self {
        let data = Attributes::default().text(1, map).number(2, key.0).number(3, REGISTER_VERDICT);
        self.expression("lookup", data)
    }

    /// A random number below `bound` goes into the register.
    pub(in crate::net) fn random(self, bound: u32, into: Register) -> Self {
        const RANDOM: u32 = 1;
        let data = Attributes::default().number(1, into.0).number(2, bound).number(3, RANDOM).number(4, 0);
        self.expression("numgen", data)
    }

    /// The map remembers the value for the key for so long, counted anew.
    pub(in crate::net) fn remember(
        self,
        map: &str,
        (key, value): (Register, Register),
        timeout: Duration,
    ) -> Self {
        const UPDATE: u32 = 1;
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let data = Attributes::default()
            .text(1, map)
            .number(3, UPDATE)
            .number(4, key.0)
            .number(5, value.0)
            .bytes(6, &milliseconds.to_be_bytes());
        self.expression("dynset", data)
    }

    /// Sends the connection to the address and port that the registers hold.
    pub(in crate::net) fn forward_to(self, address: Register, port: Register) -> Self {
        const DESTINATION: u32 = 1;
        let data = Attributes::default()
            .number(1, DESTINATION)
            .number(2, u32::from(FAMILY_IPV4))
            .number(3, address.0)
            .number(5, port.0);
        self.expression("nat", data)
    }

    /// Goes on if the packet's connection is in that state.
    pub(in crate::net) fn connection(self, state: ConnectionState) -> Self {
        const STATE: u32 = 0;
        let load = Attributes::default().number(1, REGISTER_1).number(2, STATE);
        self.expression("ct", load).under((state as u32).to_ne_bytes()).compared(1, &[0; 4])
    }

    /// Goes on unless the packet came in, or goes out, over the link.
    pub(in crate::net) fn not_link(self, key: Meta, name: &str) -> Self {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        let data = Attributes::default().number(1, REGISTER_1).number(2, key as u32);
        self.expression("meta", data).compared(1, &padded)
    }

    /// Goes on if four bytes of a header, under the mask, differ from the value.
    pub(in crate::net) fn not_masked(self, offset: u32, (mask, value): ([u8; 4], [u8; 4])) -> Self {
        let data = Attributes::default()
            .number(1, REGISTER_1)
            .number(2, Header::Network as u32)
            .number(3, offset)
            .number(4, 4);
        self.expression("payload", data).under(mask).compared(1, &value)
    }

    /// Answers that nobody is at the port.
    pub(in crate::net) fn reject(self) -> Self {
        const UNREACHABLE: u32 = 0;
        const PORT: u8 = 3;
        self.expression("reject", Attributes::default().number(1, UNREACHABLE).bytes(2, &[PORT]))
    }

    /// Resets a TCP connection. Nothing limits how often, as it does what [`Rule::reject`] sends.
    pub(in crate::net) fn reset(self) -> Self {
        const TCP_RESET: u32 = 1;
        self.meta(Meta::TransportProtocol, &[6])
            .expression("reject", Attributes::default().number(1, TCP_RESET))
    }

    /// Ends with the verdict.
    pub(in crate::net) fn verdict(self, verdict: &Verdict) -> Self {
        let verdict = Attributes::default().nested(2, verdict.attributes());
        self.expression("immediate", Attributes::default().number(1, REGISTER_VERDICT).nested(2, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested_ones_marked() {
        let inner = Attributes::default().text(1, "ab");
        assert_eq!(inner.0, [7, 0, 1, 0, b'a', b'b', 0, 0]);
        let outer = Attributes::default().nested(2, inner).number(3, 1);
        assert_eq!(outer.0[..4], [12, 0, 2, 0x80]);
        assert_eq!(outer.0[12..], [8, 0, 3, 0, 0, 0, 0, 1]);
    }
}
