//! The shim's socket: `wait` (told when the container has ended), `signal <number>`, `reopen` (the log),
//! `exec` (a further process), `kill` (the process of this connection).
//! One packet, one answer: `ok` or `error <errno> <words>`; `wait` is answered by the exit record. `exec`
//! brings descriptors along and is answered twice: `started` or `failed <why>`, then `ended <how>`.
//!
//! Also the client's side of it. Socket paths may be 107 bytes long and state directories longer, so both
//! sides reach the socket through an open directory.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept4, bind, connect, listen, recvmsg, sendmsg, socket,
};
use nix::sys::stat::Mode;

use crate::container::plan::Bundle;
use crate::process::channel::wait_readable;
use crate::syscall;

/// Clients at once, processes among them; more are turned away and see the end of their connection.
pub(super) const CLIENTS_MAX: usize = 64;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 32;
/// Longest request and answer; an exit record is well below it, a start's failure is the longest.
const PACKET_BYTES_MAX: usize = 32 << 10;
/// Descriptors with one packet.
const PASSED_MAX: usize = 4;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To be told when the container has ended.
    Wait,
    /// To have a signal sent to the container's init.
    Signal(i32),
    /// To have the log file opened anew.
    Reopen,
    /// To have a further process started; descriptors come along.
    Exec,
    /// To have this connection's process killed.
    Kill,
}

impl Request {
    fn encode(self) -> String {
        match self {
            Request::Wait => "wait".to_owned(),
            Request::Signal(number) => format!("signal {number}"),
            Request::Reopen => "reopen".to_owned(),
            Request::Exec => "exec".to_owned(),
            Request::Kill => "kill".to_owned(),
        }
    }

    fn decode(packet: &[u8]) -> Option<Request> {
        let text = std::str::from_utf8(packet).ok()?;
        match text.split_once(' ') {
            None if text == "wait" => Some(Request::Wait),
            None if text == "reopen" => Some(Request::Reopen),
            None if text == "exec" => Some(Request::Exec),
            None if text == "kill" => Some(Request::Kill),
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
    syscall::received(accepted).ok()
}

/// The next request of a client, with the descriptors that came along; `None` when it has gone. What makes
/// no sense is a request for nothing and is answered so.
pub(super) fn receive(client: &OwnedFd) -> Option<Result<(Request, Vec<OwnedFd>), Errno>> {
    match receive_packet(client, MsgFlags::MSG_DONTWAIT) {
        Ok((packet, _)) if packet.is_empty() => None,
        Ok((packet, passed)) => {
            Some(Request::decode(&packet).map(|request| (request, passed)).ok_or(Errno::EINVAL))
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Some(Err(Errno::EAGAIN)),
        Err(_) => None,
    }
}

/// Answers a client; one that is gone or does not listen is not waited for.
pub(super) fn answer(client: &OwnedFd, text: &str) {
    answer_with(client, text, None);
}

/// Answers a client and passes it a descriptor.
pub(super) fn answer_with(client: &OwnedFd, text: &str, passed: Option<&OwnedFd>) {
    let passed: Vec<RawFd> = passed.iter().map(|fd| fd.as_raw_fd()).collect();
    let _ = send_packet(client, text, &passed, MsgFlags::MSG_DONTWAIT);
}

/// Sends a request to the shim of a bundle, with descriptors. Returns the connection, on which the answer
/// arrives.
pub(crate) fn request(bundle: &Bundle, request: Request, passed: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let (_dir, path) = reach(bundle)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(&path)?)?;
    send_request(&connection, request, passed)?;
    Ok(connection)
}

/// Sends a further request on a connection.
pub(crate) fn send_request(
    connection: &OwnedFd,
    request: Request,
    passed: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let passed: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    Ok(send_packet(connection, &request.encode(), &passed, MsgFlags::empty())?)
}

/// Waits for the next answer on a connection and the descriptor that came along; `TimedOut` at the
/// deadline, `ECONNRESET` when the shim has ended or turned the connection away.
pub(crate) fn receive_answer(
    connection: &OwnedFd,
    deadline: Option<Instant>,
) -> io::Result<(String, Option<OwnedFd>)> {
    if let Some(deadline) = deadline {
        wait_readable(connection, deadline)?;
    }
    let (packet, passed) = loop {
        match receive_packet(connection, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    match packet.is_empty() {
        true => Err(Errno::ECONNRESET.into()),
        false => Ok((String::from_utf8_lossy(&packet).into_owned(), passed.into_iter().next())),
    }
}

/// Waits for the answer to a request that has one.
pub(crate) fn await_answer(connection: &OwnedFd) -> io::Result<()> {
    let (text, _) = receive_answer(connection, None)?;
    if text == "ok" { Ok(()) } else { Err(error_in(&text)) }
}

/// The error that an answer tells of.
pub(crate) fn error_in(text: &str) -> io::Error {
    match text.strip_prefix("error ").and_then(|code| code.split(' ').next()?.parse().ok()) {
        Some(code) => io::Error::from_raw_os_error(code),
        // The shim ended in between.
        None => Errno::ECONNRESET.into(),
    }
}

fn send_packet(socket: &OwnedFd, text: &str, passed: &[RawFd], flags: MsgFlags) -> Result<(), Errno> {
    let parts = [IoSlice::new(text.as_bytes())];
    let rights = [ControlMessage::ScmRights(passed)];
    let control = if passed.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags | MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

fn receive_packet(socket: &OwnedFd, flags: MsgFlags) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut space = nix::cmsg_space!([RawFd; PASSED_MAX]);
    let mut parts = [IoSliceMut::new(&mut packet)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut passed = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            passed.extend(fds.into_iter().filter_map(|fd| syscall::received(fd).ok()));
        }
    }
    let length = received.bytes;
    packet.truncate(length);
    Ok((packet, passed))
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
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn requests_go_round_and_nonsense_is_none() {
        let all = [Request::Wait, Request::Signal(64), Request::Reopen, Request::Exec, Request::Kill];
        for request in all {
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
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let connection = request(&bundle, Request::Signal(9), &[reader.as_fd()]).unwrap();
        let client = accept(&listener).unwrap();
        let (asked, passed) = receive(&client).unwrap().unwrap();
        assert_eq!((asked, passed.len()), (Request::Signal(9), 1));
        answer(&client, "error 3 gone");
        assert_eq!(await_answer(&connection).unwrap_err().raw_os_error(), Some(3));
        drop(connection);
        assert!(receive(&client).is_none());
    }
}
