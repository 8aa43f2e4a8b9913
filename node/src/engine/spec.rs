//! A record as the runtime's specifications.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::{
    CapabilitiesSpec, CgroupSpec, ContainerSpec, LogSpec, Mount, NamespaceMode, PidMode, ProcessSpec,
    RootfsSpec, SandboxSpec, UserSpec,
};

use super::hosts::{ETC_FILES, hostname};
use super::options::{CPU_PERIOD_US, CreateOptions, Limits, NetworkMode, PidSource};
use super::record::Record;
use super::volumes::ImageVolume;
use super::{Engine, EngineError};
use crate::images::Image;
use crate::pods::env::last_wins;

/// What a terminal is taken for.
const TERM: &str = "TERM=xterm";

impl Engine {
    /// The namespaces of a container. They are held apart from it, in a group of their own, so that its group holds
    /// nothing else.
    pub(super) fn sandbox_spec(&self, record: &Record) -> SandboxSpec {
        let asked = &record.asked;
        let group = PathBuf::from(format!("{}-sandboxes", self.config.cgroup_parent)).join(&record.id);
        SandboxSpec {
            id: record.id.clone(),
            hostname: self.hostname_of(record),
            network: match asked.network {
                NetworkMode::Host => NamespaceMode::Host,
                _ => NamespaceMode::Own,
            },
            network_of: match &asked.network {
                NetworkMode::Container(other) => Some(other.clone()),
                _ => None,
            },
            ipc: if asked.host_ipc { NamespaceMode::Host } else { NamespaceMode::Own },
            pid: match asked.pid {
                PidSource::Host => PidMode::Host,
                _ => PidMode::Container,
            },
            users: if asked.host_users || asked.privileged { None } else { self.config.users() },
            cgroup: CgroupSpec { path: group, ..CgroupSpec::default() },
            ..SandboxSpec::default()
        }
    }

    /// Who joins a network has the name that is known there.
    fn hostname_of(&self, record: &Record) -> String {
        match &record.asked.network {
            NetworkMode::Container(other) => {
                self.records.read(other).ok().flatten().map(|other| hostname(&other)).unwrap_or_default()
            }
            _ => hostname(record),
        }
    }

    /// The container itself. Makes the directories of the host that it is to have and that are not there.
    pub(super) fn container_spec(
        &self,
        record: &Record,
        image: &Image,
        await_attach: bool,
    ) -> Result<ContainerSpec, EngineError> {
        let asked = &record.asked;
        let dir = self.records.dir(&record.id);
        let root = dir.join("root");
        let group = PathBuf::from(&self.config.cgroup_parent).join(&record.id);
        let mut on_exit = self.config.settle_command.clone();
        if !on_exit.is_empty() {
            on_exit.push(record.id.clone());
        }
        let spec = ContainerSpec {
            id: record.id.clone(),
            sandbox: record.id.clone(),
            pid_of: match &asked.pid {
                PidSource::Container(other) => Some(other.clone()),
                _ => None,
            },
            rootfs: RootfsSpec {
                lower_dirs: image.layers.iter().rev().cloned().collect(),
                upper: root.join("upper"),
                work: root.join("work"),
                merged: root.join("merged"),
                read_only: asked.read_only,
                volatile: true,
                keep_upper: true,
            },
            process: process(record, image, await_attach)?,
            mounts: mounts(asked, self.image_volumes(record), &self.etc_dir(record))?,
            masked_paths: runtime::default_masked_paths(),
            readonly_paths: runtime::default_readonly_paths(),
            cgroup: cgroup(&asked.limits, group),
            log: Some(LogSpec { file_bytes_max: u64::MAX, ..LogSpec::new(dir.join("log")) }),
            stop_signal: Some(crate::pods::container_spec::stop_signal(image)),
            privileged: asked.privileged,
            on_exit,
            ..ContainerSpec::default()
        };
        spec.check()?;
        Ok(spec)
    }
}

