//! The kernel's memory of flows (connection tracking): forgetting those that a change of forwarded ports has made
//! wrong. A datagram flow that was translated goes on being translated for as long as datagrams come, whatever the
//! rules say by then; one that was not translated goes on so, too.
//!
//! Does not: touch flows of protocols with connections; their ends notice by themselves.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

use super::Error;
use super::netfilter::{ALIGNMENT, HEADER_BYTES, attributes, errno_of, messages, value};
use super::port_forward::{PortForward, Transport};

/// Behind the message's header: family, version, resource.
const FAMILY_BYTES: usize = 4;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The subsystem stands in the upper half of a message's type.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const FAMILY_IPV4: u8 = 2;
const UDP: u8 = 17;
/// Attributes: the flow as it came, and as its answers come; what they hold.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_TRANSPORT: u16 = 2;
const SOURCE_V4: u16 = 1;
const DESTINATION_V4: u16 = 2;
const TRANSPORT_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// Room for one answer of a listing.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// One flow of datagrams.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    /// The attribute that names it, as the kernel wrote it.
    original: Vec<u8>,
    /// Where its first datagram went.
    destination: Ipv4Addr,
    port: u16,
    /// Who answers.
    answers: Ipv4Addr,
}

/// Forgets the flows of datagrams that came to these forwarded ports, or went to the addresses behind them through
/// a translation. Returns how many. In the calling thread's network namespace.
pub fn forget_flows(forwards: &[PortForward]) -> Result<usize, Error> {
    let datagrams: Vec<&PortForward> =
        forwards.iter().filter(|forward| forward.transport == Transport::Udp).collect();
    if datagrams.is_empty() {
        return Ok(0);
    }
    forget_those(|flow| datagrams.iter().any(|forward| flow.is_of(forward)))
}

/// A place at which datagrams are taken, and who may answer them now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatagramPlace {
    /// Where they come; `None`: to any address of this host.
    pub address: Option<Ipv4Addr>,
    /// To which port.
    pub port: u16,
    /// Those that stand behind it.
    pub answered_by: BTreeSet<Ipv4Addr>,
}

/// Forgets the flows of datagrams to these places that somebody answers who no longer stands behind them. Returns
/// how many. In the calling thread's network namespace.
pub fn forget_dead_flows(places: &[DatagramPlace]) -> Result<usize, Error> {
    if places.is_empty() {
        return Ok(0);
    }
    forget_those(|flow| places.iter().any(|place| flow.is_dead_at(place)))
}

fn forget_those(is_stale: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
    let failed = |operation| {
        move |errno: Errno| Error::Netlink { operation, subject: "flows".to_owned(), source: errno.into() }
    };
    let connection = open().map_err(failed("open"))?;
    let flows = list(&connection).map_err(failed("list"))?;
    let mut forgotten = 0;
    for flow in flows.iter().filter(|flow| is_stale(flow)) {
        match forget(&connection, flow) {
            Ok(()) => forgotten += 1,
            // It ended by itself.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("forget")(errno)),
        }
    }
    Ok(forgotten)
}

impl Flow {
    fn is_of(&self, forward: &PortForward) -> bool {
        let to_port = self.port == forward.host_port
            && forward.host_address.is_none_or(|address| address == self.destination);
        let translated = self.answers == forward.address && self.destination != forward.address;
        to_port || translated
    }

    fn is_dead_at(&self, place: &DatagramPlace) -> bool {
        let came_here = match place.address {
            Some(address) => address == self.destination,
            // A flow that nobody translated is some other program's.
            None => self.answers != self.destination,
        };
        self.port == place.port && came_here && !place.answered_by.contains(&self.answers)
    }
}

