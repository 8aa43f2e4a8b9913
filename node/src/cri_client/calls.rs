//! What is asked of the other runtime, call by call.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use proto::cri::{self, ContainerState};
use runtime::{AttachSpec, ContainerSpec, ExecSpec, SandboxSpec};
use streams::{NodeStream, StreamEnds, dial};
use tonic::{Code, Status};

use super::{
    GROUP_ANNOTATION, ID_LABEL, Inner, NODE_LABEL, POLL_INTERVAL, TTY_ANNOTATION, absent_is_fine, refused,
    time, translate,
};
use crate::exec::{Limits, Outcome};
use crate::pods::admission::HostPort;
use crate::pods::containers::{Beside, ContainerError, MadeSandbox, POD_UID_LABEL, Seen, tell_unenforced};

/// What a container that could not be set up ends with.
const START_FAILED: i32 = runtime::EXIT_CODE_START_FAILED;

impl Inner {
    pub(super) fn selector(&self, more: &[(&str, &str)]) -> HashMap<String, String> {
        let own = [(NODE_LABEL, self.node.as_str())];
        own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    pub(super) fn known(&self, id: &str) -> Option<String> {
        self.ids.lock().expect("no holder of the ids panics").get(id).cloned()
    }

    pub(super) fn learn(&self, id: &str, theirs: &str) {
        self.ids.lock().expect("no holder of the ids panics").insert(id.to_owned(), theirs.to_owned());
    }

    pub(super) fn forget(&self, id: &str) {
        self.ids.lock().expect("no holder of the ids panics").remove(id);
    }

    pub(super) async fn sandboxes(&self, more: &[(&str, &str)]) -> Result<Vec<cri::PodSandbox>, Status> {
        let filter = cri::PodSandboxFilter { label_selector: self.selector(more), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    pub(super) async fn containers(&self, more: &[(&str, &str)]) -> Result<Vec<cri::Container>, Status> {
        let filter = cri::ContainerFilter { label_selector: self.selector(more), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(request).await?.into_inner().containers)
    }

    /// The runtime's id of a container.
    pub(super) async fn container(&self, id: &str) -> Result<Option<String>, Status> {
        if let Some(theirs) = self.known(id) {
            return Ok(Some(theirs));
        }
        let found =
            self.containers(&[(ID_LABEL, id)]).await?.into_iter().next().map(|container| container.id);
        if let Some(theirs) = &found {
            self.learn(id, theirs);
        }
        Ok(found)
    }

    pub(super) async fn existing(&self, id: &str) -> Result<String, Status> {
        self.container(id).await?.ok_or_else(|| Status::not_found(format!("there is no container {id}")))
    }

    pub(super) async fn status(&self, id: &str) -> Result<Option<cri::ContainerStatus>, Status> {
        let Some(container_id) = self.container(id).await? else { return Ok(None) };
        let request = cri::ContainerStatusRequest { container_id, verbose: false };
        match self.runtime.clone().container_status(request).await {
            Ok(status) => Ok(status.into_inner().status),
            Err(status) if status.code() == Code::NotFound => {
                self.forget(id);
                Ok(None)
            }
            Err(status) => Err(status),
        }
    }

    pub(super) async fn create_sandbox(
        &self,
        spec: &SandboxSpec,
        ports: &[HostPort],
    ) -> Result<MadeSandbox, ContainerError> {
        self.remove_others(spec).await.map_err(refused)?;
        let config = translate::sandbox(self, spec, ports)?;
        let (groups, group) = (self.groups.clone(), spec.cgroup.clone());
        let made = tokio::task::spawn_blocking(move || groups.create(&group)).await;
        tell_unenforced(&spec.id, &made.expect("making groups does not panic")?);
        self.run_sandbox(config).await.map_err(refused)
    }

    /// A pod has one sandbox: another is what a call left that nobody waited for to its end.
    async fn remove_others(&self, spec: &SandboxSpec) -> Result<(), Status> {
        let uid = spec.labels.get(POD_UID_LABEL).map(String::as_str).unwrap_or_default();
        for other in self.sandboxes(&[(POD_UID_LABEL, uid)]).await? {
            self.remove_sandbox(&other).await?;
        }
        Ok(())
    }

    async fn run_sandbox(&self, config: cri::PodSandboxConfig) -> Result<MadeSandbox, Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let pod_sandbox_id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id, verbose: false };
        let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner().status;
        let ip =
            status.and_then(|status| status.network).and_then(|network| network.ip.parse::<IpAddr>().ok());
        Ok(MadeSandbox { netns: None, ip })
    }

    pub(super) async fn delete_sandboxes(&self, id: &str) -> Result<(), Status> {
        for sandbox in self.sandboxes(&[(ID_LABEL, id)]).await? {
            self.remove_sandbox(&sandbox).await?;
        }
        Ok(())
    }

    async fn remove_sandbox(&self, sandbox: &cri::PodSandbox) -> Result<(), Status> {
        let pod_sandbox_id = sandbox.id.clone();
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        absent_is_fine(self.runtime.clone().stop_pod_sandbox(stop).await.map(drop))?;
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id };
        absent_is_fine(self.runtime.clone().remove_pod_sandbox(remove).await.map(drop))?;
        let Some(group) = sandbox.annotations.get(GROUP_ANNOTATION).cloned() else { return Ok(()) };
        let groups = self.groups.clone();
        let removed = tokio::task::spawn_blocking(move || groups.remove(&group)).await;
        if let Err(error) = removed.expect("removing groups does not panic") {
            tracing::warn!(%error, "a pod's group is left");
        }
        Ok(())
    }

