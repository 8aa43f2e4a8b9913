//! Gratuitous ARP: a host tells its neighbours that an address is at its link now.

use std::io;
use std::net::Ipv4Addr;

use super::{Error, Netlink};
use crate::syscall::broadcast_frame;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
const HARDWARE_ETHERNET: u16 = 1;
const BROADCAST: [u8; 6] = [0xff; 6];
const FRAME_BYTES: usize = 42;

/// What an announcement looks like: some neighbours heed only one of them.
#[derive(Debug, Clone, Copy)]
enum Form {
    Request = 1,
    Reply = 2,
}

/// Tells everybody on the link's network that the address is at this link. Neighbours that knew it elsewhere believe the
/// newest word.
pub fn announce_address(link: &str, address: Ipv4Addr) -> Result<(), Error> {
    let failed =
        |source| Error::Netlink { operation: "announce", subject: format!("{address} on {link}"), source };
    let found = Netlink::open()?.link(link)?.ok_or_else(|| Error::NoSuchLink { name: link.to_owned() })?;
    let mac = found.mac.ok_or_else(|| failed(io::Error::other("the link has no hardware address")))?;
    let index = i32::try_from(found.index).map_err(|_| failed(io::Error::other("its index is too large")))?;
    for form in [Form::Request, Form::Reply] {
        broadcast_frame(index, ETHERTYPE_ARP, &frame(form, mac, address)).map_err(failed)?;
    }
    Ok(())
}

fn frame(form: Form, mac: [u8; 6], address: Ipv4Addr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let target = match form {
        Form::Request => [0; 6],
        Form::Reply => mac,
    };
    let parts: [&[u8]; 11] = [
        &BROADCAST,
        &mac,
        &ETHERTYPE_ARP.to_be_bytes(),
        &HARDWARE_ETHERNET.to_be_bytes(),
        &ETHERTYPE_IPV4.to_be_bytes(),
        &[6, 4],
        &(form as u16).to_be_bytes(),
        &mac,
        &address.octets(),
        &target,
        &address.octets(),
    ];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_the_address_as_sender_and_target() {
        let frame = frame(Form::Request, [2, 0, 0, 0, 0, 7], Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(frame[..6], BROADCAST);
        assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 7]);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 7, 192, 0, 2, 9]);
        assert_eq!(frame[32..], [0, 0, 0, 0, 0, 0, 192, 0, 2, 9]);
    }
}
