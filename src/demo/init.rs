//! `barque demo warm-up` and `barque demo netcheck`: programs for init containers.
//!
//! The first ends badly at TERM, since it did not do what it was for; the second needs CAP_NET_RAW, which containers
//! have unless it is dropped.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::print_line;
use crate::signals::Signals;

/// How often a host is asked before it counts as out of reach.
const PINGS_MAX: u16 = 5;
/// How long it may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Type, code, checksum, identifier, sequence number.
const ECHO_BYTES: usize = 8;

/// Flags of `demo warm-up`.
#[derive(Debug, Args)]
pub(crate) struct WarmUpArgs {
    /// How long it takes.
    #[arg(value_name = "SECONDS", default_value_t = 5)]
    seconds: u32,
}

/// Flags of `demo netcheck`.
#[derive(Debug, Args)]
pub(crate) struct NetcheckArgs {
    /// Who is asked.
    #[arg(value_name = "ADDRESS", default_value = "1.1.1.1")]
    address: Ipv4Addr,
}

/// Prints a line a second.
pub(super) async fn warm_up(args: &WarmUpArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    print_line(format_args!("Warming up for {} seconds", args.seconds));
    for second in 1..=args.seconds {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            name = signals.next() => bail!("ended by {name} before it was warm"),
        }
        print_line(format_args!("{second} of {}", args.seconds));
    }
    print_line(format_args!("Warm"));
    Ok(())
}

/// Pings an address.
pub(super) fn netcheck(args: &NetcheckArgs) -> anyhow::Result<()> {
    print_line(format_args!("Checking network connectivity to {} ...", args.address));
    let family = (AddressFamily::Inet, SockType::Raw);
    let socket = socket(family.0, family.1, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
        .context("cannot make a socket for pings; the container needs the capability NET_RAW")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(ANSWER_TIME_MAX.as_millis() as i64))
        .context("cannot bound the wait for an answer")?;
    for number in 1..=PINGS_MAX {
        if answers(&socket, args.address, number)? {
            print_line(format_args!("Host appears to be reachable"));
            return Ok(());
        }
        std::thread::sleep(ANSWER_TIME_MAX / 4);
    }
    bail!("{} does not answer {PINGS_MAX} pings", args.address)
}

/// Whether one ping is answered in time. Routes may come up late, so being refused counts as no answer.
fn answers(socket: &OwnedFd, address: Ipv4Addr, number: u16) -> anyhow::Result<bool> {
    let identifier = (std::process::id() as u16).to_be_bytes();
    let sequence = number.to_be_bytes();
    let mut ping = [ECHO_REQUEST, 0, 0, 0, identifier[0], identifier[1], sequence[0], sequence[1]];
    let sum = checksum(&ping).to_be_bytes();
    ping[2..4].copy_from_slice(&sum);
    let target = SockaddrIn::from(SocketAddrV4::new(address, 0));
    if sendto(socket.as_raw_fd(), &ping, &target, MsgFlags::empty()).is_err() {
        return Ok(false);
    }
    let until = Instant::now() + ANSWER_TIME_MAX;
    let mut packet = [0; 512];
    while Instant::now() < until {
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => length,
            Err(errno) if std::io::Error::from(errno).kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(errno) => return Err(errno).context("cannot wait for an answer"),
        };
        // A raw socket gives the IP header too; its length stands in its first byte, in words.
        let header = usize::from(packet[0] & 0x0f) * 4;
        let Some(echo) = packet[..length].get(header..header + ECHO_BYTES) else { continue };
        if echo[0] == ECHO_REPLY && echo[4..8] == ping[4..8] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
