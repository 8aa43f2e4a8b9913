//! Records as clients see them: lists with their filters, and statuses.

use std::collections::HashMap;

use proto::cri::{self, ContainerState, PodSandboxState};
use tonic::Status;

use super::records::{ContainerRecord, SandboxRecord};
use super::state::{Core, Life};

impl Core {
    /// The sandboxes that a filter lets through, the newest first.
    pub(super) fn list_sandboxes(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Status> {
        let filter = filter.unwrap_or_default();
        let mut found = Vec::new();
        for record in self.sandbox_records.all() {
            if !record.id.starts_with(&filter.id) || !matches(&record.config.labels, &filter.label_selector) {
                continue;
            }
            let state = self.sandbox_state(&record)?;
            if filter.state.as_ref().is_some_and(|wanted| wanted.state() != state) {
                continue;
            }
            found.push(cri::PodSandbox {
                id: record.id,
                metadata: record.config.metadata,
                state: state.into(),
                created_at: record.created_at,
                labels: record.config.labels,
                annotations: record.config.annotations,
                runtime_handler: record.runtime_handler,
            });
        }
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        Ok(found)
    }

    fn sandbox_state(&self, record: &SandboxRecord) -> Result<PodSandboxState, Status> {
        Ok(if self.is_ready(record)? {
            PodSandboxState::SandboxReady
        } else {
            PodSandboxState::SandboxNotready
        })
    }

    /// One sandbox.
    pub(super) fn sandbox_status(&self, record: &SandboxRecord) -> Result<cri::PodSandboxStatus, Status> {
        let security = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.namespace_options.clone());
        let ip = record.ip.filter(|_| !record.stopped).map(|ip| ip.to_string()).unwrap_or_default();
        Ok(cri::PodSandboxStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: self.sandbox_state(record)?.into(),
            created_at: record.created_at,
            network: Some(cri::PodSandboxNetworkStatus { ip, additional_ips: Vec::new() }),
            linux: Some(cri::LinuxPodSandboxStatus {
                namespaces: Some(cri::Namespace { options: Some(options.unwrap_or_default()) }),
            }),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            runtime_handler: record.runtime_handler.clone(),
        })
    }

    /// The containers that a filter lets through, the newest first.
    pub(super) fn list_containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        let filter = filter.unwrap_or_default();
        let mut found = Vec::new();
        for record in self.container_records.all() {
            let fits = record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && matches(&record.config.labels, &filter.label_selector);
            if !fits {
                continue;
            }
            let state = state(&self.life(&record)?);
            if filter.state.as_ref().is_some_and(|wanted| wanted.state() != state) {
                continue;
            }
            found.push(cri::Container {
                id: record.id,
                pod_sandbox_id: record.sandbox,
                metadata: record.config.metadata,
                image: record.config.image,
                image_ref: record.image_ref,
                state: state.into(),
                created_at: record.created_at,
                labels: record.config.labels,
                annotations: record.config.annotations,
                image_id: record.image_id,
            });
        }
        found.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(found)
    }

    /// One container.
    pub(super) fn container_status(&self, record: &ContainerRecord) -> Result<cri::ContainerStatus, Status> {
        let life = self.life(record)?;
        let (started_at, ended) = match &life {
            Life::Created => (0, None),
            Life::Running { started_at } => (*started_at, None),
            Life::Ended(ended) => (ended.started_at, Some(ended.clone())),
        };
        let sandbox = self.sandbox_records.find(&record.sandbox)?;
        let log_directory = sandbox.map(|sandbox| sandbox.config.log_directory).unwrap_or_default();
        let log_path = match record.config.log_path.as_str() {
            "" => String::new(),
            path => std::path::Path::new(&log_directory).join(path).to_string_lossy().into_owned(),
        };
        let config = record.config.clone();
        Ok(cri::ContainerStatus {
            id: record.id.clone(),
            metadata: config.metadata,
            state: state(&life).into(),
            created_at: record.created_at,
            started_at,
            finished_at: ended.as_ref().map_or(0, |ended| ended.finished_at),
            exit_code: ended.as_ref().map_or(0, |ended| ended.exit_code),
            image: config.image,
            image_ref: record.image_ref.clone(),
            reason: ended.as_ref().map(|ended| ended.reason.clone()).unwrap_or_default(),
            message: ended.map(|ended| ended.message).unwrap_or_default(),
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path,
            resources: Some(cri::ContainerResources {
                linux: config.linux.and_then(|linux| linux.resources),
                windows: None,
            }),
            image_id: record.image_id.clone(),
            user: None,
        })
    }

    /// What a change of a container means for its whole sandbox.
    pub(super) fn event(&self, happened: super::state::Happened) -> cri::ContainerEventResponse {
        let sandbox = self.sandbox_records.find(&happened.sandbox).ok().flatten();
        let status = sandbox.and_then(|record| self.sandbox_status(&record).ok());
        let all = self.container_records.all();
        let containers = all.iter().filter(|record| record.sandbox == happened.sandbox);
        cri::ContainerEventResponse {
            container_id: happened.container,
            container_event_type: happened.kind.into(),
            created_at: happened.at,
            pod_sandbox_status: status,
            containers_statuses: containers.filter_map(|record| self.container_status(record).ok()).collect(),
        }
    }
}

fn state(life: &Life) -> ContainerState {
    match life {
        Life::Created => ContainerState::ContainerCreated,
        Life::Running { .. } => ContainerState::ContainerRunning,
        Life::Ended(_) => ContainerState::ContainerExited,
    }
}

/// Whether everything that is selected is there.
pub(super) fn matches(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}
