//! The worker's effects: sandbox, stops, removal. Starting a container is in `start`.
//!
//! Each step writes down what it is about to make before it makes it, may be repeated, and on failure leaves
//! in the record when it is to be tried again.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use runtime::SandboxSpec;

use super::admission::HostPort;
use super::bandwidth::Bandwidth;
use super::container_spec;
use super::containers::ContainerError;
use super::context::Context;
use super::events::{Told, tell};
use super::needs::TOKEN_PATIENCE;
use super::plan::{CRASH_LOOP, Step};
use super::record::{End, Failure, InstanceState, PodRecord, SandboxRecord, Stop, Waiting};
use super::worker::{Worker, add};
use super::{admission, backoff, files, volumes};
use crate::hooks::HookKind;
use crate::network::{NetworkError, Wanted};
use crate::user_ids::UserIdsError;

/// The wait after a sandbox or its volumes could not be made.
const SANDBOX_RETRY: Duration = Duration::from_secs(2);
/// The wait for the leader to name the node's pod address range.
const NETWORK_RETRY: Duration = Duration::from_millis(50);

/// Why a step could not be done. The worker holds and asks again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Runtime(#[from] ContainerError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    UserIds(#[from] UserIdsError),
    #[error("cannot remove the files of the pod: {0}")]
    Files(#[from] io::Error),
}

/// Why a sandbox could not be made.
enum SandboxFailure {
    Volume(volumes::VolumeError),
    Network(NetworkError),
    UserIds(UserIdsError),
    Runtime(ContainerError),
    Files(io::Error),
    Name(String),
}

impl Worker {
    /// Carries one step out.
    pub(super) async fn perform(&mut self, step: Step) -> Result<(), StepError> {
        match step {
            Step::CreateSandbox => self.create_sandbox().await,
            Step::DeleteSandbox => self.delete_sandbox().await?,
            Step::StartContainer { name } => self.start_container(&name).await,
            Step::NoteBackoff { name } => self.note_backoff(&name),
            Step::StopContainer { name, grace_seconds } => {
                let message = format!("Stopping container {name}");
                self.stop_container(&name, grace_seconds, message).await?;
            }
            Step::FailPod => self.fail_pod(),
            Step::EndHook { name } => self.end_hook(&name).await?,
            Step::KillContainer { name } => self.kill_container(&name).await?,
            Step::FreeVolumes => self.free_volumes().await?,
            Step::Release => self.release().await?,
            Step::Finish => self.finish()?,
        }
        Ok(())
    }

    async fn create_sandbox(&mut self) {
        let id = new_id();
        self.record.sandbox = Some(SandboxRecord { id: id.clone(), ready: false, ip: None, netns: None });
        self.record.sandbox_retry_at = None;
        self.await_claims().await;
        let record = self.record.clone();
        let made = match self.tokens(TOKEN_PATIENCE).await {
            Ok(tokens) => self.blocking(move |context| make_sandbox(context, record, &tokens)).await,
            Err(error) => Err(SandboxFailure::Volume(error)),
        };
        match made {
            Ok(sandbox) => {
                self.record.sandbox = Some(sandbox);
                self.record.sandbox_attempts += 1;
                self.volumes_made();
            }
            Err(failure) => {
                let undone = self.blocking(move |context| context.runtime.delete_sandbox(&id)).await;
                if let Err(error) = undone {
                    // The id stays in the record: the next plan removes it before making another.
                    tracing::warn!(pod = %self.record.full_name(), %error, "cannot remove half a sandbox");
                } else {
                    self.record.sandbox = None;
                }
                self.sandbox_failed(failure);
            }
        }
        self.save();
    }

    fn sandbox_failed(&mut self, failure: SandboxFailure) {
        let (reason, message, wait) = match failure {
            SandboxFailure::Network(NetworkError::NotReady | NetworkError::PoliciesUnknown) => {
                self.record.sandbox_retry_at = add(Timestamp::now(), NETWORK_RETRY);
                return;
            }
            SandboxFailure::Volume(error) => ("FailedMount", error.to_string(), SANDBOX_RETRY),
            SandboxFailure::Network(error) => {
                ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"), SANDBOX_RETRY)
            }
            SandboxFailure::UserIds(error) => {
                ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"), SANDBOX_RETRY)
            }
            SandboxFailure::Name(problem) => {
                ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {problem}"), SANDBOX_RETRY)
            }
            SandboxFailure::Runtime(error) => {
                ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"), SANDBOX_RETRY)
            }
            SandboxFailure::Files(error) => {
                let message = format!("Failed to create pod sandbox: cannot write the pod's files: {error}");
                ("FailedCreatePodSandBox", message, SANDBOX_RETRY)
            }
        };
        tracing::warn!(pod = %self.record.full_name(), %message, "no sandbox");
        tell(&self.context, &self.record, None, Told::warning(reason, message));
        self.record.sandbox_retry_at = add(Timestamp::now(), wait);
    }