    pub(super) async fn start_container(
        &self,
        spec: &ContainerSpec,
        beside: &Beside,
    ) -> Result<Timestamp, ContainerError> {
        let sandboxes = self.sandboxes(&[(ID_LABEL, &spec.sandbox)]).await.map_err(refused)?;
        let gone = || ContainerError::Gone(format!("there is no sandbox {}", spec.sandbox));
        let sandbox = sandboxes.into_iter().next().ok_or_else(gone)?;
        let pod_sandbox_id = sandbox.id.clone();
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), verbose: false };
        let status = self.runtime.clone().pod_sandbox_status(request).await.map_err(refused)?.into_inner();
        let sandbox_config = translate::sandbox_again(self, status.status.ok_or_else(gone)?);
        let target = match &spec.pid_of {
            Some(id) => Some(self.existing(id).await.map_err(refused)?),
            None => None,
        };
        let config = translate::container(self, (spec, beside), &sandbox_config, target)?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id,
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.runtime.clone().create_container(request).await.map_err(refused)?;
        let container_id = created.into_inner().container_id;
        self.learn(&spec.id, &container_id);
        let request = cri::StartContainerRequest { container_id };
        let started = self.runtime.clone().start_container(request).await;
        let status = self.status(&spec.id).await.map_err(refused)?;
        match (started, status) {
            (Err(error), Some(status)) if status.state() == ContainerState::ContainerExited => {
                Err(ContainerError::Start {
                    exit_code: if status.exit_code == 0 { START_FAILED } else { status.exit_code },
                    message: if status.message.is_empty() {
                        error.message().to_owned()
                    } else {
                        status.message
                    },
                })
            }
            (Err(error), _) => Err(refused(error)),
            (Ok(_), status) => Ok(status.and_then(|s| time(s.started_at)).unwrap_or_else(Timestamp::now)),
        }
    }

    pub(super) async fn observe(&self, id: &str) -> Result<Option<Seen>, Status> {
        Ok(self.status(id).await?.map(|status| {
            let started_at = time(status.started_at);
            match status.state() {
                ContainerState::ContainerCreated => Seen::Half,
                ContainerState::ContainerRunning => {
                    Seen::Running { started_at: started_at.unwrap_or_else(Timestamp::now) }
                }
                ContainerState::ContainerExited => Seen::Exited {
                    started_at,
                    exit_code: status.exit_code,
                    oom_killed: status.reason == "OOMKilled",
                    finished_at: time(status.finished_at).unwrap_or_else(Timestamp::now),
                },
                ContainerState::ContainerUnknown => Seen::Lost { started_at },
            }
        }))
    }

    /// Resolves when the container does not run any more.
    pub(super) async fn ended(&self, id: &str) {
        let mut happened = self.happened.subscribe();
        loop {
            match self.observe(id).await {
                // Nobody answers: what it does is not known, and it may well run.
                Ok(Some(Seen::Running { .. } | Seen::Half)) | Err(_) => {}
                Ok(_) => return,
            }
            tokio::select! {
                _ = happened.changed() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    pub(super) async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<NodeStream, ContainerError> {
        let tty = spec.terminal.is_some();
        let request = cri::ExecRequest {
            container_id: self.existing(id).await.map_err(refused)?,
            cmd: spec.args.clone(),
            tty,
            stdin: spec.stdin || tty,
            stdout: true,
            stderr: !tty,
        };
        let ends = StreamEnds { stdin: request.stdin, stdout: true, stderr: !tty, tty };
        let url = self.runtime.clone().exec(request).await.map_err(refused)?.into_inner().url;
        dial::remote_command(&url, ends).await.map_err(|error| ContainerError::Refused(error.to_string()))
    }

    pub(super) async fn attach(
        &self,
        id: &str,
        spec: AttachSpec,
    ) -> Result<(NodeStream, bool), ContainerError> {
        let container_id = self.existing(id).await.map_err(refused)?;
        let found = self.containers(&[(ID_LABEL, id)]).await.map_err(refused)?;
        let tty = found.iter().any(|container| container.annotations.contains_key(TTY_ANNOTATION));
        let AttachSpec { stdin, stdout, stderr } = spec;
        let ends = StreamEnds { stdin, stdout: stdout || tty, stderr: stderr && !tty, tty };
        let StreamEnds { stdout, stderr, .. } = ends;
        let request = cri::AttachRequest { container_id, stdin, tty, stdout, stderr };
        let url = self.runtime.clone().attach(request).await.map_err(refused)?.into_inner().url;
        let dialled = dial::remote_command(&url, ends).await;
        dialled.map(|stream| (stream, tty)).map_err(|error| ContainerError::Refused(error.to_string()))
    }

    pub(super) async fn connect_to(&self, pod_uid: &str, port: u16) -> Result<NodeStream, String> {
        let words = |status: Status| status.message().to_owned();
        let found = self.sandboxes(&[(POD_UID_LABEL, pod_uid)]).await.map_err(words)?;
        let ready = |sandbox: &cri::PodSandbox| sandbox.state() == cri::PodSandboxState::SandboxReady;
        let sandbox = found.into_iter().find(ready).ok_or("the pod has no sandbox")?;
        let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.id, port: vec![port.into()] };
        let url = self.runtime.clone().port_forward(request).await.map_err(words)?.into_inner().url;
        dial::port_forward(&url, port).await.map_err(|error| error.to_string())
    }

    pub(super) async fn exec_sync(
        &self,
        id: &str,
        args: Vec<String>,
        limits: Limits,
    ) -> Result<Outcome, ContainerError> {
        // Whole seconds on the wire; 0 would be no limit.
        let timeout = i64::try_from(limits.timeout.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX).max(1);
        let container_id = self.existing(id).await.map_err(refused)?;
        let request = cri::ExecSyncRequest { container_id, cmd: args, timeout };
        match self.runtime.clone().exec_sync(request).await {
            Ok(said) => {
                let said = said.into_inner();
                let said_all = [said.stdout, said.stderr];
                Ok(Outcome::of(said_all, said.exit_code, limits.output_bytes_max))
            }
            Err(status) if status.code() == Code::DeadlineExceeded => Ok(Outcome::late()),
            Err(status) => Err(refused(status)),
        }
    }
}
