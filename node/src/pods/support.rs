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
pub(crate) fn unsupported_container(container: &Container, host_network: bool) -> Option<&'static str> {
    let security = container.security_context.as_ref();
    let found = [
        (container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()), "block volume devices"),
        // On the host's network every port is the host's anyway, and the API fills the field in.
        (
            !host_network && container.ports.iter().flatten().any(|p| p.host_port.is_some_and(|h| h != 0)),
            "host ports",
        ),
        (security.is_some_and(|s| s.se_linux_options.is_some()), "SELinux options"),
    ];
    found.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what)
}

/// The message for something that cannot be had.
pub(crate) fn sentence(what: &str) -> String {
    format!("{what}: not supported by this version of the node agent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_hosts_network_are_no_forwarding() {
        let ports = serde_json::json!({"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]});
        let container: Container = serde_json::from_value(ports).unwrap();
        assert_eq!(unsupported_container(&container, false), Some("host ports"));
        assert_eq!(unsupported_container(&container, true), None);
    }
}