fn process(record: &Record, image: &Image, await_attach: bool) -> Result<ProcessSpec, EngineError> {
    let asked = &record.asked;
    let mut env = vec![format!("PATH={}", runtime::PATH_DEFAULT), format!("HOSTNAME={}", hostname(record))];
    env.extend(asked.terminal.then(|| TERM.to_owned()));
    env.extend(image.config.env.iter().cloned());
    env.extend(asked.env.iter().cloned());
    let pick = |own: &String, of_image: &String| if own.is_empty() { of_image.clone() } else { own.clone() };
    Ok(ProcessSpec {
        args: record.image.args.clone(),
        env: last_wins(env),
        cwd: pick(&asked.working_dir, &image.config.working_dir),
        user: UserSpec::parse(&pick(&asked.user, &image.config.user)),
        capabilities: CapabilitiesSpec { add: asked.cap_add.clone(), drop: asked.cap_drop.clone() },
        seccomp: asked.seccomp.clone(),
        no_new_privileges: asked.no_new_privileges,
        terminal: asked.terminal,
        stdin: asked.interactive,
        stdin_once: asked.interactive && await_attach,
        await_attach,
        ..ProcessSpec::default()
    })
}

fn mounts(asked: &CreateOptions, of_image: Vec<ImageVolume>, etc: &Path) -> Result<Vec<Mount>, EngineError> {
    let of_image = of_image.into_iter();
    let mut mounts: Vec<Mount> =
        of_image.map(|ImageVolume { source, target }| Mount { source, target, ..Mount::default() }).collect();
    for volume in &asked.volumes {
        if !volume.source.exists() {
            fs::create_dir_all(&volume.source).map_err(EngineError::io("create", &volume.source))?;
        }
        mounts.push(Mount {
            source: volume.source.clone(),
            target: volume.target.clone(),
            read_only: volume.read_only,
            ..Mount::default()
        });
    }
    mounts.sort_by_key(|mount| mount.target.components().count());
    let own: Vec<PathBuf> = mounts.iter().map(|mount| mount.target.clone()).collect();
    let covers =
        |own: &PathBuf, target: &PathBuf| own == target || own.starts_with("/etc") && target.starts_with(own);
    let etc = ETC_FILES.map(|file| (etc.join(file), Path::new("/etc").join(file)));
    let etc = etc.into_iter().filter(|(_, target)| !own.iter().any(|own| covers(own, target)));
    mounts.extend(etc.map(|(source, target)| Mount { source, target, ..Mount::default() }));
    Ok(mounts)
}

fn cgroup(limits: &Limits, path: PathBuf) -> CgroupSpec {
    let nanos_per_us = 1_000_000_000 / CPU_PERIOD_US;
    CgroupSpec {
        path,
        cpu_shares: limits.cpu_shares,
        cpu_quota_us: limits.nano_cpus.map(|nanos| nanos / nanos_per_us),
        cpu_period_us: limits.nano_cpus.map(|_| CPU_PERIOD_US),
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        memory_limit: limits.memory,
        swap_limit: limits.swap(),
        memory_reservation: limits.memory_reservation,
        pids_limit: limits.pids,
        io_limits: limits.io.clone(),
        ..CgroupSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_groups() {
        let limits = Limits {
            memory: Some(100 << 20),
            memory_swap: Some(100 << 20),
            nano_cpus: Some(500_000_000),
            ..Limits::default()
        };
        let group = cgroup(&limits, "docker/a".into());
        assert_eq!((group.cpu_quota_us, group.cpu_period_us), (Some(50_000), Some(100_000)));
        assert_eq!((group.memory_limit, group.swap_limit), (Some(104_857_600), Some(0)));
        assert_eq!(
            cgroup(&Limits::default(), "a".into()),
            CgroupSpec { path: "a".into(), ..CgroupSpec::default() }
        );
    }
}
