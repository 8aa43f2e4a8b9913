//! Ending and removing containers.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use runtime::Exit;

use super::create::stop_signal;
use super::locks;
use super::options::BadOption;
use super::record::remove_dir;
use super::settle::Life;
use super::{Engine, EngineError};

/// How long a killed container may take to end.
const KILL_TIME_MAX: Duration = Duration::from_secs(30);
/// No wait for a container is longer at a stretch.
const STRETCH: Duration = Duration::from_secs(60);
/// A container that cannot be watched though it runs is looked at again after this.
const RETRY: Duration = Duration::from_millis(5);

impl Engine {
    /// Removes a container; one that runs only if that is said, and it is killed. Whatever it had is free when this
    /// returns.
    pub fn remove(&self, reference: &str, force: bool) -> Result<(), EngineError> {
        let id = self.records.find(reference)?.id;
        let (_lock, mut record) = self.records.lock(&id)?;
        if !force && self.is_running(&record)? {
            return Err(EngineError::Running(reference.to_owned()));
        }
        if record.standing {
            self.take_down(&mut record)?;
        }
        self.forget(&id)
    }

    /// Forgets a container that holds nothing any more.
    pub(super) fn forget(&self, id: &str) -> Result<(), EngineError> {
        let _all = self.records.lock_all()?;
        self.records.remove(id)
    }

    /// Removes directories of containers that have no record: their making or removal was broken off.
    pub(super) fn remove_orphans(&self) -> Result<(), EngineError> {
        for id in self.records.ids()? {
            if self.records.read(&id)?.is_some() {
                continue;
            }
            let _all = self.records.lock_all()?;
            let dir = self.records.dir(&id);
            if let Some(_own) = locks::try_existing(&dir.join("lock"))?
                && self.records.read(&id)?.is_none()
            {
                remove_dir(&dir)?;
            }
        }
        Ok(())
    }

    /// Asks a container to end and, after a while, kills it. One that does not run stays as it is.
    pub fn stop(&self, reference: &str, patience: Duration) -> Result<(), EngineError> {
        let record = self.records.find(reference)?;
        if !self.is_running(&record)? {
            return self.settle(&record.id);
        }
        let of_image = self.runtime.observe(&record.id)?.and_then(|seen| seen.spec.stop_signal);
        let signal = stop_signal(&record.asked.stop_signal)?.or(of_image).unwrap_or(Signal::SIGTERM as i32);
        self.send(&record.id, signal)?;
        if self.wait_end(&record.id, Some(Instant::now() + patience))?.is_none() {
            self.send(&record.id, Signal::SIGKILL as i32)?;
            self.await_killed(&record.id)?;
        }
        self.settle_if_there(&record.id)
    }

    /// Sends a container's first process a signal. After KILL its end is waited for.
    pub fn kill(&self, reference: &str, signal: &str) -> Result<(), EngineError> {
        let record = self.records.find(reference)?;
        let signal = stop_signal(signal)?.unwrap_or(Signal::SIGKILL as i32);
        if !self.is_running(&record)? {
            return Err(EngineError::NotRunning(reference.to_owned()));
        }
        self.send(&record.id, signal)?;
        if signal != Signal::SIGKILL as i32 {
            return Ok(());
        }
        self.await_killed(&record.id)?;
        self.settle_if_there(&record.id)
    }

    fn send(&self, id: &str, signal: i32) -> Result<(), EngineError> {
        match self.runtime.signal(id, signal) {
            // It has just ended by itself.
            Err(runtime::Error::NotRunning { .. } | runtime::Error::NotFound { .. }) => Ok(()),
            sent => Ok(sent?),
        }
    }

    fn await_killed(&self, id: &str) -> Result<(), EngineError> {
        match self.wait_end(id, Some(Instant::now() + KILL_TIME_MAX))? {
            Some(_) => Ok(()),
            None => Err(EngineError::DoesNotEnd(id.to_owned())),
        }
    }

    fn settle_if_there(&self, id: &str) -> Result<(), EngineError> {
        match self.settle(id) {
            // Removed at its end, as it was asked for.
            Err(EngineError::NoSuchContainer(_)) => Ok(()),
            other => other,
        }
    }

    /// Waits for a container's end; its exit code. At once for one that does not run.
    pub fn wait(&self, reference: &str) -> Result<i32, EngineError> {
        let id = self.records.find(reference)?.id;
        let code = self.wait_end(&id, None)?.unwrap_or_default();
        self.settle_if_there(&id)?;
        Ok(code)
    }

    /// The exit code of a container, awaited until a deadline; `None`: it runs on.
    fn wait_end(&self, id: &str, deadline: Option<Instant>) -> Result<Option<i32>, EngineError> {
        loop {
            let Some(record) = self.records.read(id)? else { return Ok(Some(0)) };
            let watch = match self.life(&record)? {
                Life::Running { .. } => self.runtime.exit_watch(id),
                Life::Ended(ended) => return Ok(Some(ended.exit_code)),
                Life::Created if deadline.is_some() => return Ok(Some(0)),
                Life::Created => {
                    let message = format!("container {} was not started", record.name);
                    return Err(BadOption::Refused(message).into());
                }
            };
            match watch {
                Ok(watch) => {
                    let until = deadline.unwrap_or_else(|| Instant::now() + STRETCH);
                    if is_readable(watch.as_fd(), until)
                        && let Some(exit) = self.runtime.exit_told(&watch)
                    {
                        return Ok(Some(exit.code));
                    }
                }
                Err(_) => std::thread::sleep(RETRY),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let Some(record) = self.records.read(id)? else { return Ok(Some(0)) };
                return Ok(match self.life(&record)? {
                    Life::Running { .. } => None,
                    Life::Ended(ended) => Some(ended.exit_code),
                    Life::Created => Some(0),
                });
            }
        }
    }

    /// How a container ended whose watch, from [`Started`](super::Started), is readable.
    pub fn exit_told(&self, watch: &std::os::fd::OwnedFd) -> Option<Exit> {
        self.runtime.exit_told(watch)
    }
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}
