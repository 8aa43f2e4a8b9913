//! Starting one instance of a container: image, specification, process; and what is told when it fails.
//!
//! ```text
//! image absent ──► see `pull`
//! spec refused ──► CreateContainerConfigError        (tried again after a while)
//! cannot make  ──► CreateContainerError              (tried again after a while)
//! cannot exec  ──► ended with StartError, RunContainerError, then crash back-off
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use runtime::ContainerSpec;

use super::container_spec::{self, InstanceFiles, instance_files};
use super::containers::{Beside, ContainerError};
use super::context::Context;
use super::env_from::{self, Sources};
use super::events::{Told, tell};
use super::needs::CONFIG_ERROR;
use super::record::{Instance, InstanceState, PodRecord, Termination, Waiting};
use super::steps::new_id;
use super::worker::{Worker, add};

/// The wait after a container could not be configured or made.
const RETRY: Duration = Duration::from_secs(10);
/// Logs of earlier instances that are kept.
const OLD_LOGS_MAX: u32 = 1;

/// A reason to wait, and the moment to try again.
pub(super) struct Held {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) retry_at: Option<Timestamp>,
}

impl Worker {
    /// Starts the next instance of a container, or leaves in the record why not and when to try again.
    pub(super) async fn start_container(&mut self, name: &str) {
        let Some(container) = self.record.container_spec(name).cloned() else { return };
        self.retire(name).await;
        let image = match self.image(&container).await {
            Ok(Some(image)) => image,
            Ok(None) => return self.save(),
            Err(held) => return self.hold(name, held),
        };
        let attempt = self.record.container(name).map_or(0, |c| c.restart_count);
        let instance = Instance {
            id: new_id(),
            attempt,
            image: image.name.clone(),
            image_id: image.image_id.clone(),
            stop_signal: container_spec::stop_signal(&image),
            state: InstanceState::Creating,
            stop: None,
            ready: container.readiness_probe.is_none(),
            started: container.startup_probe.is_none(),
            post_start: container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()),
        };
        let spec = container_spec::container(&self.context, &self.record, &container, &instance, &image);
        let spec = match spec {
            Ok(spec) => spec,
            Err(message) => {
                self.tell_failed(name, format!("Error: {message}"));
                let retry_at = add(Timestamp::now(), RETRY);
                return self.hold(name, Held { reason: CONFIG_ERROR, message, retry_at });
            }
        };
        for message in env_from::skipped(self.sources(), &container) {
            let told = Told::warning("InvalidEnvironmentVariableNames", message);
            tell(&self.context, &self.record, Some(name), told);
        }
        let beside =
            container_spec::beside((&self.context, &self.record), &container, &image, (attempt, &spec));
        let files = instance_files(&self.context, &self.record, name, attempt);
        if let Some(known) = self.record.containers.get_mut(name) {
            known.current = Some(instance);
        }
        self.record.initialized |= !self.record.is_init(name);
        self.save();
        let record = self.record.clone();
        let container_name = name.to_owned();
        let id = spec.id.clone();
        let started = self
            .blocking(move |context| {
                make_container((context, &record), &container_name, (&spec, &beside), &files)
            })
            .await;
        self.started(name, &id, started).await;
    }

    fn sources(&self) -> Sources<'_> {
        Sources { objects: &self.context.objects, namespace: self.record.namespace() }
    }

    async fn started(&mut self, name: &str, id: &str, started: Result<Timestamp, ContainerError>) {
        let normal = |reason, message| Told::normal(reason, message);
        match started {
            Ok(started_at) => {
                if let Some(known) = self.record.containers.get_mut(name) {
                    known.waiting = None;
                    known.retry_at = None;
                }
                self.set_state(name, InstanceState::Running { started_at });
                self.watch(name, id);
                tell(
                    &self.context,
                    &self.record,
                    Some(name),
                    normal("Created", format!("Created container {name}")),
                );
                tell(
                    &self.context,
                    &self.record,
                    Some(name),
                    normal("Started", format!("Started container {name}")),
                );
                self.accompany(name);
            }
            Err(ContainerError::Start { exit_code, message }) => {
                tell(
                    &self.context,
                    &self.record,
                    Some(name),
                    normal("Created", format!("Created container {name}")),
                );
                self.tell_failed(name, format!("Error: {message}"));
                let termination = Termination {
                    exit_code,
                    reason: "StartError".to_owned(),
                    message: Some(message.clone()),
                    started_at: None,
                    finished_at: Timestamp::now(),
                };
                self.set_state(name, InstanceState::Exited(termination));
                if let Some(known) = self.record.containers.get_mut(name) {
                    known.waiting = Some(Waiting { reason: "RunContainerError".to_owned(), message });
                }
            }
            Err(error) => {
                let message = error.to_string();
                self.tell_failed(name, format!("Error: {message}"));
                if let Some(known) = self.record.containers.get_mut(name) {
                    known.current = None;
                }
                let retry_at = add(Timestamp::now(), RETRY);
                self.hold(name, Held { reason: "CreateContainerError", message, retry_at });
                let id = id.to_owned();
                if let Err(error) = self.blocking(move |context| context.runtime.delete_container(&id)).await
                {
                    tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot remove half a container");
                }
            }
        }
        self.save();
    }

    /// Makes room for the next attempt: the ended instance becomes the last one, its root is removed.
    async fn retire(&mut self, name: &str) {
        let backoff = self.context.config.restart_backoff;
        let Some(known) = self.record.containers.get_mut(name) else { return };
        let Some(id) = known.exit().and(known.current.as_ref()).map(|i| i.id.clone()) else { return };
        known.crashes.advance(Timestamp::now(), &backoff);
        known.retire();
        known.waiting = None;
        let oldest_kept = known.restart_count.saturating_sub(OLD_LOGS_MAX);
        let log_dir = self.context.pod_log_dir(&self.record).join(name);
        let link = self.context.log_link(&self.record, name, &id);
        let removed = self
            .blocking(move |context| {
                drop(fs::remove_file(link));
                for attempt in (0..oldest_kept).rev().map(|n| log_dir.join(format!("{n}.log"))) {
                    if !remove_rotated(&attempt) {
                        break;
                    }
                }
                context.runtime.delete_container(&id)
            })
            .await;
        if let Err(error) = removed {
            // Told only: the container's id stays in `last`, and is removed again with the pod.
            tracing::warn!(pod = %self.record.full_name(), container = name, %error, "cannot remove an ended container");
        }
    }

    fn hold(&mut self, name: &str, held: Held) {
        if let Some(known) = self.record.containers.get_mut(name) {
            known.waiting = Some(Waiting { reason: held.reason.to_owned(), message: held.message });
            known.retry_at = held.retry_at;
        }
        self.save();
    }

    pub(super) fn tell_failed(&self, name: &str, message: String) {
        tell(&self.context, &self.record, Some(name), Told::warning("Failed", message));
    }
}