    async fn delete_sandbox(&mut self) -> Result<(), StepError> {
        let again = !self.record.terminating() && !self.record.done();
        if again && self.record.sandbox_attempts > 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            tell(&self.context, &self.record, None, Told::normal("SandboxChanged", message));
        }
        let record = self.record.clone();
        self.blocking(move |context| remove_sandbox(context, &record)).await?;
        self.record.sandbox = None;
        self.record.initialized &= !again;
        if again {
            // Init containers ran for the old sandbox; the new one needs them again.
            let names: Vec<String> = self.record.init_containers().iter().map(|c| c.name.clone()).collect();
            for name in names {
                if let Some(container) = self.record.containers.get_mut(&name) {
                    container.retire();
                }
            }
        }
        self.save();
        Ok(())
    }

    fn note_backoff(&mut self, name: &str) {
        let full_name = self.record.full_name();
        let Some(container) = self.record.containers.get_mut(name) else { return };
        let delay = backoff::go_duration(container.crashes.delay());
        container.waiting = Some(Waiting {
            reason: CRASH_LOOP.to_owned(),
            message: format!("back-off {delay} restarting failed container={name} pod={full_name}"),
        });
        let message = format!("Back-off restarting failed container {name} in pod {full_name}");
        tell(&self.context, &self.record, Some(name), Told::warning("BackOff", message));
        self.save();
    }

    /// KIA: `activeDeadlineSeconds`. The record says it first; the stops follow from it.
    fn fail_pod(&mut self) {
        let (reason, message) =
            ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");
        self.record.failure = Some(Failure {
            reason: reason.to_owned(),
            message: message.to_owned(),
            at: Timestamp::now(),
            ..Failure::default()
        });
        self.probes.stop_all();
        self.save();
        tell(&self.context, &self.record, None, Told::normal(reason, message));
    }

    /// The node ends the pod. One that ends already, or has ended, keeps its own reason.
    pub(super) fn end_pod(&mut self, end: End) {
        if self.record.terminating() || self.record.done() {
            return;
        }
        self.record.failure = Some(end.failure);
        self.probes.stop_all();
        self.stop_pulls();
        self.save();
        if let Some((kind, reason, message)) = end.event {
            tell(&self.context, &self.record, None, Told { kind, reason: &reason, message });
        }
    }

    /// Asks a container to end; `message` is what its Killing event says.
    pub(super) async fn stop_container(
        &mut self,
        name: &str,
        grace_seconds: i64,
        message: String,
    ) -> Result<(), StepError> {
        self.probes.stop(name);
        let now = Timestamp::now();
        let kill = grace_seconds <= 0;
        let grace = Duration::from_secs(grace_seconds.max(0) as u64);
        // KIA-HOOK-021: without grace there is no hook.
        let hook = !kill && HookKind::PreStop.handler(&self.record, name).is_some();
        let Some(instance) = self.record.containers.get_mut(name).and_then(|c| c.current.as_mut()) else {
            return Ok(());
        };
        let pre_stop = hook && matches!(instance.state, InstanceState::Running { .. });
        let deadline = add(now, grace).unwrap_or(Timestamp::MAX);
        instance.stop = Some(Stop { deadline, pre_stop, killed: kill });
        let (id, signal) =
            (instance.id.clone(), if kill { Signal::SIGKILL as i32 } else { instance.stop_signal });
        self.save();
        tell(&self.context, &self.record, Some(name), Told::normal("Killing", message));
        if pre_stop {
            self.hooks.start(&self.record, name, HookKind::PreStop);
            return Ok(());
        }
        self.hooks.stop(name);
        self.signal(name, &id, signal).await
    }

    /// Sends again what an agent before this one may have written down and not sent: a stop is recorded before
    /// its signal, so a record alone does not say that the container was ever asked. Hooks likewise begin again.
    /// Deadlines stay.
    pub(super) async fn resend_stops(&mut self) {
        let live = self.record.containers.iter().filter(|(_, c)| c.is_live());
        let asked: Vec<(String, String, Stop, i32)> = live
            .filter_map(|(name, c)| {
                let instance = c.current.as_ref()?;
                Some((name.clone(), instance.id.clone(), instance.stop.clone()?, instance.stop_signal))
            })
            .collect();
        for (name, id, stop, stop_signal) in asked {
            if stop.pre_stop && !stop.killed {
                self.hooks.start(&self.record, &name, HookKind::PreStop);
                continue;
            }
            let signal = if stop.killed { Signal::SIGKILL as i32 } else { stop_signal };
            if let Err(error) = self.signal(&name, &id, signal).await {
                tracing::warn!(pod = %self.record.full_name(), container = %name, %error, "cannot repeat a stop");
            }
        }
    }

    async fn kill_container(&mut self, name: &str) -> Result<(), StepError> {
        self.hooks.stop(name);
        let Some(instance) = self.record.containers.get_mut(name).and_then(|c| c.current.as_mut()) else {
            return Ok(());
        };
        let deadline = instance.stop.as_ref().map_or_else(Timestamp::now, |s| s.deadline);
        instance.stop = Some(Stop { deadline, pre_stop: false, killed: true });
        let id = instance.id.clone();
        self.signal(name, &id, Signal::SIGKILL as i32).await
    }

    pub(super) async fn signal(&mut self, name: &str, id: &str, signal: i32) -> Result<(), StepError> {
        let target = id.to_owned();
        match self.blocking(move |context| context.runtime.signal(&target, signal)).await {
            // It ended by itself in the meantime: see how.
            Err(ContainerError::Gone(_)) => {
                self.observe(name, id).await;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    async fn free_volumes(&mut self) -> Result<(), StepError> {
        let dir = self.context.pod_dir(self.record.uid()).join("volumes");
        let freed = self.blocking(move |_| volumes::release(&dir).and_then(|()| remove_dir(&dir))).await;
        freed?;
        self.record.volumes_freed = true;
        self.save();
        Ok(())
    }

    async fn release(&mut self) -> Result<(), StepError> {
        let record = self.record.clone();
        self.blocking(move |context| release_files(context, &record)).await?;
        self.record.released = true;
        self.save();
        Ok(())
    }

    /// Removes the last file, then tells. What will be told is kept first: an agent that dies in between is followed by one
    /// that tells it. The other way round something would be left after it was told.
    fn finish(&mut self) -> io::Result<()> {
        let status = serde_json::to_vec(&self.status()).expect("a status has string keys only");
        // A static pod begins again under the same uid, and its end is nobody's news.
        if !admission::is_static(&self.record.pod) {
            // A full disk must not keep the pod from going.
            if let Err(error) = self.context.outbox.keep_end(&self.key(), &status) {
                tracing::warn!(pod = %self.record.full_name(), %error, "the pod's last status is kept in memory only");
            }
        }
        remove_dir(&self.context.pod_dir(self.record.uid()))?;
        // Before it is told: whoever comes in its place must not find its ports taken.
        self.context.roster.set_over(self.record.uid(), true);
        self.context.outbox.pod_terminated(self.key(), status.into());
        Ok(())
    }
}

/// 64 hex digits, as every container tool names containers.
pub(crate) fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

fn make_sandbox(
    context: &Context,
    mut record: PodRecord,
    tokens: &volumes::Tokens,
) -> Result<SandboxRecord, SandboxFailure> {
    let uid = record.uid().to_owned();
    let dir = context.pod_dir(&uid);
    let begun = Instant::now();
    if let Some(problem) = files::hostname_problem(&record, &context.config) {
        return Err(SandboxFailure::Name(problem));
    }
    fs::create_dir_all(&dir).map_err(SandboxFailure::Files)?;
    let host_network = record.host_network();
    let own_network = !context.runtime.makes_network();
    let ip = match !host_network && own_network {
        true => context.network.reserve(&uid).map_err(SandboxFailure::Network)?,
        false => None,
    };
    let own_users = record.spec().host_users == Some(false);
    let users = own_users.then(|| context.user_ids.reserve(&uid)).transpose();
    let users = users.map_err(SandboxFailure::UserIds)?;
    let mut sandbox = record.sandbox.clone().expect("the caller wrote the id down");
    sandbox.ip = ip;
    record.sandbox = Some(sandbox.clone());
    super::checkpoint::save(&dir, &record).map_err(SandboxFailure::Files)?;
    let around = volumes::Around::new(context, &record, tokens);
    volumes::prepare(around, &dir.join("volumes")).map_err(SandboxFailure::Volume)?;
    files::write_all(&record, ip, &context.config, &dir.join("etc")).map_err(SandboxFailure::Files)?;
    let spec = SandboxSpec { users, ..container_spec::sandbox(context, &record, &sandbox.id) };
    let files_made = Instant::now();
    let ports = admission::host_ports(record.spec());
    let made = context.runtime.create_sandbox(&spec, &ports).map_err(SandboxFailure::Runtime)?;
    sandbox.netns = made.netns;
    let namespaces_made = Instant::now();
    // Before it has a link, or, where somebody else chooses its address, any program.
    let admit = |ip| context.policies.admit(&record.pod, ip).map_err(SandboxFailure::Network);
    ip.map_or(Ok(()), admit)?;
    let netns = sandbox.netns.as_deref().filter(|_| !host_network && own_network);
    let given = match netns {
        Some(netns) => Some(connect(context, &record, &ports, netns).map_err(SandboxFailure::Network)?),
        None => made.ip.filter(|_| !host_network),
    };
    if let Some(given) = given.filter(|given| ip != Some(*given)) {
        admit(given)?;
        sandbox.ip = Some(given);
        files::write_all(&record, Some(given), &context.config, &dir.join("etc"))
            .map_err(SandboxFailure::Files)?;
    }
    tracing::debug!(
        pod = %record.full_name(),
        files = ?files_made.duration_since(begun),
        namespaces = ?namespaces_made.duration_since(files_made),
        network = ?namespaces_made.elapsed(),
        "sandbox made"
    );
    sandbox.ready = true;
    Ok(sandbox)
}

/// Connects a pod, and the ports of the host that it wants.
fn connect(
    context: &Context,
    record: &PodRecord,
    ports: &[HostPort],
    netns: &Path,
) -> Result<IpAddr, NetworkError> {
    let bandwidth = Bandwidth::of(&record.pod).map_err(NetworkError::Bandwidth)?;
    let wanted =
        Wanted { uid: record.uid(), namespace: record.namespace(), name: record.name(), ports, bandwidth };
    let ip = context.network.attach(&wanted, netns)?;
    context.network.publish(record.uid(), ip, ports)?;
    Ok(ip)
}

fn remove_sandbox(context: &Context, record: &PodRecord) -> Result<(), StepError> {
    for container in record.containers.values() {
        let ids = container.current.iter().map(|i| &i.id).chain(container.last.iter().map(|e| &e.id));
        for id in ids {
            context.runtime.delete_container(id)?;
        }
    }
    // While there is something to disconnect: plugins take down what is inside, too.
    context.network.release(record.uid())?;
    context.policies.forget(record.uid());
    if let Some(sandbox) = &record.sandbox {
        context.runtime.delete_sandbox(&sandbox.id)?;
    }
    remove_dir(&context.pod_dir(record.uid()).join("roots"))?;
    Ok(())
}

fn release_files(context: &Context, record: &PodRecord) -> Result<(), StepError> {
    let dir = context.pod_dir(record.uid());
    // A pod whose sandbox could never be made may have an address all the same.
    context.policies.forget(record.uid());
    context.network.release(record.uid())?;
    context.user_ids.release(record.uid())?;
    volumes::release(&dir.join("volumes"))?;
    for part in ["volumes", "etc", "containers", "roots"] {
        remove_dir(&dir.join(part))?;
    }
    Ok(remove_logs(context, record)?)
}

fn remove_logs(context: &Context, record: &PodRecord) -> io::Result<()> {
    let links = context.config.log_dir().join("containers");
    let prefix = format!("{}_{}_", record.name(), record.namespace());
    let logs = context.pod_log_dir(record);
    for entry in fs::read_dir(&links).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(&prefix);
        if ours && fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&logs)) {
            fs::remove_file(entry.path())?;
        }
    }
    remove_dir(&logs)
}

/// Removes a directory; one that is not there is no error.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
