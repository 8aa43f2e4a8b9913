//! Two one-way conversations about a start: init tells the shim ([`InitMessage`], packets over a socket
//! that exec closes), and the shim tells whoever started it ([`Report`], JSON over a pipe, then its end).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize};

use crate::container::state::{Running, Unenforced};
use crate::error::StartError;

/// Largest packet from init.
const PACKET_BYTES_MAX: usize = 16 << 10;
/// Largest report of a shim.
const REPORT_BYTES_MAX: u64 = 256 << 10;

/// What a container's init says while it sets itself up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum InitMessage {
    /// A limit that this host does not enforce.
    Unenforced(Unenforced),
    /// The terminal's other side; the descriptor comes with the packet.
    Terminal,
    /// Everything is set up; the next thing is exec. The end of the conversation then means success.
    Executing,
    /// It could not be done.
    Failed(StartError),
}

/// What a shim says to its starter, once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process runs and is recorded.
    Running(Running),
    /// The container's own set-up failed.
    Refused(StartError),
    /// The shim itself failed, in words.
    Broken(String),
}

/// One end of the conversation between init and shim.
#[derive(Debug)]
pub(crate) struct InitChannel {
    socket: OwnedFd,
}

impl InitChannel {
    /// Both ends: the shim's and init's.
    pub(crate) fn pair() -> io::Result<(InitChannel, InitChannel)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((InitChannel { socket: near }, InitChannel { socket: far }))
    }

    /// Makes this end answer `WouldBlock` where it would wait for a message.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.socket, FcntlArg::F_GETFL)?);
        fcntl(&self.socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// Sends a message, with a descriptor or without.
    pub(crate) fn send(&self, message: &InitMessage, passed: Option<&OwnedFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let parts = [IoSlice::new(&bytes)];
        let fds: Vec<i32> = passed.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Waits for the next message; `None` at the end.
    pub(crate) fn receive(&self) -> io::Result<Option<(InitMessage, Option<OwnedFd>)>> {
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let (length, passed) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
                Ok(received) => {
                    let passed = received.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                        _ => None,
                    });
                    break (received.bytes, passed);
                }
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let passed = passed.map(crate::syscall::received).transpose()?;
        Ok(Some((serde_json::from_slice(&bytes[..length])?, passed)))
    }
}

impl AsFd for InitChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Report {
    /// Sends the report and ends the conversation. A starter that is gone does not matter.
    pub(crate) fn send(&self, pipe: OwnedFd) {
        if let Ok(bytes) = serde_json::to_vec(self) {
            let _ = File::from(pipe).write_all(&bytes);
        }
    }

    /// Waits for a shim's report, until a deadline. `None`: it ended without one.
    pub(crate) fn receive(pipe: OwnedFd, patience: Duration) -> io::Result<Option<Report>> {
        let deadline = Instant::now() + patience;
        let mut pipe = File::from(pipe);
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            wait_readable(&pipe, deadline)?;
            match pipe.read(&mut chunk)? {
                0 => break,
                length => bytes.extend_from_slice(&chunk[..length]),
            }
            if bytes.len() as u64 > REPORT_BYTES_MAX {
                return Err(io::Error::other("its report is too long"));
            }
        }
        if bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&bytes)?)) }
    }
}

/// Waits until a descriptor is readable or at its end; `TimedOut` at the deadline.
pub(crate) fn wait_readable(fd: &impl AsFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_cross_and_the_end_is_seen() {
        let (near, far) = InitChannel::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        far.send(&InitMessage::Terminal, Some(&writer)).unwrap();
        far.send(&InitMessage::Executing, None).unwrap();
        drop((far, writer));
        let (message, passed) = near.receive().unwrap().unwrap();
        assert!(matches!(message, InitMessage::Terminal));
        File::from(passed.unwrap()).write_all(b"x").unwrap();
        let mut got = String::new();
        File::from(reader).read_to_string(&mut got).unwrap();
        assert_eq!(got, "x");
        assert!(matches!(near.receive().unwrap(), Some((InitMessage::Executing, None))));
        assert!(near.receive().unwrap().is_none());
    }

    #[test]
    fn a_silent_shim_is_not_waited_for_for_ever() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let error = Report::receive(reader, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(writer);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(writer);
        assert!(Report::receive(reader, Duration::from_secs(5)).unwrap().is_none());
    }

    #[test]
    fn reports_go_round() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        Report::Broken("why".into()).send(writer);
        let report = Report::receive(reader, Duration::from_secs(5)).unwrap();
        assert!(matches!(report, Some(Report::Broken(why)) if why == "why"));
    }
}
