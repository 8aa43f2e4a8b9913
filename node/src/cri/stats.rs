//! What containers and sandboxes use, out of their groups.

use proto::cri;
use tonic::Status;

use super::images::usage;
use super::records::{ContainerRecord, SandboxRecord};
use super::state::{Core, answer, now};
use super::views::matches;

impl Core {
    /// One container. One that does not run uses nothing but its layer.
    pub(super) fn container_stats(&self, record: &ContainerRecord) -> Result<cri::ContainerStats, Status> {
        let used = match self.runtime.stats(&record.id) {
            Ok(used) => used,
            Err(runtime::Error::NotFound { .. }) => runtime::Stats::default(),
            Err(error) => return Err(answer(error)),
        };
        let config = record.config.clone();
        Ok(cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: record.id.clone(),
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            cpu: Some(cpu(used.cpu_usage_ns)),
            memory: Some(memory(used.memory_usage_bytes, used.memory_working_set_bytes)),
            writable_layer: Some(usage(&self.container_records.dir(&record.id).join("root/upper"))),
            swap: None,
        })
    }

    /// The containers that a filter lets through.
    pub(super) fn list_container_stats(
        &self,
        filter: Option<cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, Status> {
        let filter = filter.unwrap_or_default();
        let fits = |record: &&ContainerRecord| {
            record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && matches(&record.config.labels, &filter.label_selector)
        };
        self.container_records.all().iter().filter(fits).map(|record| self.container_stats(record)).collect()
    }

    /// One sandbox: the sum of its containers.
    pub(super) fn sandbox_stats(&self, record: &SandboxRecord) -> Result<cri::PodSandboxStats, Status> {
        let all = self.container_records.all();
        let own = all.iter().filter(|container| container.sandbox == record.id);
        let containers: Vec<cri::ContainerStats> =
            own.map(|container| self.container_stats(container)).collect::<Result<_, _>>()?;
        let sum = |pick: &dyn Fn(&cri::ContainerStats) -> Option<u64>| {
            containers.iter().filter_map(pick).reduce(|a, b| a.saturating_add(b))
        };
        let config = record.config.clone();
        let cpu_ns = sum(&|c| c.cpu.as_ref()?.usage_core_nano_seconds.as_ref().map(|v| v.value));
        let bytes = sum(&|c| c.memory.as_ref()?.usage_bytes.as_ref().map(|v| v.value));
        let working_set = sum(&|c| c.memory.as_ref()?.working_set_bytes.as_ref().map(|v| v.value));
        Ok(cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: record.id.clone(),
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cpu(cpu_ns)),
                memory: Some(memory(bytes, working_set)),
                network: None,
                process: None,
                containers,
            }),
            windows: None,
        })
    }

    /// The sandboxes that a filter lets through.
    pub(super) fn list_sandbox_stats(
        &self,
        filter: Option<cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        let fits = |record: &&SandboxRecord| {
            record.id.starts_with(&filter.id) && matches(&record.config.labels, &filter.label_selector)
        };
        self.sandbox_records.all().iter().filter(fits).map(|record| self.sandbox_stats(record)).collect()
    }
}

fn number(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

fn cpu(usage_ns: Option<u64>) -> cri::CpuUsage {
    cri::CpuUsage { timestamp: now(), usage_core_nano_seconds: number(usage_ns), usage_nano_cores: None }
}

fn memory(usage: Option<u64>, working_set: Option<u64>) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: now(),
        working_set_bytes: number(working_set),
        usage_bytes: number(usage),
        ..Default::default()
    }
}
