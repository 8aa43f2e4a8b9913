//! What a pod may ask for that this version cannot do. It is said, never skipped: a container that asked for
//! it waits with CreateContainerConfigError and the sentence from here.

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};

/// The first thing that the pod asks for and cannot get.
pub(crate) fn unsupported_pod(spec: &PodSpec) -> Option<&'static str> {
    let security = spec.security_context.as_ref();
    let found = [
        (spec.active_deadline_seconds.is_some(), "activeDeadlineSeconds"),
        (spec.host_users == Some(false), "user namespaces (hostUsers: false)"),
        (spec.overhead.as_ref().is_some_and(|o| !o.is_empty()), "pod overhead"),
        (spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()), "resource claims"),
        (security.is_some_and(|s| s.se_linux_options.is_some()), "SELinux options"),
    ];
    found.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what)
}

/// The first thing that the container asks for and cannot get.
pub(crate) fn unsupported_container(container: &Container, init: bool) -> Option<&'static str> {
    let security = container.security_context.as_ref();
    let seccomp = security.and_then(|s| s.seccomp_profile.as_ref());
    let found = [
        (
            init && container.restart_policy.is_some(),
            "sidecar containers (restartPolicy of an init container)",
        ),
        (
            container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some() || l.pre_stop.is_some()),
            "lifecycle hooks",
        ),
        (container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()), "block volume devices"),
        (container.ports.iter().flatten().any(|p| p.host_port.is_some_and(|h| h != 0)), "host ports"),
        (seccomp.is_some_and(|s| s.type_ == "Localhost"), "seccomp profiles of type Localhost"),
        (security.is_some_and(|s| s.se_linux_options.is_some()), "SELinux options"),
        (probes(container).any(|p| p.exec.is_some() || p.grpc.is_some()), "exec and grpc probes"),
    ];
    found.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what)
}

fn probes(container: &Container) -> impl Iterator<Item = &Probe> {
    [&container.liveness_probe, &container.readiness_probe, &container.startup_probe].into_iter().flatten()
}

/// The message for something that cannot be had.
pub(crate) fn sentence(what: &str) -> String {
    format!("{what}: not supported by this version of the node agent")
}