fn open() -> nix::Result<OwnedFd> {
    let connection = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    connect(connection.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(connection)
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + FAMILY_BYTES + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([FAMILY_IPV4, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn list(connection: &OwnedFd) -> nix::Result<Vec<Flow>> {
    send(connection.as_raw_fd(), &message(GET, NLM_F_DUMP, &[]), MsgFlags::empty())?;
    let mut flows = Vec::new();
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = recv(connection.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(flows),
                NLMSG_ERROR => return Err(errno_of(body)),
                _ => flows.extend(body.get(FAMILY_BYTES..).and_then(flow)),
            }
        }
    }
}

fn forget(connection: &OwnedFd, flow: &Flow) -> nix::Result<()> {
    send(connection.as_raw_fd(), &message(DELETE, NLM_F_ACK, &flow.original), MsgFlags::empty())?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    let length = recv(connection.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    match messages(&buffer[..length]).next() {
        Some((NLMSG_ERROR, body)) => match errno_of(body) {
            Errno::UnknownErrno => Ok(()),
            errno => Err(errno),
        },
        _ => Err(Errno::EBADMSG),
    }
}

/// A listed flow, if it is one of datagrams between addresses of IPv4.
fn flow(body: &[u8]) -> Option<Flow> {
    let (_, original, whole) = attributes(body).find(|(kind, ..)| *kind == TUPLE_ORIGINAL)?;
    let transport = value(original, TUPLE_TRANSPORT)?;
    if value(transport, TRANSPORT_NUMBER)? != [UDP] {
        return None;
    }
    let address = |tuple: &[u8], which: u16| {
        let bytes: [u8; 4] = value(value(tuple, TUPLE_ADDRESSES)?, which)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let mut named = whole.to_vec();
    named.resize(whole.len().next_multiple_of(ALIGNMENT), 0);
    Some(Flow {
        destination: address(original, DESTINATION_V4)?,
        port: u16::from_be_bytes(value(transport, DESTINATION_PORT)?.try_into().ok()?),
        answers: address(value(body, TUPLE_REPLY)?, SOURCE_V4)?,
        original: named,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn tuple(kind: u16, source: [u8; 4], destination: [u8; 4], (number, port): (u8, u16)) -> Vec<u8> {
        let addresses = [attribute(SOURCE_V4, &source), attribute(DESTINATION_V4, &destination)].concat();
        let transport =
            [attribute(TRANSPORT_NUMBER, &[number]), attribute(DESTINATION_PORT, &port.to_be_bytes())]
                .concat();
        let nested = 0x8000;
        let inner = [
            attribute(TUPLE_ADDRESSES | nested, &addresses),
            attribute(TUPLE_TRANSPORT | nested, &transport),
        ];
        attribute(kind | nested, &inner.concat())
    }

    #[test]
    fn flows_are_read_and_matched() {
        let (caller, host, pod) = ([10, 0, 0, 9], [10, 0, 0, 1], [10, 244, 1, 5]);
        let body = |number| {
            [
                tuple(TUPLE_ORIGINAL, caller, host, (number, 5353)),
                tuple(TUPLE_REPLY, pod, host, (number, 999)),
            ]
            .concat()
        };
        assert_eq!(flow(&body(6)), None, "connections end by themselves");
        let found = flow(&body(UDP)).unwrap();
        assert_eq!((found.port, found.answers), (5353, Ipv4Addr::from(pod)));
        let forward = PortForward {
            transport: Transport::Udp,
            host_address: None,
            host_port: 5353,
            address: Ipv4Addr::from(pod),
            port: 53,
        };
        assert!(found.is_of(&forward));
        let moved = PortForward { host_port: 1, ..forward };
        assert!(found.is_of(&moved), "translated to the address");
        let elsewhere = PortForward { address: [1, 1, 1, 1].into(), ..moved };
        assert!(!found.is_of(&elsewhere));

        let place = |address: Option<[u8; 4]>, by: [u8; 4]| DatagramPlace {
            address: address.map(Ipv4Addr::from),
            port: 5353,
            answered_by: [Ipv4Addr::from(by)].into(),
        };
        assert!(!found.is_dead_at(&place(Some(host), pod)), "it is alive");
        assert!(found.is_dead_at(&place(Some(host), [10, 244, 1, 6])));
        assert!(found.is_dead_at(&place(None, [10, 244, 1, 6])));
        assert!(!found.is_dead_at(&place(Some(caller), [10, 244, 1, 6])), "another address");
    }

    #[test]
    fn torn_answers_are_read_as_far_as_they_go() {
        let whole = message(GET, 0, &tuple(TUPLE_ORIGINAL, [1; 4], [2; 4], (UDP, 1)));
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
            let _no_panic = flow(&whole[..length]);
        }
        assert_eq!(messages(&whole).count(), 1);
        assert_eq!(messages(&[0; 32]).count(), 0);
    }
}
