//! The shim's socket: `wait` (told when the container has ended), `signal <number>`, `reopen` (the log).
//! One packet, one answer: `ok` or `error <errno> <words>`; `wait` is answered by the exit record.
//!
//! Also the client's side of it. Socket paths may be 107 bytes long and state directories longer, so both
//! sides reach the socket through an open directory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, recv,
    send, socket,
};
use nix::sys::stat::Mode;

use crate::container::plan::Bundle;

/// Clients at once; more are turned away and see the end of their connection.
pub(super) const CLIENTS_MAX: usize = 32;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 32;
/// Longest request and answer; an exit record is well below it.
const PACKET_BYTES_MAX: usize = 1024;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To be told when the container has ended.
    Wait,
    /// To have a signal sent to the container's init.
    Signal(i32),
    /// To have the log file opened anew.
    Reopen,
}

impl Request {
    fn encode(self) -> String {
        match self {
            Request::Wait => "wait".to_owned(),
            Request::Signal(number) => format!("signal {number}"),
            Request::Reopen => "reopen".to_owned(),
        }
    }

    fn decode(packet: &[u8]) -> Option<Request> {
        let text = std::str::from_utf8(packet).ok()?;
        match text.split_once(' ') {
            None if text == "wait" => Some(Request::Wait),
            None if text == "reopen" => Some(Request::Reopen),
            Some(("signal", number)) => number.parse().ok().map(Request::Signal),
            _ => None,
        }
    }
}

/// Makes the socket in a bundle and listens on it.
pub(super) fn serve(bundle: &Bundle) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let (_dir, path) = reach(bundle)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(&path)?)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Takes the next connection; `None` when there is none.
pub(super) fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let accepted = accept4(listener.as_raw_fd(), flags).ok()?;
    crate::syscall::received(accepted).ok()
}

/// The next request of a client; `None` when it has gone. What makes no sense is a request for nothing
/// and is answered so.
pub(super) fn receive(client: &OwnedFd) -> Option<Result<Request, Errno>> {
    let mut packet = [0; PACKET_BYTES_MAX];
    match recv(client.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => None,
        Ok(length) => Some(Request::decode(&packet[..length]).ok_or(Errno::EINVAL)),
        Err(Errno::EAGAIN | Errno::EINTR) => Some(Err(Errno::EAGAIN)),
        Err(_) => None,
    }
}

/// Answers a client; one that is gone or does not listen is not waited for.
pub(super) fn answer(client: &OwnedFd, text: &str) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = send(client.as_raw_fd(), text.as_bytes(), flags);
}

/// Sends a request to the shim of a bundle. Returns the connection, on which the answer arrives.
pub(crate) fn request(bundle: &Bundle, request: Request) -> io::Result<OwnedFd> {
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let (_dir, path) = reach(bundle)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(&path)?)?;
    send(connection.as_raw_fd(), request.encode().as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
    Ok(connection)
}

/// Waits for the answer to a request other than [`Request::Wait`].
pub(crate) fn await_answer(connection: &OwnedFd) -> io::Result<()> {
    let mut packet = [0; PACKET_BYTES_MAX];
    let length = loop {
        match recv(connection.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let text = String::from_utf8_lossy(&packet[..length]).into_owned();
    if text == "ok" {
        return Ok(());
    }
    match text.strip_prefix("error ").and_then(|code| code.split(' ').next()?.parse().ok()) {
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        // The shim ended in between.
        None => Err(Errno::ECONNRESET.into()),
    }
}

/// A short path to the socket, good while the directory is held open.
fn reach(bundle: &Bundle) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(&bundle.dir, flags, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(Bundle::socket_name());
    Ok((dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_round_and_nonsense_is_none() {
        for request in [Request::Wait, Request::Signal(15), Request::Signal(64), Request::Reopen] {
            assert_eq!(Request::decode(request.encode().as_bytes()), Some(request));
        }
        for packet in [&b""[..], b"wait now", b"signal", b"signal x", b"\xff"] {
            assert_eq!(Request::decode(packet), None);
        }
    }

    #[test]
    fn a_deep_state_directory_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let bundle = Bundle::new(deep);
        let listener = serve(&bundle).unwrap();
        let connection = request(&bundle, Request::Signal(9)).unwrap();
        let client = accept(&listener).unwrap();
        assert_eq!(receive(&client), Some(Ok(Request::Signal(9))));
        answer(&client, "error 3 gone");
        assert_eq!(await_answer(&connection).unwrap_err().raw_os_error(), Some(3));
        drop(connection);
        assert_eq!(receive(&client), None);
    }
}
