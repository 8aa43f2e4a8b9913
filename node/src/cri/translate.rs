//! What clients ask for as the runtime's specifications. Pure, but for looking at paths that mounts and seccomp
//! profiles name. What cannot be had is refused with what to change; nothing is left out silently.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use proto::cri::security_profile::ProfileType;
use proto::cri::{self, MountPropagation, NamespaceMode as Mode};
use runtime::seccomp::{Profile, Seccomp};
use runtime::{
    CapabilitiesSpec, CgroupSpec, ContainerSpec, Identity, LogSpec, Mount, NamespaceMode, PidMode,
    ProcessSpec, Propagation, RootfsSpec, SandboxSpec, UserSpec,
};
use tonic::Status;

use super::records::{ContainerRecord, SandboxRecord};
use crate::images::Image;
use crate::pods::admission::HostPort;
use crate::pods::env::last_wins;

/// The label that says what an unused group is for.
const SANDBOX_LABEL: &str = "io.kubernetes.cri.sandbox";
/// The files that the server writes for a sandbox, below a container's `/etc`.
pub(super) const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

fn refuse<T>(message: impl Into<String>) -> Result<T, Status> {
    Err(Status::invalid_argument(message))
}

fn unsupported<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("this runtime does not support {what}")))
}

/// A sandbox's namespaces and group.
pub(super) fn sandbox(record: &SandboxRecord, cgroup_root: &str) -> Result<SandboxSpec, Status> {
    let config = &record.config;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    host_ports(config)?;
    if !record.runtime_handler.is_empty() {
        return refuse(format!(
            "there is no runtime handler {:?}; leave it empty for the only one",
            record.runtime_handler
        ));
    }
    if config.windows.is_some() {
        return unsupported("Windows sandboxes");
    }
    let options = security.namespace_options.unwrap_or_default();
    check_user_namespace(&options)?;
    let pid = match options.pid() {
        Mode::Pod => PidMode::Sandbox,
        Mode::Container => PidMode::Container,
        Mode::Node => PidMode::Host,
        Mode::Target => return refuse("a sandbox has no target: pid may be POD, CONTAINER or NODE"),
    };
    let resources = linux.resources.unwrap_or_default();
    let group = parent_group(config, cgroup_root).join(&record.id);
    Ok(SandboxSpec {
        users: None,
        id: record.id.clone(),
        hostname: config.hostname.clone(),
        network: own_or_host("network", options.network())?,
        network_of: None,
        ipc: own_or_host("ipc", options.ipc())?,
        pid,
        shm_bytes: None,
        sysctls: linux.sysctls.into_iter().collect(),
        cgroup: limits(&resources, group)?,
        oom_score_adj: Some(crate::pods::qos::OOM_SCORE_SANDBOX),
        labels: [(SANDBOX_LABEL.to_owned(), record.id.clone())].into(),
    })
}

/// The ports of the host that lead to a sandbox.
pub(super) fn host_ports(config: &cri::PodSandboxConfig) -> Result<Vec<HostPort>, Status> {
    let asked = config.port_mappings.iter().filter(|port| port.host_port != 0);
    let ports = asked.map(|port| {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
        let address = match port.host_ip.as_str() {
            "" => Some(None),
            text => text.parse().ok().map(|address: IpAddr| Some(address).filter(|a| !a.is_unspecified())),
        };
        let protocol = match port.protocol() {
            cri::Protocol::Tcp => "TCP",
            cri::Protocol::Udp => "UDP",
            cri::Protocol::Sctp => "SCTP",
        };
        let (Some(host_port), Some(container_port), Some(address)) =
            (number(port.host_port), number(port.container_port), address)
        else {
            return refuse(format!(
                "{port:?} is no port mapping: ports are 1 to 65535, host_ip an address or empty"
            ));
        };
        Ok(HostPort { protocol: protocol.to_owned(), address, host_port, container_port })
    });
    ports.collect()
}

/// The group below which a sandbox's groups lie, relative to the controllers' roots.
fn parent_group(config: &cri::PodSandboxConfig, cgroup_root: &str) -> PathBuf {
    let asked = config.linux.as_ref().map(|linux| linux.cgroup_parent.trim_matches('/')).unwrap_or_default();
    let parent = if asked.is_empty() { cgroup_root.trim_matches('/') } else { asked };
    PathBuf::from(parent)
}

