//! What becomes of containers. Calls block, unless they wait for an end, and may be repeated after any failure.
//!
//! ```text
//! create ──► created ──start──► running ──► exited ──remove──► gone
//!                       └─ cannot run: exited, with the reason StartError
//! ```

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::cri::{self, ContainerEventType};
use tonic::Status;

use super::records::{ContainerRecord, Ended, failed};
use super::sandboxes::absent_is_fine;
use super::state::{Core, Life, answer, now};
use super::translate::{self, Around};
use crate::images::Image;

/// The longest that a container may be given to end.
const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a killed container may take to end.
const KILL_TIME_MAX: Duration = Duration::from_secs(30);

impl Core {
    /// Prepares a container; its id. That it can be run is checked now, as far as it can be.
    pub(super) fn create_container(&self, request: cri::CreateContainerRequest) -> Result<String, Status> {
        let missing = |what: &str| Status::invalid_argument(format!("{what} is missing"));
        let config = request.config.ok_or_else(|| missing("config"))?;
        let metadata = config.metadata.clone().ok_or_else(|| missing("config.metadata"))?;
        if metadata.name.is_empty() {
            return Err(missing("config.metadata.name"));
        }
        let sandbox = self.sandbox_records.get(&request.pod_sandbox_id)?;
        if !self.is_ready(&sandbox)? {
            return Err(Status::failed_precondition(format!("sandbox {} is not ready", sandbox.id)));
        }
        let same = |other: &&ContainerRecord| {
            other.sandbox == sandbox.id && other.config.metadata.as_ref() == Some(&metadata)
        };
        if let Some(other) = self.container_records.all().iter().find(same) {
            return match !other.launched && other.config == config {
                true => Ok(other.id.clone()),
                false => Err(Status::already_exists(format!(
                    "container {} is attempt {} of {} already: remove it or count the attempt up",
                    other.id, metadata.attempt, metadata.name
                ))),
            };
        }
        let asked = config.image.clone().unwrap_or_default().image;
        let (image, summary) = self
            .image(&asked)?
            .ok_or_else(|| Status::not_found(format!("there is no image {asked:?} here: pull it first")))?;
        let record = ContainerRecord {
            id: crate::pods::steps::new_id(),
            sandbox: sandbox.id.clone(),
            created_at: now(),
            config,
            image_name: image.name.clone(),
            image_id: summary.id,
            image_ref: image.image_id.clone(),
            launched: false,
            ended: None,
        };
        self.spec(&record, &image)?;
        let id = record.id.clone();
        self.container_records.put(record.clone())?;
        self.tell(ContainerEventType::ContainerCreatedEvent, &record, record.created_at);
        Ok(id)
    }

    fn spec(&self, record: &ContainerRecord, image: &Image) -> Result<runtime::ContainerSpec, Status> {
        let sandbox = self.sandbox_records.get(&record.sandbox)?;
        let around = Around {
            sandbox: &sandbox,
            etc: &self.sandbox_records.dir(&sandbox.id).join("etc"),
            image,
            dir: &self.container_records.dir(&record.id),
            cgroup_root: &self.config.cgroup_root,
        };
        let spec = translate::container(record, &around)?;
        spec.check().map_err(answer)?;
        Ok(spec)
    }

    /// Runs a prepared container. That its program cannot be executed is its end as well as the answer.
    pub(super) fn start_container(&self, id: &str) -> Result<String, Status> {
        let record = self.container_records.get(id)?;
        match self.life(&record)? {
            Life::Running { .. } => return Ok(record.id),
            Life::Ended(_) => {
                let problem = format!("container {} has ended; make another", record.id);
                return Err(Status::failed_precondition(problem));
            }
            Life::Created => {}
        }
        let gone = || Status::not_found(format!("image {} is not here any more", record.image_name));
        let (image, _) = self.image(&record.image_name)?.ok_or_else(gone)?;
        let spec = self.spec(&record, &image)?;
        if let Some(dir) = spec.log.as_ref().and_then(|log| log.path.parent()) {
            fs::create_dir_all(dir).map_err(|error| failed("create", dir, &error))?;
        }
        self.container_records.change(&record.id, |record| record.launched = true)?;
        match self.runtime.start_container(&spec) {
            Ok(started) => {
                for limit in started.unenforced {
                    tracing::debug!(id, limit = %limit.limit, reason = %limit.reason, "limit is not enforced on this host");
                }
                let at = started.started_at.unix_nanos();
                self.tell(ContainerEventType::ContainerStartedEvent, &record, at);
                Ok(record.id)
            }
            Err(runtime::Error::Start(error)) => {
                let ended = Ended {
                    started_at: 0,
                    finished_at: now(),
                    exit_code: error.exit_code(),
                    reason: "StartError".to_owned(),
                    message: error.to_string(),
                };
                self.container_records.change(&record.id, |record| record.ended = Some(ended))?;
                Err(Status::unknown(format!("cannot start container {}: {error}", record.id)))
            }
            Err(error) => {
                // Nothing ran: it may be tried again.
                self.container_records.change(&record.id, |record| record.launched = false)?;
                Err(answer(error))
            }
        }
    }

