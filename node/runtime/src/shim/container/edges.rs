//! What a shim does before it watches its container and after that has ended: wait for a first attacher, start the
//! caller's command.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use super::{Client, Role, Shim, readable};
use crate::error::Error;
use crate::shim::note;

/// The first attacher is waited for so long, where one is to hear everything.
const ATTACH_TIME_MAX: Duration = Duration::from_secs(5);

impl Shim {
    /// Leaves output where it is until somebody is attached, if that is wanted.
    pub(super) fn await_attacher(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + ATTACH_TIME_MAX;
        let is_attached = |client: &Client| matches!(client.role, Role::Attached(_));
        while self.plan.spec.process.await_attach && !self.clients.iter().any(is_attached) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut fds = vec![readable(self.listener.as_fd())];
            fds.extend(self.clients.iter().map(|client| readable(client.connection.as_fd())));
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::io("poll in", &self.bundle.dir, error)),
            }
            self.accept();
            (0..self.clients.len()).for_each(|index| self.serve(index));
            self.clients.retain(|client| !client.gone);
        }
        Ok(())
    }

    /// Starts what is to be started at the container's end.
    pub(super) fn start_on_exit(&self) {
        let Some((program, args)) = self.plan.spec.on_exit.split_first() else { return };
        if let Err(error) = join_own_processes() {
            return note(&format!("cannot start {program}: {error}"));
        }
        let started =
            Command::new(program).args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        if let Err(error) = started {
            note(&format!("cannot start {program}: {error}"));
        }
    }
}

/// The shim's children were born among the container's processes, where nobody is born any more.
fn join_own_processes() -> io::Result<()> {
    let own = File::open("/proc/self/ns/pid")?;
    Ok(setns(own, CloneFlags::CLONE_NEWPID)?)
}