fn own_or_host(what: &str, mode: Mode) -> Result<NamespaceMode, Status> {
    match mode {
        Mode::Pod => Ok(NamespaceMode::Own),
        Mode::Node => Ok(NamespaceMode::Host),
        _ => refuse(format!("{what} may be POD or NODE")),
    }
}

fn check_user_namespace(options: &cri::NamespaceOption) -> Result<(), Status> {
    match options.userns_options.as_ref().map(cri::UserNamespace::mode) {
        None | Some(Mode::Node) => Ok(()),
        Some(_) => unsupported("user namespaces (userns_options other than NODE)"),
    }
}

/// What a container is made of besides its own record.
pub(super) struct Around<'a> {
    pub(super) sandbox: &'a SandboxRecord,
    /// The sandbox's `etc` directory.
    pub(super) etc: &'a Path,
    pub(super) image: &'a Image,
    /// The container's own directory.
    pub(super) dir: &'a Path,
    pub(super) cgroup_root: &'a str,
}

/// A container.
pub(super) fn container(record: &ContainerRecord, around: &Around<'_>) -> Result<ContainerSpec, Status> {
    let config = &record.config;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    check_container(config, &security)?;
    let resources = linux.resources.unwrap_or_default();
    let options = security.namespace_options.clone().unwrap_or_default();
    let pid_of = match options.pid() {
        Mode::Target if options.target_id.is_empty() => {
            return refuse("pid is TARGET and target_id is missing");
        }
        Mode::Target => Some(options.target_id.clone()),
        _ => None,
    };
    let root = around.dir.join("root");
    let group = parent_group(&around.sandbox.config, around.cgroup_root).join(&record.id);
    let paths = |list: &[String]| list.iter().map(PathBuf::from).collect();
    Ok(ContainerSpec {
        id: record.id.clone(),
        sandbox: around.sandbox.id.clone(),
        pid_of,
        rootfs: RootfsSpec {
            lower_dirs: around.image.layers.iter().rev().cloned().collect(),
            upper: root.join("upper"),
            work: root.join("work"),
            merged: root.join("merged"),
            read_only: security.readonly_rootfs,
            volatile: true,
            keep_upper: false,
        },
        process: process(config, &security, around)?,
        mounts: mounts(config, around)?,
        masked_paths: paths(&security.masked_paths),
        readonly_paths: paths(&security.readonly_paths),
        cgroup: limits(&resources, group)?,
        oom_score_adj: oom_score(&resources)?,
        log: log(config, around.sandbox),
        stop_signal: Some(crate::pods::container_spec::stop_signal(around.image)),
        privileged: security.privileged,
        labels: [(SANDBOX_LABEL.to_owned(), around.sandbox.id.clone())].into(),
        on_exit: Vec::new(),
    })
}

fn check_container(
    config: &cri::ContainerConfig,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<(), Status> {
    if !config.devices.is_empty() && !security.privileged {
        return unsupported("single devices; a privileged container has all of them");
    }
    if !config.cdi_devices.is_empty() {
        return unsupported("CDI devices");
    }
    if security.selinux_options.as_ref().is_some_and(|options| *options != cri::SeLinuxOption::default()) {
        return unsupported("SELinux labels");
    }
    let localhost = |profile: &cri::SecurityProfile| profile.profile_type() == ProfileType::Localhost;
    #[expect(deprecated, reason = "older kubelets fill this in")]
    let named = security.apparmor_profile.starts_with("localhost/");
    if security.apparmor.as_ref().is_some_and(localhost) || named {
        return unsupported("AppArmor profiles");
    }
    Ok(())
}

fn process(
    config: &cri::ContainerConfig,
    security: &cri::LinuxContainerSecurityContext,
    around: &Around<'_>,
) -> Result<ProcessSpec, Status> {
    let image = &around.image.config;
    let args = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), config.args.clone()].concat(),
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    if args.first().is_none_or(String::is_empty) {
        return refuse("there is no command: neither the container nor its image names one");
    }
    let mut env = vec![format!("PATH={}", runtime::PATH_DEFAULT)];
    if !around.sandbox.config.hostname.is_empty() {
        env.push(format!("HOSTNAME={}", around.sandbox.config.hostname));
    }
    env.extend(image.env.iter().cloned());
    env.extend(config.envs.iter().map(|pair| format!("{}={}", pair.key, pair.value)));
    let capabilities = security.capabilities.clone().unwrap_or_default();
    if !capabilities.add_ambient_capabilities.is_empty() {
        return unsupported("ambient capabilities");
    }
    let own_dir = Some(config.working_dir.clone()).filter(|dir| !dir.is_empty());
    Ok(ProcessSpec {
        args,
        env: last_wins(env),
        cwd: own_dir.unwrap_or_else(|| image.working_dir.clone()),
        user: user(security, &image.user)?,
        capabilities: CapabilitiesSpec {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
        },
        no_new_privileges: security.no_new_privs,
        seccomp: seccomp(security)?,
        rlimits: Vec::new(),
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        await_attach: false,
    })
}