fn make_container(
    (context, record): (&Context, &PodRecord),
    name: &str,
    (spec, beside): (&ContainerSpec, &Beside),
    files: &InstanceFiles,
) -> Result<Timestamp, ContainerError> {
    let begun = Instant::now();
    prepare_files(files)
        .map_err(|e| ContainerError::Refused(format!("cannot make the files of container {name}: {e}")))?;
    let files_made = Instant::now();
    let started_at = context.runtime.start_container(spec, beside)?;
    tracing::debug!(
        pod = %record.full_name(),
        container = name,
        files = ?files_made.duration_since(begun),
        process = ?files_made.elapsed(),
        "container made"
    );
    let link = context.log_link(record, name, &spec.id);
    let linked = link.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(&files.log, &link));
    if let Err(error) = linked {
        tracing::warn!(link = %link.display(), %error, "cannot link a container's log");
    }
    Ok(started_at)
}

fn prepare_files(files: &InstanceFiles) -> io::Result<()> {
    for path in [&files.log, &files.termination_message] {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
    }
    fs::File::create(&files.termination_message)?;
    // The container may run as anybody.
    let everybody = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666);
    fs::set_permissions(&files.termination_message, everybody)
}

/// Removes a log and what was rotated away from it. Returns whether there was one.
fn remove_rotated(log: &std::path::Path) -> bool {
    let Some((dir, name)) = log.parent().zip(log.file_name()) else { return false };
    let name = name.to_string_lossy();
    let mut found = false;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file == name || file.strip_prefix(name.as_ref()).is_some_and(|rest| rest.starts_with(['.', '-'])) {
            found |= fs::remove_file(entry.path()).is_ok();
        }
    }
    found
}
