//! What the runtime is told: a pod's sandbox and a container as its specifications.
//!
//! Pure translation; directories and files that the specifications name are made elsewhere.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use nix::sys::signal::Signal;
use runtime::{
    CapabilitiesSpec, ContainerSpec, Identity, LogSpec, Mount, NamespaceMode, PidMode, ProcessSpec,
    Propagation, RootfsSpec, SandboxSpec, UserSpec,
};

use super::containers::{
    Beside, CONTAINER_NAME_LABEL, IMAGE_LABEL, POD_NAME_LABEL, POD_NAMESPACE_LABEL, POD_UID_LABEL,
};
use super::context::Context;
use super::env::{self, Surroundings};
use super::env_from::Sources;
use super::env_services;
use super::record::{Instance, PodRecord};
use super::{confinement, files, qos, support, volumes};
use crate::images::Image;

/// The API's default of `terminationMessagePath`.
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// The pod's sandbox as the runtime is asked for it.
pub(crate) fn sandbox(context: &Context, record: &PodRecord, id: &str) -> SandboxSpec {
    let spec = record.spec();
    let or_host =
        |host: Option<bool>| if host == Some(true) { NamespaceMode::Host } else { NamespaceMode::Own };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => PidMode::Host,
        (_, Some(true)) => PidMode::Sandbox,
        _ => PidMode::Container,
    };
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    SandboxSpec {
        id: id.to_owned(),
        hostname: files::hostname(record, &context.config),
        network: or_host(spec.host_network),
        network_of: None,
        ipc: or_host(spec.host_ipc),
        pid,
        // Chosen by whoever keeps the ranges.
        users: None,
        shm_bytes: None,
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        cgroup: qos::pod_cgroup(spec, record.uid()),
        oom_score_adj: Some(qos::OOM_SCORE_SANDBOX),
        labels: [
            (POD_UID_LABEL.to_owned(), record.uid().to_owned()),
            (POD_NAME_LABEL.to_owned(), record.name().to_owned()),
            (POD_NAMESPACE_LABEL.to_owned(), record.namespace().to_owned()),
        ]
        .into(),
    }
}

/// Where the files of one instance lie.
pub(crate) struct InstanceFiles {
    pub(crate) log: PathBuf,
    pub(crate) termination_message: PathBuf,
}

/// Names the files of an instance.
pub(crate) fn instance_files(
    context: &Context,
    record: &PodRecord,
    name: &str,
    attempt: u32,
) -> InstanceFiles {
    InstanceFiles {
        log: context.pod_log_dir(record).join(name).join(format!("{attempt}.log")),
        termination_message: context
            .pod_dir(record.uid())
            .join("containers")
            .join(name)
            .join(format!("termination-{attempt}")),
    }
}

/// A container as the runtime is asked for it, or the sentence why its configuration cannot be had.
pub(crate) fn container(
    context: &Context,
    record: &PodRecord,
    container: &Container,
    instance: &Instance,
    image: &Image,
) -> Result<ContainerSpec, String> {
    let refused = support::unsupported_pod(record.spec());
    if let Some(what) = refused.or_else(|| support::unsupported_container(container)) {
        return Err(support::sentence(what));
    }
    if let Some(reason) = confinement::app_armor_refusal(&record.pod, container) {
        return Err(reason.to_owned());
    }
    let sandbox = record.sandbox.as_ref().ok_or("the pod has no sandbox")?;
    let pod_ip = if record.host_network() { Some(context.config.internal_ip) } else { sandbox.ip };
    let process = process(context, record, container, image, pod_ip)?;
    let environment = process.env.clone();
    let security = container.security_context.as_ref();
    let root = context.pod_dir(record.uid()).join("roots").join(&instance.id);
    let files = instance_files(context, record, &container.name, instance.attempt);
    let privileged = security.and_then(|s| s.privileged).unwrap_or(false);
    let unmasked = privileged || security.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked");
    Ok(ContainerSpec {
        id: instance.id.clone(),
        sandbox: sandbox.id.clone(),
        pid_of: looks_into(record, &container.name)?,
        rootfs: RootfsSpec {
            lower_dirs: image.layers.iter().rev().cloned().collect(),
            upper: root.join("upper"),
            work: root.join("work"),
            merged: root.join("merged"),
            read_only: security.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
            volatile: true,
            keep_upper: false,
        },
        process,
        mounts: mounts(context, record, container, (&files, &environment))?,
        masked_paths: if unmasked { Vec::new() } else { runtime::default_masked_paths() },
        readonly_paths: if unmasked { Vec::new() } else { runtime::default_readonly_paths() },
        cgroup: qos::container_cgroup(record.spec(), record.uid(), container, &instance.id),
        oom_score_adj: Some(qos::oom_score_adj(record.spec(), container, context.resources.memory_bytes)),
        log: Some(LogSpec::new(files.log)),
        stop_signal: Some(stop_signal(image)),
        privileged,
        labels: [
            (POD_UID_LABEL.to_owned(), record.uid().to_owned()),
            (POD_NAME_LABEL.to_owned(), record.name().to_owned()),
            (POD_NAMESPACE_LABEL.to_owned(), record.namespace().to_owned()),
            (CONTAINER_NAME_LABEL.to_owned(), container.name.clone()),
            (IMAGE_LABEL.to_owned(), container.image.clone().unwrap_or_default()),
        ]
        .into(),
        on_exit: Vec::new(),
    })
}

