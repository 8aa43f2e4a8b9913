//! The packet filter's wire: one batch of nf_tables messages, in force as a whole or not at all.
//!
//! It knows tables, chains, rules and the few expressions that this crate's rules are made of; what the
//! rules are for is the caller's business. Every batch replaces a whole table, so there is nothing to
//! list, to compare or to leave behind half-done.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};

use super::Error;

/// Room for one batch: some tens of thousands of rules.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Room for the kernel's answers: one acknowledgement, or the first refusals.
const ANSWER_BYTES_MAX: usize = 64 << 10;

const HEADER_BYTES: usize = 16;
const ALIGNMENT: usize = 4;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The subsystem's number, which stands in the upper half of a message's type.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const FAMILY_IPV4: u8 = 2;
/// The register that rules load into first; each holds 16 bytes.
pub(super) const REGISTER_1: u32 = 1;
pub(super) const REGISTER_2: u32 = 2;
const REGISTER_VERDICT: u32 = 0;
const LIST_ELEMENT: u16 = 1;

/// Where a chain hangs.
#[derive(Clone, Copy)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

pub(super) const PRE_ROUTING: u32 = 0;
pub(super) const LOCAL_OUT: u32 = 3;
pub(super) const POST_ROUTING: u32 = 4;
pub(super) const PRIORITY_RAW: i32 = -300;
pub(super) const PRIORITY_DESTINATION_NAT: i32 = -100;
pub(super) const PRIORITY_SOURCE_NAT: i32 = 100;

/// Values that `meta` loads.
#[derive(Clone, Copy)]
pub(super) enum Meta {
    InputName = 6,
    OutputName = 7,
    TransportProtocol = 16,
}

/// Headers that `payload` loads from.
#[derive(Clone, Copy)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// Attributes, nested or not.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Numbers of nf_tables are big-endian.
    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// The expressions of one rule, in the order in which a packet meets them.
#[derive(Default)]
pub(super) struct Rule(Attributes);

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
    pub(super) fn meta(self, key: Meta, value: &[u8]) -> Self {
        let data = Attributes::default().number(1, REGISTER_1).number(2, key as u32);
        self.expression("meta", data).equals(value)
    }

    /// Goes on if the packet came in, or goes out, over the link.
    pub(super) fn link(self, key: Meta, name: &str) -> Self {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key, &padded)
    }

    /// Goes on if these bytes of a header have the value.
    pub(super) fn payload(self, header: Header, offset: u32, value: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, REGISTER_1)
            .number(2, header as u32)
            .number(3, offset)
            .number(4, value.len() as u32);
        self.expression("payload", data).equals(value)
    }

    /// Goes on if four bytes of a header, under the mask, have the value.
    pub(super) fn masked(self, header: Header, offset: u32, (mask, value): ([u8; 4], [u8; 4])) -> Self {
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
    pub(super) fn for_this_host(self) -> Self {
        const ADDRESS_TYPE: u32 = 3;
        const OF_DESTINATION: u32 = 2;
        const LOCAL: u32 = 2;
        let data =
            Attributes::default().number(1, REGISTER_1).number(2, ADDRESS_TYPE).number(3, OF_DESTINATION);
        self.expression("fib", data).equals(&LOCAL.to_ne_bytes())
    }

    /// Goes on if the connection's destination was translated.
    pub(super) fn was_forwarded(self) -> Self {
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
    pub(super) fn forward(self, address: [u8; 4], port: u16) -> Self {
        const DESTINATION: u32 = 1;
        let data = Attributes::default()
            .number(1, DESTINATION)
            .number(2, u32::from(FAMILY_IPV4))
            .number(3, REGISTER_1)
            .number(5, REGISTER_2);
        self.load(REGISTER_1, &address).load(REGISTER_2, &port.to_be_bytes()).expression("nat", data)
    }

    /// Gives the connection this host's address towards where it goes.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    /// Drops the packet.
    pub(super) fn drop(self) -> Self {
        let verdict = Attributes::default().nested(2, Attributes::default().number(1, 0));
        self.expression("immediate", Attributes::default().number(1, REGISTER_VERDICT).nested(2, verdict))
    }
}

/// Messages that come into force together.
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    table: String,
    /// Where the last message begins: it asks for the acknowledgement.
    last: usize,
}