fn user(security: &cri::LinuxContainerSecurityContext, of_image: &str) -> Result<UserSpec, Status> {
    let mut user = UserSpec::parse(of_image);
    match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            return refuse("run_as_user and run_as_username exclude each other");
        }
        (Some(uid), _) => {
            user = UserSpec { user: Identity::Id(id("run_as_user", uid.value)?), ..UserSpec::default() }
        }
        (None, name) if !name.is_empty() => user = UserSpec::parse(name),
        (None, _) => {}
    }
    if let Some(gid) = &security.run_as_group {
        if security.run_as_user.is_none() && security.run_as_username.is_empty() {
            return refuse("run_as_group needs run_as_user or run_as_username");
        }
        user.group = Some(Identity::Id(id("run_as_group", gid.value)?));
    }
    if security.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Strict {
        return unsupported("supplemental_groups_policy Strict");
    }
    for gid in &security.supplemental_groups {
        user.additional_gids.push(id("supplemental_groups", *gid)?);
    }
    Ok(user)
}

fn id(field: &str, value: i64) -> Result<u32, Status> {
    u32::try_from(value).map_err(|_| Status::invalid_argument(format!("{field} {value} is not an id")))
}

/// The new field counts; kubelets before it named the profile by a word or a path.
fn seccomp(security: &cri::LinuxContainerSecurityContext) -> Result<Seccomp, Status> {
    if let Some(profile) = &security.seccomp {
        return match profile.profile_type() {
            ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
            ProfileType::Unconfined => Ok(Seccomp::Unconfined),
            ProfileType::Localhost => load(&profile.localhost_ref),
        };
    }
    #[expect(deprecated, reason = "older kubelets fill this in")]
    let named = security.seccomp_profile_path.as_str();
    match (named, named.strip_prefix("localhost/")) {
        ("" | "unconfined", _) => Ok(Seccomp::Unconfined),
        ("runtime/default" | "docker/default", _) => Ok(Seccomp::RuntimeDefault),
        (_, Some(path)) => load(path),
        (other, None) => refuse(format!("unknown seccomp profile {other:?}")),
    }
}

fn load(path: &str) -> Result<Seccomp, Status> {
    let cannot = |reason: &dyn std::fmt::Display| {
        Status::invalid_argument(format!("cannot load the seccomp profile {path:?}: {reason}"))
    };
    if !Path::new(path).is_absolute() {
        return Err(cannot(&"localhost_ref must be an absolute path"));
    }
    let json = std::fs::read(path).map_err(|error| cannot(&error))?;
    let profile = Profile::parse(&json).map_err(|error| cannot(&error))?;
    Ok(Seccomp::Profile(Box::new(profile)))
}

