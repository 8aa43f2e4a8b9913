//! Pods' specifications as another runtime is asked for them. What the interface has no word for is refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proto::cri::{self, MountPropagation, NamespaceMode as Mode, security_profile::ProfileType};
use runtime::seccomp::Seccomp;
use runtime::{
    CgroupSpec, ContainerSpec, Identity, Mount, MountKind, NamespaceMode, PidMode, Propagation, SandboxSpec,
    UserIds,
};

use super::{GROUP_ANNOTATION, ID_LABEL, Inner, NODE_LABEL, TTY_ANNOTATION};
use crate::pods::admission::HostPort;
use crate::pods::containers::{
    Beside, CONTAINER_NAME_LABEL, ContainerError, POD_NAME_LABEL, POD_NAMESPACE_LABEL, POD_UID_LABEL,
};
use crate::pods::context::pod_log_dir;

/// The length of a CPU period that is not named.
const CPU_PERIOD_US: u64 = 100_000;

/// The path in `unix:///path`.
pub(crate) fn endpoint_path(endpoint: &str) -> Option<PathBuf> {
    let path = endpoint.strip_prefix("unix://")?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// A sandbox.
pub(super) fn sandbox(
    inner: &Inner,
    spec: &SandboxSpec,
    ports: &[HostPort],
) -> Result<cri::PodSandboxConfig, ContainerError> {
    let label = |name: &str| spec.labels.get(name).cloned().unwrap_or_default();
    let group = inner.groups.path(&spec.cgroup.path);
    let options = cri::NamespaceOption {
        network: own_or_host(spec.network).into(),
        ipc: own_or_host(spec.ipc).into(),
        pid: match spec.pid {
            PidMode::Container => Mode::Container,
            PidMode::Sandbox => Mode::Pod,
            PidMode::Host => Mode::Node,
        }
        .into(),
        userns_options: spec.users.map(|users| user_namespace(inner, users)).transpose()?,
        ..Default::default()
    };
    let (name, namespace) = (label(POD_NAME_LABEL), label(POD_NAMESPACE_LABEL));
    let uid = label(POD_UID_LABEL);
    let log_directory = pod_log_dir(&inner.log_dir, &namespace, &name, &uid);
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name, uid, namespace, attempt: attempt(&spec.id) }),
        // With the host's network the name is the host's, and runtimes refuse another.
        hostname: if spec.network == NamespaceMode::Host { String::new() } else { spec.hostname.clone() },
        log_directory: log_directory.to_string_lossy().into_owned(),
        labels: labels(inner, &spec.id, spec.labels.clone()),
        annotations: HashMap::from([(GROUP_ANNOTATION.to_owned(), group.clone())]),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: group,
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                seccomp: Some(cri::SecurityProfile::default()),
                ..Default::default()
            }),
            sysctls: spec.sysctls.clone().into_iter().collect(),
            ..Default::default()
        }),
        port_mappings: ports.iter().filter_map(port_mapping).collect(),
        ..Default::default()
    })
}

/// Runtimes take each attempt of a pod once: of each sandbox its id makes another, whatever became of those before.
fn attempt(id: &str) -> u32 {
    id.get(..7).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

fn user_namespace(inner: &Inner, users: UserIds) -> Result<cri::UserNamespace, ContainerError> {
    if !inner.user_namespaces {
        let problem = "the container runtime does not support user namespaces (hostUsers: false)";
        return Err(ContainerError::Refused(problem.to_owned()));
    }
    let ids = cri::IdMapping { host_id: users.first, container_id: 0, length: users.length };
    Ok(cri::UserNamespace { mode: Mode::Pod.into(), uids: vec![ids], gids: vec![ids] })
}

fn port_mapping(port: &HostPort) -> Option<cri::PortMapping> {
    let protocol = match port.protocol.as_str() {
        "TCP" => cri::Protocol::Tcp,
        "UDP" => cri::Protocol::Udp,
        "SCTP" => cri::Protocol::Sctp,
        _ => return None,
    };
    Some(cri::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.address.map(|address| address.to_string()).unwrap_or_default(),
    })
}

