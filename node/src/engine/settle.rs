//! What a container does now, and what is to be done when it has ended: its end is written down, its sandbox, address
//! and ports are freed. Done by the shim's command at its end, and by every command that finds it undone.

use runtime::{ContainerState, Exit, ProcessId};

use super::record::{Ended, Record, now};
use super::{Engine, EngineError};

/// How an end that nobody saw is told.
const UNKNOWN_EXIT_CODE: i32 = 255;

/// What a container does, of its record and the runtime together.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Life {
    /// It has not run yet, or a start of it was broken off.
    Created,
    Running {
        process: ProcessId,
        started_at: i64,
    },
    Ended(Ended),
}

impl Engine {
    /// What a container does now.
    pub(super) fn life(&self, record: &Record) -> Result<Life, EngineError> {
        if !record.standing {
            return Ok(record.ended.clone().map_or(Life::Created, Life::Ended));
        }
        let began = match self.runtime.observe(&record.id)?.map(|seen| seen.state) {
            Some(ContainerState::Running { process, started_at }) => {
                return Ok(Life::Running { process, started_at: started_at.unix_nanos() });
            }
            Some(ContainerState::Exited { started_at, exit }) => {
                return Ok(Life::Ended(ended(started_at.map(|at| at.unix_nanos()), &exit)));
            }
            Some(ContainerState::Lost { started_at: Some(at) }) => Some(at.unix_nanos()),
            // The machine was restarted meanwhile.
            None => record.launched_at,
            Some(ContainerState::Creating | ContainerState::Lost { started_at: None }) => None,
        };
        // Another command may be taking it down: it has written the end before it removed what tells of it.
        let written = self.records.read(&record.id)?.and_then(|fresh| fresh.ended);
        let unseen = began.map(|began| Ended {
            started_at: Some(began),
            finished_at: now(),
            exit_code: UNKNOWN_EXIT_CODE,
            oom_killed: false,
            error: "nobody saw how it ended".to_owned(),
        });
        Ok(written.or(unseen).map_or(Life::Created, Life::Ended))
    }

    pub(super) fn is_running(&self, record: &Record) -> Result<bool, EngineError> {
        Ok(matches!(self.life(record)?, Life::Running { .. }))
    }

    /// Sees to it that a container that has ended holds nothing any more. Removes it if that was asked for.
    pub fn settle(&self, reference: &str) -> Result<(), EngineError> {
        let id = self.records.find(reference)?.id;
        let (_lock, mut record) = self.records.lock(&id)?;
        self.settle_locked(&mut record)
    }

    /// The same for all; what another command works on is left to it. Removes what was never written down.
    pub fn settle_all(&self) -> Result<(), EngineError> {
        for record in self.records.all()?.iter().filter(|record| record.standing) {
            if let Some((_lock, mut record)) = self.records.try_lock(&record.id)? {
                self.settle_locked(&mut record)?;
            }
        }
        self.remove_orphans()
    }

    /// A container whose lock the caller has.
    pub(super) fn settle_locked(&self, record: &mut Record) -> Result<(), EngineError> {
        if !record.standing {
            return Ok(());
        }
        let life = self.life(record)?;
        if matches!(life, Life::Running { .. }) {
            return Ok(());
        }
        if let Life::Ended(ended) = life {
            record.ended = Some(ended);
            self.records.write(record)?;
        }
        self.take_down(record)?;
        if record.asked.remove && record.ended.is_some() {
            return self.forget(&record.id);
        }
        Ok(())
    }

    /// Frees all that a container holds while it stands. Whatever of it runs is killed.
    pub(super) fn take_down(&self, record: &mut Record) -> Result<(), EngineError> {
        self.runtime.delete_sandbox(&record.id)?;
        self.runtime.delete_container(&record.id)?;
        let network = self.network()?;
        network.release(&record.id)?;
        record.standing = false;
        record.launched_at = None;
        record.ip = None;
        record.ports.clear();
        // With the lock of all: from here on others may have address and ports.
        self.records.write(record)
    }
}

pub(super) fn ended(started_at: Option<i64>, exit: &Exit) -> Ended {
    Ended {
        started_at,
        finished_at: exit.finished_at.unix_nanos(),
        exit_code: exit.code,
        // Of one of its processes; its own end may have another cause.
        oom_killed: exit.oom_killed,
        error: String::new(),
    }
}