impl Batch {
    /// A batch about one IPv4 table, which it first removes with all that is in it.
    pub(super) fn anew(table: &str) -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0, table: table.to_owned(), last: 0 };
        batch.frame(BATCH_BEGIN);
        batch.make_table();
        let named = Attributes::default().text(1, table);
        batch.message(DELETE_TABLE, 0, &named);
        batch
    }

    /// The table is there.
    pub(super) fn make_table(&mut self) {
        let named = Attributes::default().text(1, &self.table);
        self.message(NEW_TABLE, NLM_F_CREATE, &named);
    }

    pub(super) fn chain(&mut self, name: &str, hook: Hook) {
        let at = Attributes::default().number(1, hook.number).number(2, hook.priority.cast_unsigned());
        let chain = Attributes::default().text(1, &self.table).text(3, name).nested(4, at).text(7, hook.kind);
        self.message(NEW_CHAIN, NLM_F_CREATE, &chain);
    }

    pub(super) fn rule(&mut self, chain: &str, rule: Rule) {
        let rule = Attributes::default().text(1, &self.table).text(2, chain).nested(4, rule.0);
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &rule);
    }

    fn message(&mut self, kind: u16, flags: u16, attributes: &Attributes) {
        self.last = self.bytes.len();
        self.write(SUBSYSTEM << 8 | kind, flags, [FAMILY_IPV4, 0, 0, 0], &attributes.0);
    }

    fn frame(&mut self, kind: u16) {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        self.write(kind, 0, [0, 0, high, low], &[]);
    }

    fn write(&mut self, kind: u16, flags: u16, family: [u8; 4], attributes: &[u8]) {
        self.sequence += 1;
        let length = HEADER_BYTES + family.len() + attributes.len();
        self.bytes.extend((length as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(family);
        self.bytes.extend(attributes);
    }

    /// Puts the batch in force in the calling thread's network namespace.
    pub(super) fn commit(mut self, operation: &'static str) -> Result<(), Error> {
        let subject = format!("table ip {}", self.table);
        let failed = |source: io::Error| Error::Netlink { operation, subject: subject.clone(), source };
        let flags_at = self.last + 6;
        self.bytes[flags_at] |= NLM_F_ACK as u8;
        self.frame(BATCH_END);
        let socket = open().map_err(|errno| failed(errno.into()))?;
        send(socket.as_raw_fd(), &self.bytes, MsgFlags::empty()).map_err(|errno| failed(errno.into()))?;
        // The kernel has worked on all of it when `send` returns: its answers wait.
        let mut acknowledged = false;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let received = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(failed(errno.into())),
            };
            for code in codes(&buffer[..received]) {
                match code {
                    0 => acknowledged = true,
                    code => return Err(failed(io::Error::from_raw_os_error(-code))),
                }
            }
        }
        match acknowledged {
            true => Ok(()),
            false => Err(failed(io::Error::other("the kernel did not answer"))),
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, sockopt::SndBufForce, &BATCH_BYTES_MAX)?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// The codes of the answers in a datagram: 0 acknowledges, others are negative errnos.
fn codes(mut datagram: &[u8]) -> Vec<i32> {
    let mut codes = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let code = datagram.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|bytes| bytes.try_into().ok());
        if let Some(code) = code.filter(|_| kind == NLMSG_ERROR) {
            codes.push(i32::from_ne_bytes(code));
        }
        let step = length.next_multiple_of(ALIGNMENT).max(HEADER_BYTES).min(datagram.len());
        datagram = &datagram[step..];
    }
    codes
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

    #[test]
    fn answers_are_read_whatever_their_length_says() {
        let mut answer = vec![0; 36];
        answer[..4].copy_from_slice(&36u32.to_ne_bytes());
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-2i32).to_ne_bytes());
        assert_eq!(codes(&answer), [-2]);
        answer[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(codes(&answer)[0], -2);
        assert!(codes(&answer[..17]).is_empty());
    }
}