/// What a runtime with images of its own is told besides.
pub(crate) fn beside(
    (context, record): (&Context, &PodRecord),
    container: &Container,
    image: &Image,
    (attempt, spec): (u32, &ContainerSpec),
) -> Beside {
    let (command, args) = env::own_command(container, &spec.process.env);
    Beside {
        image: image.image_id.clone(),
        attempt,
        command,
        args,
        seccomp_profile: confinement::localhost_profile(context.confinement(), &record.pod, container),
    }
}

/// The instance whose processes an ephemeral container is to see, if it names one.
fn looks_into(record: &PodRecord, name: &str) -> Result<Option<String>, String> {
    let mut ephemeral = record.spec().ephemeral_containers.iter().flatten();
    let target = ephemeral.find(|c| c.name == name).and_then(|c| c.target_container_name.as_ref());
    let Some(target) = target.filter(|t| !t.is_empty()) else { return Ok(None) };
    let running = record.container(target).filter(|c| c.is_live()).and_then(|c| c.current.as_ref());
    let id = running.map(|instance| instance.id.clone());
    id.map(Some).ok_or_else(|| format!("unable to find target container \"{target}\""))
}

/// The signal that asks a container of this image to end.
pub(crate) fn stop_signal(image: &Image) -> i32 {
    let text = image.config.stop_signal.trim();
    let named = || text.parse::<Signal>().or_else(|_| format!("SIG{text}").parse::<Signal>()).ok();
    text.parse::<i32>().ok().or_else(|| named().map(|s| s as i32)).unwrap_or(Signal::SIGTERM as i32)
}

fn process(
    context: &Context,
    record: &PodRecord,
    container: &Container,
    image: &Image,
    pod_ip: Option<IpAddr>,
) -> Result<ProcessSpec, String> {
    let hostname = files::hostname(record, &context.config);
    let has_links = record.spec().enable_service_links != Some(false);
    let services = env_services::variables(&context.cluster, record.namespace(), has_links);
    let around = Surroundings {
        services: &services,
        pod: &record.pod,
        container,
        image: &image.config,
        hostname: &hostname,
        pod_ip,
        host_ip: context.config.internal_ip,
        allocatable: (context.resources.allocatable_cpu_milli, context.resources.allocatable_memory_bytes),
        sources: Sources { objects: &context.objects, namespace: record.namespace() },
    };
    let environment = env::environment(around)?;
    let args = env::command_line(around, &environment);
    // A runtime with images of its own knows what the image says.
    if args.is_empty() && context.runtime.own_images().is_none() {
        return Err("no command specified".to_owned());
    }
    let security = container.security_context.as_ref();
    let capabilities = security.and_then(|s| s.capabilities.as_ref());
    let list = |names: Option<&Option<Vec<String>>>| names.cloned().flatten().unwrap_or_default();
    let own_dir = container.working_dir.clone().filter(|d| !d.is_empty());
    Ok(ProcessSpec {
        args,
        env: environment,
        cwd: own_dir.unwrap_or_else(|| image.config.working_dir.clone()),
        user: user(record, container, image)?,
        capabilities: CapabilitiesSpec {
            add: list(capabilities.map(|c| &c.add)),
            drop: list(capabilities.map(|c| &c.drop)),
        },
        seccomp: confinement::seccomp(context.confinement(), &record.pod, container)?,
        no_new_privileges: security.and_then(|s| s.allow_privilege_escalation) == Some(false),
        rlimits: Vec::new(),
        terminal: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        await_attach: false,
    })
}

