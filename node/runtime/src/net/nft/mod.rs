//! The packet filter's wire: one batch of nf_tables messages, in force as a whole or not at all.
//!
//! It knows tables, chains, sets, rules and the few expressions that this crate's rules are made of; what the
//! rules are for is the caller's business. A batch replaces a whole table, or changes one that is there; what is
//! there can be counted, so that whoever owns a table notices when somebody else changed it.

mod dump;
mod rule;
mod set;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};

pub(super) use self::dump::{contents, generation};
use self::rule::{Attributes, LIST_ELEMENT};
pub(super) use self::rule::{Bytes, ConnectionState, Header, Meta, Register, Rule, Verdict};
pub(super) use self::set::{Element, Mapped, SetSpec, Value};
use super::Error;

/// Room for one batch: some hundred thousand elements of maps.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// Room for the kernel's answers: one acknowledgement, or the first refusals.
const ANSWER_BYTES_MAX: usize = 64 << 10;

const HEADER_BYTES: usize = 16;
const ALIGNMENT: usize = 4;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The subsystem's number, which stands in the upper half of a message's type.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;
const FAMILY_IPV4: u8 = 2;

/// Where a chain hangs.
#[derive(Clone, Copy)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

pub(super) const PRE_ROUTING: u32 = 0;
pub(super) const FORWARD: u32 = 2;
pub(super) const LOCAL_OUT: u32 = 3;
pub(super) const POST_ROUTING: u32 = 4;
pub(super) const PRIORITY_RAW: i32 = -300;
pub(super) const PRIORITY_DESTINATION_NAT: i32 = -100;
pub(super) const PRIORITY_FILTER: i32 = 0;
pub(super) const PRIORITY_SOURCE_NAT: i32 = 100;

/// Messages that come into force together.
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    table: String,
    /// Where the last message begins: it asks for the acknowledgement.
    last: usize,
    /// How many sets it makes.
    sets: u32,
}

impl Batch {
    /// A batch about one IPv4 table, which it first removes with all that is in it.
    pub(super) fn anew(table: &str) -> Self {
        let mut batch = Self::on(table);
        batch.make_table();
        let named = Attributes::default().text(1, table);
        batch.message(DELETE_TABLE, 0, &named);
        batch
    }

    /// A batch about one IPv4 table that is there.
    pub(super) fn on(table: &str) -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0, table: table.to_owned(), last: 0, sets: 0 };
        batch.frame(BATCH_BEGIN);
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

    /// A chain that others lead to.
    pub(super) fn inner_chain(&mut self, name: &str) {
        let chain = Attributes::default().text(1, &self.table).text(3, name);
        self.message(NEW_CHAIN, NLM_F_CREATE, &chain);
    }

    pub(super) fn set(&mut self, spec: &SetSpec) {
        self.sets += 1;
        let set = spec.attributes(&self.table, self.sets);
        self.message(NEW_SET, NLM_F_CREATE, &set);
    }

    pub(super) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEW_ELEMENTS, NLM_F_CREATE, set, elements);
    }

    pub(super) fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(DELETE_ELEMENTS, 0, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(set::ELEMENTS_MAX) {
            let message = set::elements(&self.table, set, chunk);
            self.message(kind, flags, &message);
        }
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