/// The same, as far as containers need it, out of what the runtime says of it.
pub(super) fn sandbox_again(inner: &Inner, status: cri::PodSandboxStatus) -> cri::PodSandboxConfig {
    let metadata = status.metadata.unwrap_or_default();
    let log_directory = pod_log_dir(&inner.log_dir, &metadata.namespace, &metadata.name, &metadata.uid);
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    cri::PodSandboxConfig {
        log_directory: log_directory.to_string_lossy().into_owned(),
        metadata: Some(metadata),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: status.annotations.get(GROUP_ANNOTATION).cloned().unwrap_or_default(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: options,
                ..Default::default()
            }),
            ..Default::default()
        }),
        labels: status.labels,
        annotations: status.annotations,
        ..Default::default()
    }
}

/// A container in a sandbox; `target` is the runtime's id of the one whose processes it is to see.
pub(super) fn container(
    inner: &Inner,
    (spec, beside): (&ContainerSpec, &Beside),
    sandbox: &cri::PodSandboxConfig,
    target: Option<String>,
) -> Result<cri::ContainerConfig, ContainerError> {
    let process = &spec.process;
    let linux = sandbox.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    let mut options = linux.namespace_options.unwrap_or_default();
    if let Some(target_id) = target {
        options.pid = Mode::Target.into();
        options.target_id = target_id;
    }
    let log_directory = Path::new(&sandbox.log_directory);
    let log_path = spec.log.as_ref().and_then(|log| log.path.strip_prefix(log_directory).ok());
    let name = spec.labels.get(CONTAINER_NAME_LABEL).cloned().unwrap_or_default();
    let annotations = process.terminal.then(|| (TTY_ANNOTATION.to_owned(), "true".to_owned()));
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name, attempt: beside.attempt }),
        image: Some(cri::ImageSpec { image: beside.image.clone(), ..Default::default() }),
        command: beside.command.clone(),
        args: beside.args.clone(),
        working_dir: process.cwd.clone(),
        envs: variables(&process.env),
        mounts: spec.mounts.iter().map(mount).collect::<Result<_, _>>()?,
        labels: labels(inner, &spec.id, spec.labels.clone()),
        annotations: annotations.into_iter().collect(),
        log_path: log_path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        stdin: process.stdin,
        stdin_once: process.stdin_once,
        tty: process.terminal,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(&spec.cgroup, spec.oom_score_adj)),
            security_context: Some(security(spec, beside, options)?),
        }),
        ..Default::default()
    })
}

