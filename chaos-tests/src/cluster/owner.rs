//! Which process has opened a connection to us.
//!
//! On loopback every member has the same address, so who dialled is found by the socket: the kernel's socket diagnosis tells its
//! inode, and the inode stands among the open files of its process. (`/proc/net/tcp` tells it too, but walks through all
//! sockets of the machine: tens of milliseconds for each connection, in which elections are lost.)

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Bytes of a question: a netlink header, and `inet_diag_req_v2`.
const QUESTION_BYTES: u32 = 72;
/// Kind of a netlink message: `SOCK_DIAG_BY_FAMILY`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Flag of a netlink message: `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// Where in an answer the inode stands: at the end of `inet_diag_msg`.
const INODE_AT: usize = 84;
/// TCP over IPv4.
const IPV4_TCP: [u8; 4] = [2, 6, 0, 0];

/// The process among `candidates` that holds the socket which is `peer` to our `local`.
pub(super) fn of(peer: SocketAddr, local: SocketAddr, candidates: &[(usize, i32)]) -> Option<usize> {
    let (SocketAddr::V4(peer), SocketAddr::V4(local)) = (peer, local) else { return None };
    let wanted = format!("socket:[{}]", inode(peer, local)?);
    candidates.iter().find(|(_, pid)| holds(*pid, &wanted)).map(|(number, _)| *number)
}

fn holds(pid: i32, wanted: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| {
        fs::read_link(file.path()).is_ok_and(|target| target.as_os_str().to_str() == Some(wanted))
    })
}

fn inode(peer: SocketAddrV4, local: SocketAddrV4) -> Option<u32> {
    let kernel =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)
            .ok()?;
    let fd = kernel.as_raw_fd();
    sendto(fd, &question(peer, local), &NetlinkAddr::new(0, 0), MsgFlags::empty()).ok()?;
    let mut answer = [0; 512];
    let bytes = recv(fd, &mut answer, MsgFlags::empty()).ok()?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if kind != SOCK_DIAG_BY_FAMILY || bytes < INODE_AT + 4 {
        return None;
    }
    let inode = answer[INODE_AT..INODE_AT + 4].try_into().ok().map(u32::from_ne_bytes);
    inode.filter(|inode| *inode != 0)
}

/// Asks for the one socket whose own address is `peer`.
fn question(peer: SocketAddrV4, local: SocketAddrV4) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(QUESTION_BYTES as usize);
    bytes.extend(QUESTION_BYTES.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence, and the kernel as addressee.
    bytes.extend([0; 8]);
    bytes.extend(IPV4_TCP);
    // In any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(peer.port().to_be_bytes());
    bytes.extend(local.port().to_be_bytes());
    for address in [peer, local] {
        bytes.extend(address.ip().octets());
        bytes.extend([0; 12]);
    }
    // On any interface, with any cookie.
    bytes.extend([0; 4]);
    bytes.extend([u8::MAX; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_process_that_dialled_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let local = listener.local_addr().expect("bound");
        let _dialled = TcpStream::connect(local).expect("connected");
        let (_accepted, peer) = listener.accept().expect("accepted");
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(super::of(peer, local, &[(4, 1), (7, own)]), Some(7));
        assert_eq!(super::of(peer, local, &[]), None);
    }
}