    /// Asks a container to end and sees to it that it does.
    pub(super) async fn stop_container(self: &Arc<Self>, id: &str, timeout: i64) -> Result<(), Status> {
        let Some(record) = self.container_records.find(id)? else { return Ok(()) };
        let id = record.id.clone();
        let running = self.blocking(move |core| {
            let running = matches!(core.life(&record)?, Life::Running { .. });
            core.settle(&record.id).map(|_| running)
        });
        if !running.await? {
            return Ok(());
        }
        let grace = Duration::from_secs(timeout.max(0) as u64).min(GRACE_MAX);
        if !grace.is_zero() {
            let asked = id.clone();
            let signalled = self.blocking(move |core| {
                let signal =
                    core.runtime.observe(&asked).map_err(answer)?.and_then(|seen| seen.spec.stop_signal);
                core.signal(&asked, signal.unwrap_or(Signal::SIGTERM as i32))
            });
            signalled.await?;
            if self.wait(&id, Some(Instant::now() + grace)).await? {
                return Ok(());
            }
        }
        let asked = id.clone();
        self.blocking(move |core| core.signal(&asked, Signal::SIGKILL as i32)).await?;
        match self.wait(&id, Some(Instant::now() + KILL_TIME_MAX)).await? {
            true => Ok(()),
            false => Err(Status::deadline_exceeded(format!("container {id} was killed and does not end"))),
        }
    }

    fn signal(&self, id: &str, signal: i32) -> Result<(), Status> {
        match self.runtime.signal(id, signal) {
            // It ended by itself in the meantime.
            Err(runtime::Error::NotRunning { .. } | runtime::Error::NotFound { .. }) => Ok(()),
            other => other.map_err(answer),
        }
    }

    /// Removes a container, running or not. Its log stays.
    pub(super) fn remove_container(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.container_records.find(id)? else { return Ok(()) };
        self.runtime.delete_container(&record.id).or_else(absent_is_fine)?;
        self.container_records.remove(&record.id)?;
        self.tell(ContainerEventType::ContainerDeletedEvent, &record, now());
        Ok(())
    }

    /// Changes the limits of a container; what is not said stays.
    pub(super) fn update_container(
        &self,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        let record = self.container_records.get(&request.container_id)?;
        let asked = request.linux.unwrap_or_default();
        let life = self.life(&record)?;
        if let Life::Ended(_) = life {
            return Err(Status::failed_precondition(format!("container {} has ended", record.id)));
        }
        let limits = translate::limits(&asked, Path::new("unused").into())?;
        if matches!(life, Life::Running { .. }) {
            for limit in self.runtime.update(&record.id, limits).map_err(answer)? {
                tracing::debug!(id = %record.id, limit = %limit.limit, reason = %limit.reason, "limit is not enforced on this host");
            }
        }
        self.container_records.change(&record.id, |record| {
            let linux = record.config.linux.get_or_insert_default();
            merge(linux.resources.get_or_insert_default(), asked);
        })
    }

    /// Opens a container's log anew.
    pub(super) fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let record = self.container_records.get(id)?;
        match self.life(&record)? {
            Life::Running { .. } => self.runtime.reopen_log(&record.id).map_err(answer),
            _ => Err(Status::failed_precondition(format!("container {} does not run", record.id))),
        }
    }

    /// The id of a container that runs.
    pub(super) fn running(&self, id: &str) -> Result<String, Status> {
        let record = self.container_records.get(id)?;
        match self.life(&record)? {
            Life::Running { .. } => Ok(record.id),
            _ => Err(Status::failed_precondition(format!("container {} does not run", record.id))),
        }
    }
}

/// Takes over what is said.
fn merge(into: &mut cri::LinuxContainerResources, said: cri::LinuxContainerResources) {
    let numbers = [
        (&mut into.cpu_period, said.cpu_period),
        (&mut into.cpu_quota, said.cpu_quota),
        (&mut into.cpu_shares, said.cpu_shares),
        (&mut into.memory_limit_in_bytes, said.memory_limit_in_bytes),
        (&mut into.memory_swap_limit_in_bytes, said.memory_swap_limit_in_bytes),
        (&mut into.oom_score_adj, said.oom_score_adj),
    ];
    for (own, said) in numbers.into_iter().filter(|(_, said)| *said != 0) {
        *own = said;
    }
    for (own, said) in [(&mut into.cpuset_cpus, said.cpuset_cpus), (&mut into.cpuset_mems, said.cpuset_mems)]
    {
        if !said.is_empty() {
            *own = said;
        }
    }
    if !said.hugepage_limits.is_empty() {
        into.hugepage_limits = said.hugepage_limits;
    }
}