fn user(record: &PodRecord, container: &Container, image: &Image) -> Result<UserSpec, String> {
    let own = container.security_context.as_ref();
    let pod = record.spec().security_context.as_ref();
    let pick = |own: Option<i64>, pod: Option<i64>| own.or(pod);
    let mut user = UserSpec::parse(&image.config.user);
    let run_as_user = pick(own.and_then(|s| s.run_as_user), pod.and_then(|s| s.run_as_user));
    let run_as_group = pick(own.and_then(|s| s.run_as_group), pod.and_then(|s| s.run_as_group));
    if let Some(uid) = run_as_user {
        user.user = Identity::Id(id("runAsUser", uid)?);
        user.group = None;
    }
    if let Some(gid) = run_as_group {
        user.group = Some(Identity::Id(id("runAsGroup", gid)?));
    }
    for gid in pod.iter().flat_map(|s| s.supplemental_groups.iter().flatten().chain(&s.fs_group)) {
        user.additional_gids.push(id("supplementalGroups", *gid)?);
    }
    let non_root =
        own.and_then(|s| s.run_as_non_root).or(pod.and_then(|s| s.run_as_non_root)).unwrap_or(false);
    let place = format!("(pod: \"{}\", container: {})", record.full_name(), container.name);
    match (&user.user, run_as_user) {
        _ if !non_root => Ok(user),
        (Identity::Id(0), Some(_)) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Identity::Id(0), None) => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (Identity::Name(name), _) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        )),
        _ => Ok(user),
    }
}

fn id(field: &str, value: i64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{field} {value} is not an id"))
}

/// The part of the volume that is mounted. An expression knows the container's own variables only.
fn sub_path(
    container: &Container,
    wanted: &VolumeMount,
    environment: &[String],
) -> Result<Option<PathBuf>, String> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let path = match (given(&wanted.sub_path), given(&wanted.sub_path_expr)) {
        (None, None) => return Ok(None),
        (Some(path), _) => path,
        (None, Some(expression)) => {
            let own = |name: &str| container.env.iter().flatten().any(|variable| variable.name == name);
            let variables = environment.iter().filter_map(|entry| entry.split_once('='));
            let known = variables.filter(|(name, value)| own(name) && !value.is_empty());
            let known = known.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            env::expand_all(&expression, &known)?
        }
    };
    if Path::new(&path).is_absolute() {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(Some(PathBuf::from(path)))
}

fn mounts(
    context: &Context,
    record: &PodRecord,
    container: &Container,
    (files, environment): (&InstanceFiles, &[String]),
) -> Result<Vec<Mount>, String> {
    let pod_dir = context.pod_dir(record.uid());
    let pod_volumes = record.spec().volumes.as_deref().unwrap_or_default();
    let mut mounts: Vec<Mount> = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = pod_volumes.iter().find(|v| v.name == wanted.name).ok_or_else(|| {
            format!("cannot find volume \"{}\" to mount into container \"{}\"", wanted.name, container.name)
        })?;
        let propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        mounts.push(Mount {
            source: volumes::source_path(volume, &pod_dir.join("volumes")),
            sub_path: sub_path(container, wanted, environment)?,
            target: PathBuf::from(&wanted.mount_path),
            read_only: wanted.read_only.unwrap_or(false) || volumes::is_read_only(volume),
            propagation,
            ..Mount::default()
        });
    }
    mounts.sort_by_key(|m| m.target.components().count());
    let message_path = container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let message = Mount {
        source: files.termination_message.clone(),
        target: PathBuf::from(message_path.unwrap_or(TERMINATION_MESSAGE_PATH)),
        ..Mount::default()
    };
    let etc = files::ETC_FILES.iter().map(|file| Mount {
        source: pod_dir.join("etc").join(file),
        target: Path::new("/etc").join(file),
        ..Mount::default()
    });
    let own: Vec<PathBuf> = mounts.iter().map(|m| m.target.clone()).collect();
    let free = |mount: &Mount| {
        !own.iter().any(|o| *o == mount.target || (o.starts_with("/etc") && mount.target.starts_with(o)))
    };
    mounts.extend(etc.chain([message]).filter(free));
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_know_the_containers_own_variables_only() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "env": [{"name": "POD", "value": "x"}]}))
        .unwrap();
        let environment = ["HOSTNAME=web".to_owned(), "POD=web-1".to_owned()];
        let ask = |mount: serde_json::Value| {
            let mut wanted = serde_json::json!({"name": "v", "mountPath": "/x"});
            wanted.as_object_mut().unwrap().extend(mount.as_object().unwrap().clone());
            sub_path(&container, &serde_json::from_value(wanted).unwrap(), &environment)
        };
        assert_eq!(ask(serde_json::json!({"subPath": ""})), Ok(None));
        assert_eq!(ask(serde_json::json!({"subPath": "a/b"})), Ok(Some("a/b".into())));
        assert_eq!(ask(serde_json::json!({"subPathExpr": "logs/$(POD)"})), Ok(Some("logs/web-1".into())));
        for (mount, error) in [
            (serde_json::json!({"subPathExpr": "$(HOSTNAME)/$(NONE)"}), "missing value for HOSTNAME, NONE"),
            (serde_json::json!({"subPath": "/etc"}), "error SubPath `/etc` must not be an absolute path"),
            (
                serde_json::json!({"subPath": "../x"}),
                "unable to provision SubPath `../x`: must not contain '..'",
            ),
        ] {
            assert_eq!(ask(mount).unwrap_err(), error);
        }
    }
}