fn labels(
    inner: &Inner,
    id: &str,
    own: std::collections::BTreeMap<String, String>,
) -> HashMap<String, String> {
    let ours = [(ID_LABEL, id), (NODE_LABEL, inner.node.as_str())];
    own.into_iter().chain(ours.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

fn own_or_host(mode: NamespaceMode) -> Mode {
    match mode {
        NamespaceMode::Own => Mode::Pod,
        NamespaceMode::Host => Mode::Node,
    }
}

/// The search path that stands first is the one that the agent adds where an image names none; what the image says
/// is the runtime's to know.
fn variables(env: &[String]) -> Vec<cri::KeyValue> {
    let added = format!("PATH={}", runtime::PATH_DEFAULT);
    let own = env.iter().enumerate().filter(|(at, entry)| *at > 0 || **entry != added);
    let pairs = own.filter_map(|(_, entry)| entry.split_once('='));
    pairs.map(|(key, value)| cri::KeyValue { key: key.to_owned(), value: value.to_owned() }).collect()
}

fn mount(wanted: &Mount) -> Result<cri::Mount, ContainerError> {
    let refuse = |what: &str| {
        let target = wanted.target.display();
        Err(ContainerError::Refused(format!("{what} at {target} cannot be asked of this container runtime")))
    };
    if wanted.kind != MountKind::Bind {
        return refuse("a mount of memory");
    }
    let source = match &wanted.sub_path {
        None => wanted.source.clone(),
        // Links in it could lead out of the volume: only what resolves to a place within it is passed on.
        Some(sub_path) => match inside(&wanted.source, sub_path) {
            Ok(source) => source,
            Err(_) => return refuse("a subPath that cannot be resolved within its volume"),
        },
    };
    Ok(cri::Mount {
        container_path: wanted.target.to_string_lossy().into_owned(),
        host_path: source.to_string_lossy().into_owned(),
        readonly: wanted.read_only,
        propagation: match wanted.propagation {
            Propagation::Private => MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => MountPropagation::PropagationBidirectional,
        }
        .into(),
        ..Default::default()
    })
}

fn inside(volume: &Path, sub_path: &Path) -> std::io::Result<PathBuf> {
    let volume = volume.canonicalize()?;
    let mut place = volume.clone();
    for part in sub_path.components() {
        place = place.join(part);
        if std::fs::symlink_metadata(&place).is_err() {
            std::fs::create_dir(&place)?;
        }
        place = place.canonicalize()?;
        if !place.starts_with(&volume) {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
    }
    Ok(place)
}

fn resources(limits: &CgroupSpec, oom_score_adj: Option<i32>) -> cri::LinuxContainerResources {
    let number = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or(0);
    let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US);
    cri::LinuxContainerResources {
        cpu_period: number(limits.cpu_quota_us.map(|_| period)),
        cpu_quota: number(limits.cpu_quota_us),
        cpu_shares: number(limits.cpu_shares),
        memory_limit_in_bytes: number(limits.memory_limit),
        // Memory and swap together: none of it.
        memory_swap_limit_in_bytes: number(limits.memory_limit) + number(limits.swap_limit),
        oom_score_adj: oom_score_adj.unwrap_or(0).into(),
        cpuset_cpus: limits.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: limits.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| cri::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        ..Default::default()
    }
}

fn security(
    spec: &ContainerSpec,
    beside: &Beside,
    options: cri::NamespaceOption,
) -> Result<cri::LinuxContainerSecurityContext, ContainerError> {
    let process = &spec.process;
    let id = |identity: &Identity| match identity {
        Identity::Id(id) => Some(cri::Int64Value { value: (*id).into() }),
        Identity::Name(_) => None,
    };
    let seccomp = match &process.seccomp {
        Seccomp::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Seccomp::Unconfined => (ProfileType::Unconfined, String::new()),
        Seccomp::Profile(_) => match &beside.seccomp_profile {
            Some(path) => (ProfileType::Localhost, path.to_string_lossy().into_owned()),
            None => return Err(ContainerError::Refused("the seccomp profile has no file".to_owned())),
        },
    };
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: process.capabilities.add.clone(),
            drop_capabilities: process.capabilities.drop.clone(),
            ..Default::default()
        }),
        privileged: spec.privileged,
        namespace_options: Some(options),
        run_as_user: id(&process.user.user),
        run_as_username: match &process.user.user {
            Identity::Name(name) => name.clone(),
            Identity::Id(_) => String::new(),
        },
        run_as_group: process.user.group.as_ref().and_then(id),
        readonly_rootfs: spec.rootfs.read_only,
        supplemental_groups: process.user.additional_gids.iter().map(|gid| i64::from(*gid)).collect(),
        no_new_privs: process.no_new_privileges,
        masked_paths: paths(&spec.masked_paths),
        readonly_paths: paths(&spec.readonly_paths),
        seccomp: Some(cri::SecurityProfile { profile_type: seccomp.0.into(), localhost_ref: seccomp.1 }),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_absolute_sockets() {
        assert_eq!(endpoint_path("unix:///run/c.sock"), Some("/run/c.sock".into()));
        assert_eq!(endpoint_path("unix://c.sock"), None);
        assert_eq!(endpoint_path("/run/c.sock"), None);
    }

    #[test]
    fn sub_paths_stay_within_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("..", volume.join("out")).unwrap();
        assert!(inside(&volume, Path::new("out")).is_err());
        assert!(inside(&volume, Path::new("a/b")).unwrap().is_dir());
    }
}
