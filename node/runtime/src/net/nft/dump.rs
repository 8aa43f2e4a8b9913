//! What is in a table now, so that its owner can tell whether it is still what the owner put there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::rule::Attributes;
use super::{ANSWER_BYTES_MAX, Error, FAMILY_IPV4, NLM_F_REQUEST, NLMSG_ERROR, SUBSYSTEM, open};
use crate::net::netfilter::{HEADER_BYTES, attributes, errno_of, messages, value};

const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const FAMILY_BYTES: usize = 4;
const GET_RULES: u16 = 7;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;

/// How many rules each chain has, and the keys of each set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::net) struct Contents {
    pub(in crate::net) rules: BTreeMap<String, usize>,
    pub(in crate::net) keys: BTreeMap<&'static str, BTreeSet<Vec<u8>>>,
}

/// A number that every change of the packet filter in this network namespace makes another.
pub(in crate::net) fn generation() -> Result<u32, Error> {
    let failed = failure("read the generation of", "the packet filter");
    let socket = open().map_err(&failed)?;
    ask(&socket, GET_GENERATION, 0, &Attributes::default()).map_err(&failed)?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(&failed)?;
    let (kind, body) = messages(&buffer[..length]).next().ok_or_else(|| failed(Errno::EBADMSG))?;
    if kind == NLMSG_ERROR {
        return Err(failed(errno_of(body)));
    }
    let number =
        body.get(FAMILY_BYTES..).and_then(|body| value(body, 1)).and_then(|bytes| bytes.try_into().ok());
    number.map(u32::from_be_bytes).ok_or_else(|| failed(Errno::EBADMSG))
}

/// What is in the table; `None`: there is no such table, or one of the sets is missing.
pub(in crate::net) fn contents(table: &str, sets: &[&'static str]) -> Result<Option<Contents>, Error> {
    let failed = failure("list", table);
    let mut contents = Contents::default();
    let named = Attributes::default().text(1, table);
    let listed = list(GET_RULES, &named, |body| {
        let text = |kind| {
            value(body, kind).map(|bytes| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
        };
        // The kernel may list more than was asked for.
        if text(1).as_deref() == Some(table)
            && let Some(chain) = text(2)
        {
            *contents.rules.entry(chain).or_default() += 1;
        }
    });
    if !is_there(listed).map_err(&failed)? || contents.rules.is_empty() {
        return Ok(None);
    }
    for set in sets {
        let mut keys = BTreeSet::new();
        let named = Attributes::default().text(1, table).text(2, set);
        let listed = list(GET_ELEMENTS, &named, |body| {
            for (_, element, _) in value(body, 3).into_iter().flat_map(attributes) {
                keys.extend(value(element, 1).and_then(|key| value(key, 1)).map(<[u8]>::to_vec));
            }
        });
        if !is_there(listed).map_err(&failed)? {
            return Ok(None);
        }
        contents.keys.insert(set, keys);
    }
    Ok(Some(contents))
}

fn is_there(listed: nix::Result<()>) -> nix::Result<bool> {
    match listed {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn failure(operation: &'static str, subject: &str) -> impl Fn(Errno) -> Error {
    let subject = subject.to_owned();
    move |errno| Error::Netlink { operation, subject: subject.clone(), source: io::Error::from(errno) }
}

fn ask(socket: &OwnedFd, kind: u16, flags: u16, attributes: &Attributes) -> nix::Result<()> {
    let length = HEADER_BYTES + FAMILY_BYTES + attributes.0.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([FAMILY_IPV4, 0, 0, 0]);
    bytes.extend(&attributes.0);
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).map(drop)
}

fn list(kind: u16, about: &Attributes, mut each: impl FnMut(&[u8])) -> nix::Result<()> {
    let socket = open()?;
    ask(&socket, kind, NLM_F_DUMP, about)?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(errno_of(body)),
                _ => body.get(FAMILY_BYTES..).into_iter().for_each(&mut each),
            }
        }
    }
}
