//! Starting a container: its namespaces, address and ports, its files, its process. Whatever fails or dies on the way,
//! the container is left standing in its record until all of it is taken down again.

use std::os::fd::OwnedFd;

use runtime::{AttachSpec, Attachment};

use super::options::{BadOption, NetworkMode, PidSource};
use super::record::{Ended, Record, now};
use super::settle::Life;
use super::{Engine, EngineError};

/// How the runtime names the limit of swap.
const SWAP_LIMIT: &str = "memory.swap";
/// What a container exits with that the engine could not start.
const EXIT_CODE_NOT_STARTED: i32 = 128;

/// A container that runs now.
#[derive(Debug)]
pub struct Started {
    /// Its id.
    pub id: String,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Its input and output from the first byte on, and what becomes readable at its end; if it was asked for.
    pub attached: Option<(Attachment, OwnedFd)>,
}

impl Engine {
    /// Starts a container that does not run. With `attach` its output waits until the caller has it.
    pub fn start(&self, reference: &str, attach: Option<AttachSpec>) -> Result<Started, EngineError> {
        let id = self.records.find(reference)?.id;
        let (_lock, mut record) = self.records.lock(&id)?;
        self.settle_locked(&mut record)?;
        if let Life::Running { .. } = self.life(&record)? {
            return Ok(Started { attached: self.attach_to(&id, attach)?, id, warnings: Vec::new() });
        }
        match self.stand_up(&mut record, attach.is_some()) {
            Ok(warnings) => {
                let attached = self.attach_to(&id, attach);
                Ok(Started { attached: attached?, id, warnings })
            }
            Err(error) => {
                let exit_code = match &error {
                    EngineError::Start { exit_code, .. } => *exit_code,
                    _ => EXIT_CODE_NOT_STARTED,
                };
                record.ended = Some(Ended {
                    started_at: None,
                    finished_at: now(),
                    exit_code,
                    oom_killed: false,
                    error: error.to_string(),
                });
                if let Err(left) = self.take_down(&mut record) {
                    tracing::warn!(%id, error = %left, "not all of a failed start is taken down; removing it does that");
                }
                Err(error)
            }
        }
    }

    fn attach_to(
        &self,
        id: &str,
        attach: Option<AttachSpec>,
    ) -> Result<Option<(Attachment, OwnedFd)>, EngineError> {
        let Some(spec) = attach else { return Ok(None) };
        // First the watch: with the attachment its output flows, and it may end.
        let watch = self.runtime.exit_watch(id)?;
        Ok(Some((self.runtime.attach(id, spec)?, watch)))
    }

    /// Attaches to a container that runs.
    pub fn attach(&self, reference: &str, spec: AttachSpec) -> Result<Started, EngineError> {
        let id = self.running(reference)?;
        Ok(Started { attached: self.attach_to(&id, Some(spec))?, id, warnings: Vec::new() })
    }

    /// The id of a container that runs.
    pub fn running(&self, reference: &str) -> Result<String, EngineError> {
        let record = self.records.find(reference)?;
        match self.is_running(&record)? {
            true => Ok(record.id),
            false => Err(EngineError::NotRunning(reference.to_owned())),
        }
    }

    fn stand_up(&self, record: &mut Record, attach: bool) -> Result<Vec<String>, EngineError> {
        self.check_others(record)?;
        let image = self.images.get(&record.image.reference)?;
        let image = image.ok_or_else(|| EngineError::NoSuchImage(record.asked.image.clone()))?;
        record.standing = true;
        record.launched_at = None;
        record.ended = None;
        self.records.write(record)?;
        let sandbox = self.runtime.create_sandbox(&self.sandbox_spec(record))?;
        if record.asked.network == NetworkMode::Bridge {
            let network = self.network()?;
            record.ports = network.ports(record)?;
            let ip = network.reserve(&record.id)?;
            record.ip = Some(ip);
            self.records.write(record)?;
            let missing = || EngineError::Network("the sandbox has no network namespace".to_owned());
            network.connect(record, ip, &sandbox.netns.ok_or_else(missing)?)?;
        }
        self.write_etc(record)?;
        self.make_volumes(record, &image)?;
        let spec = self.container_spec(record, &image, attach)?;
        record.launched_at = Some(now());
        self.records.write(record)?;
        let started = self.runtime.start_container(&spec).map_err(refused)?;
        self.tell_linked(record)?;
        let unenforced = started.unenforced.iter().filter(|limit| limit.limit != "oom_score_adj");
        Ok(unenforced
            .map(|limit| match limit.limit.as_str() {
                SWAP_LIMIT => {
                    "Your kernel does not support swap limit capabilities or the cgroup is not mounted. \
                               Memory limited without swap."
                        .to_owned()
                }
                other => format!("{other} is not in force: {}", limit.reason),
            })
            .collect())
    }

    /// Refuses to start without the containers that this one needs.
    fn check_others(&self, record: &Record) -> Result<(), EngineError> {
        if let NetworkMode::Container(other) = &record.asked.network {
            self.joinable("network", &self.other(other)?)?;
        }
        if let PidSource::Container(other) = &record.asked.pid {
            self.joinable("PID namespace", &self.other(other)?)?;
        }
        record.asked.links.iter().try_for_each(|link| self.linkable(&self.other(&link.container)?))
    }

    fn other(&self, id: &str) -> Result<Record, EngineError> {
        let gone =
            || BadOption::Refused(format!("container {id}, which this one needs, is not there any more"));
        Ok(self.records.read(id)?.ok_or_else(gone)?)
    }
}

fn refused(error: runtime::Error) -> EngineError {
    match error {
        runtime::Error::Start(error) => {
            EngineError::Start { exit_code: error.exit_code(), message: error.to_string() }
        }
        other => other.into(),
    }
}
