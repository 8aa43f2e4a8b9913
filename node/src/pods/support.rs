//! What a pod may ask for that this version cannot do. It is said, never skipped: a container that asked for
//! it waits with CreateContainerConfigError and the sentence from here.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// The first thing that the pod asks for and cannot get.
pub(crate) fn unsupported_pod(spec: &PodSpec) -> Option<&'static str> {
    let security = spec.security_context.as_ref();
    let found = [
        (spec.overhead.as_ref().is_some_and(|o| !o.is_empty()), "pod overhead"),
        (spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()), "resource claims"),
        (security.is_some_and(|s| s.se_linux_options.is_some()), "SELinux options"),
    ];
    found.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what)
}

/// The first thing that the container asks for and cannot get.
pub(crate) fn unsupported_container(container: &Container) -> Option<&'static str> {
    let security = container.security_context.as_ref();
    let found = [
        (container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()), "block volume devices"),
        (security.is_some_and(|s| s.se_linux_options.is_some()), "SELinux options"),
    ];
    found.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what)
}

/// The message for something that cannot be had.
pub(crate) fn sentence(what: &str) -> String {
    format!("{what}: not supported by this version of the node agent")
}
