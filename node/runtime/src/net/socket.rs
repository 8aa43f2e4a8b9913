//! The netlink socket: one request, its acknowledgement or its listing. It knows framing, sequence
//! numbers and interrupted dumps, and nothing of links or routes.

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Error, NetNs};

/// How often a listing is tried again when the kernel says that it changed meanwhile.
const DUMP_TRIES_MAX: usize = 8;
/// The flag of an interrupted dump.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Netlink messages start on such a boundary.
const ALIGNMENT: usize = 4;

/// A connection to the kernel's network configuration in one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a connection in the network namespace of the calling thread.
    pub fn open() -> Result<Netlink, Error> {
        let failed =
            |source| Error::Netlink { operation: "open", subject: "netlink socket".to_owned(), source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Opens a connection in another network namespace. The calling thread stays where it is.
    pub fn open_in(netns: &NetNs) -> Result<Netlink, Error> {
        netns.run(Netlink::open)?
    }

    /// Sends a request and waits for the kernel's acknowledgement.
    pub(super) fn change(
        &mut self,
        operation: &'static str,
        subject: &dyn fmt::Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        let failed = |source| Error::Netlink { operation, subject: subject.to_string(), source };
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags).map_err(failed)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(failed)?;
            for answer in split(operation, &datagram) {
                let answer = answer?;
                if answer.header.sequence_number != sequence {
                    continue;
                }
                if let NetlinkPayload::Error(error) = answer.payload {
                    return match error.code {
                        None => Ok(()),
                        Some(code) => Err(failed(io::Error::from_raw_os_error(-code.get()))),
                    };
                }
            }
        }
    }

    /// Sends a listing request and returns everything that it listed, whole and unchanged meanwhile.
    pub(super) fn dump(
        &mut self,
        operation: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_TRIES_MAX {
            if let Some(listed) = self.dump_once(operation, message.clone())? {
                return Ok(listed);
            }
        }
        Err(Error::Unstable { operation, tries: DUMP_TRIES_MAX })
    }

    fn dump_once(
        &mut self,
        operation: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let failed = |source| Error::Netlink { operation, subject: "listing".to_owned(), source };
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_DUMP).map_err(failed)?;
        let mut listed = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(failed)?;
            for answer in split(operation, &datagram) {
                let answer = answer?;
                if answer.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(listed)),
                    NetlinkPayload::InnerMessage(message) => listed.push(message),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok((!interrupted).then_some(listed)),
                        Some(code) => return Err(failed(io::Error::from_raw_os_error(-code.get()))),
                    },
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        Ok(self.sequence)
    }
}

/// The messages of one datagram.
fn split<'a>(
    operation: &'static str,
    datagram: &'a [u8],
) -> impl Iterator<Item = Result<NetlinkMessage<RouteNetlinkMessage>, Error>> + 'a {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| Error::Decode { operation, detail: error.to_string() });
        let length = match &decoded {
            Ok(message) => message.header.length as usize,
            Err(_) => rest.len(),
        };
        let step = length.next_multiple_of(ALIGNMENT).max(ALIGNMENT).min(rest.len());
        rest = &rest[step..];
        Some(decoded)
    })
}
