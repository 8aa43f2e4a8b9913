//! A connection to the shim's socket and what it became: a question, a wait for the container's end, the life
//! line of a further process, or of somebody who is attached.
//!
//! Owns no loop; the shim's asks it what to poll for and tells it when to go on.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags};

use super::attach::Attachment;
use super::exec::Exec;

/// A connection, and what it is for.
pub(super) struct Client {
    pub(super) connection: OwnedFd,
    pub(super) role: Role,
    /// To be dropped at the end of the round.
    pub(super) gone: bool,
}

/// What a connection is for.
pub(super) enum Role {
    Asks,
    Waits,
    Runs(Exec),
    Attached(Attachment),
}

impl Client {
    /// Takes in what this client's process has said; forgets both once all is told.
    pub(super) fn advance(&mut self) {
        if let Role::Runs(exec) = &mut self.role {
            self.gone |= exec.advance(&self.connection);
        }
    }

    /// What is readable or writable when there is more to do for it than to answer, besides its connection.
    pub(super) fn watched(&self, input_has_room: bool) -> Vec<PollFd<'_>> {
        match &self.role {
            Role::Asks | Role::Waits => Vec::new(),
            Role::Runs(exec) => exec.channel().map(readable).into_iter().collect(),
            Role::Attached(attachment) => {
                let source = attachment.source().filter(|_| input_has_room).map(readable);
                source.into_iter().chain(attachment.waiting().map(writable)).collect()
            }
        }
    }

    /// Whether output waits for it.
    pub(super) fn is_behind(&self) -> bool {
        matches!(&self.role, Role::Attached(attachment) if attachment.waiting().next().is_some())
    }
}

/// For polling until there is something to read, or the end.
pub(super) fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// For polling until something can be written.
pub(super) fn writable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLOUT)
}