fn mounts(config: &cri::ContainerConfig, around: &Around<'_>) -> Result<Vec<Mount>, Status> {
    let mut mounts = Vec::new();
    for wanted in &config.mounts {
        if wanted.image.is_some() {
            return unsupported("mounts of images");
        }
        if wanted.recursive_read_only {
            return unsupported("recursive read-only mounts");
        }
        let source = PathBuf::from(&wanted.host_path);
        if !source.is_absolute() || !source.exists() {
            return refuse(format!(
                "mount source {:?} is not an absolute path that exists",
                wanted.host_path
            ));
        }
        mounts.push(Mount {
            source,
            target: PathBuf::from(&wanted.container_path),
            read_only: wanted.readonly,
            propagation: match wanted.propagation() {
                MountPropagation::PropagationPrivate => Propagation::Private,
                MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
                MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
            },
            ..Mount::default()
        });
    }
    mounts.sort_by_key(|mount| mount.target.components().count());
    let own: Vec<PathBuf> = mounts.iter().map(|mount| mount.target.clone()).collect();
    let free = |target: &Path| {
        !own.iter().any(|own| own == target || own.starts_with("/etc") && target.starts_with(own))
    };
    let etc = ETC_FILES.iter().map(|file| (around.etc.join(file), Path::new("/etc").join(file)));
    let etc = etc.filter(|(_, target)| free(target));
    mounts.extend(etc.map(|(source, target)| Mount { source, target, ..Mount::default() }));
    Ok(mounts)
}

/// The client moves full logs away itself, and asks for them to be opened anew.
fn log(config: &cri::ContainerConfig, sandbox: &SandboxRecord) -> Option<LogSpec> {
    let (dir, path) = (&sandbox.config.log_directory, &config.log_path);
    let path = Some(Path::new(dir).join(path)).filter(|_| !dir.is_empty() && !path.is_empty());
    path.map(|path| LogSpec { file_bytes_max: u64::MAX, ..LogSpec::new(path) })
}

/// Zero stands for "nothing said".
pub(super) fn limits(asked: &cri::LinuxContainerResources, path: PathBuf) -> Result<CgroupSpec, Status> {
    let some = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    if !asked.unified.is_empty() {
        return unsupported("resources by cgroup file names (unified)");
    }
    if asked.memory_limit_in_bytes < 0 || asked.cpu_shares < 0 || asked.cpu_period < 0 {
        return refuse("memory_limit_in_bytes, cpu_shares and cpu_period cannot be negative");
    }
    let memory_limit = some(asked.memory_limit_in_bytes);
    // Memory and swap together on the wire, swap alone in the runtime's specification.
    let swap = some(asked.memory_swap_limit_in_bytes).zip(memory_limit);
    let huge = asked.hugepage_limits.iter().filter(|page| !page.page_size.is_empty());
    Ok(CgroupSpec {
        path,
        cpu_shares: some(asked.cpu_shares),
        cpu_quota_us: some(asked.cpu_quota),
        cpu_period_us: some(asked.cpu_period),
        cpuset_cpus: text(&asked.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems),
        memory_limit,
        swap_limit: swap.map(|(both, memory)| both.saturating_sub(memory)),
        hugepage_limits: huge.map(|page| (page.page_size.clone(), page.limit)).collect(),
        ..CgroupSpec::default()
    })
}

fn oom_score(asked: &cri::LinuxContainerResources) -> Result<Option<i32>, Status> {
    match i32::try_from(asked.oom_score_adj) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(Some(score)),
        _ => refuse(format!("oom_score_adj {} is not between -1000 and 1000", asked.oom_score_adj)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_ids_or_names_and_groups_need_them() {
        let mut security = cri::LinuxContainerSecurityContext::default();
        assert_eq!(user(&security, "7:8").unwrap(), UserSpec::parse("7:8"));
        security.run_as_group = Some(cri::Int64Value { value: 9 });
        assert!(user(&security, "7").is_err());
        security.run_as_user = Some(cri::Int64Value { value: 5 });
        let user_of = user(&security, "7:8").unwrap();
        assert_eq!((user_of.user, user_of.group), (Identity::Id(5), Some(Identity::Id(9))));
        security.run_as_user = Some(cri::Int64Value { value: -5 });
        assert!(user(&security, "").is_err());
    }

    #[test]
    fn nothing_said_is_no_limit() {
        let none = limits(&cri::LinuxContainerResources::default(), "a".into()).unwrap();
        assert_eq!(none, CgroupSpec { path: "a".into(), ..CgroupSpec::default() });
        let asked = cri::LinuxContainerResources {
            memory_limit_in_bytes: 100,
            memory_swap_limit_in_bytes: 150,
            ..Default::default()
        };
        let both = limits(&asked, "a".into()).unwrap();
        assert_eq!((both.memory_limit, both.swap_limit), (Some(100), Some(50)));
    }
}
