//! What confines a container beyond namespaces and cgroups, out of pod and container security contexts: its
//! system call filter, and what a host without AppArmor or SELinux has to refuse.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SeccompProfile};
use runtime::seccomp::{Profile, Seccomp};

/// Before fields came, AppArmor profiles were asked for by this annotation of the pod, one per container.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What the node decides where pods say nothing, and where it keeps profiles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host<'a> {
    /// Containers without a profile run under the runtime's default one.
    pub(crate) seccomp_default: bool,
    /// Where `localhostProfile`s are looked for.
    pub(crate) seccomp_dir: &'a Path,
}

/// The filter of a container's system calls, or the sentence why it cannot be had. A container's own profile
/// comes before its pod's.
pub(crate) fn seccomp(host: Host<'_>, pod: &Pod, container: &Container) -> Result<Seccomp, String> {
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.seccomp_profile.as_ref());
    let own = container.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let Some(asked) = own.or(pods) else {
        return Ok(if host.seccomp_default { Seccomp::RuntimeDefault } else { Seccomp::Unconfined });
    };
    match asked.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => load(host.seccomp_dir, asked).map(|profile| Seccomp::Profile(Box::new(profile))),
        other => Err(format!("unknown seccomp profile type \"{other}\"")),
    }
}

/// The file of a container's profile of type `Localhost`.
pub(crate) fn localhost_profile(host: Host<'_>, pod: &Pod, container: &Container) -> Option<PathBuf> {
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.seccomp_profile.as_ref());
    let own = container.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let name = own.or(pods)?.localhost_profile.as_deref()?;
    Some(host.seccomp_dir.join(name))
}

fn load(dir: &Path, asked: &SeccompProfile) -> Result<Profile, String> {
    let name = asked.localhost_profile.as_deref().unwrap_or_default();
    let path = dir.join(name);
    let cannot = |reason: &dyn std::fmt::Display| {
        format!("cannot load seccomp profile \"{}\": {reason}", path.display())
    };
    let is_plain =
        !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if !is_plain {
        return Err(cannot(&"it must be a path below the node's directory of profiles, without \"..\""));
    }
    let json = std::fs::read(&path).map_err(|error| cannot(&error))?;
    Profile::parse(&json).map_err(|error| cannot(&error))
}

/// Why a container's AppArmor profile cannot be had, if it asks for one.
pub(crate) fn app_armor_refusal(pod: &Pod, container: &Container) -> Option<&'static str> {
    let asks = |profile: &AppArmorProfile| profile.type_ != "Unconfined";
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.app_armor_profile.as_ref());
    let own = container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let annotated = || {
        let annotations = pod.metadata.annotations.as_ref()?;
        annotations.get(&format!("{APPARMOR_ANNOTATION}{}", container.name))
    };
    let asked = match own.or(pods) {
        Some(profile) => asks(profile),
        None => annotated().is_some_and(|profile| profile != "unconfined"),
    };
    if !asked {
        return None;
    }
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    Some(if enabled.is_ok_and(|text| text.starts_with('Y')) {
        "Cannot enforce AppArmor: this node's runtime loads no AppArmor profiles"
    } else {
        "Cannot enforce AppArmor: AppArmor is not enabled on the host"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn asked(host: Host<'_>, pod: &Pod) -> Result<Seccomp, String> {
        seccomp(host, pod, &pod.spec.as_ref().unwrap().containers[0])
    }

    const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;

    #[test]
    fn a_containers_profile_comes_before_its_pods_and_both_before_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.json"), PROFILE).unwrap();
        let host = Host { seccomp_default: true, seccomp_dir: dir.path() };
        let nothing = pod("spec: {containers: [{name: a}]}");
        assert_eq!(asked(host, &nothing), Ok(Seccomp::RuntimeDefault));
        assert_eq!(asked(Host { seccomp_default: false, ..host }, &nothing), Ok(Seccomp::Unconfined));
        let pods = "spec: {securityContext: {seccompProfile: {type: Unconfined}}, containers: [{name: a";
        assert_eq!(asked(host, &pod(&format!("{pods}}}]}}"))), Ok(Seccomp::Unconfined));
        let own = "securityContext: {seccompProfile: {type: Localhost, localhostProfile: all.json}}";
        let profile = Profile::parse(PROFILE.as_bytes()).unwrap();
        let both = pod(&format!("{pods}, {own}}}]}}"));
        assert_eq!(asked(host, &both), Ok(Seccomp::Profile(Box::new(profile))));
    }

    #[test]
    fn profiles_that_cannot_be_had_are_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bad.json"), "{}").unwrap();
        let host = Host { seccomp_default: true, seccomp_dir: dir.path() };
        for (name, word) in
            [("none.json", "No such file"), ("../x", "without"), ("bad.json", "defaultAction")]
        {
            let asking = pod(&format!(
                "spec: {{containers: [{{name: a, securityContext: {{seccompProfile: {{type: Localhost, \
                 localhostProfile: {name}}}}}}}]}}"
            ));
            let refused = asked(host, &asking).unwrap_err();
            assert!(
                refused.starts_with("cannot load seccomp profile") && refused.contains(word),
                "{refused}"
            );
        }
    }

    #[test]
    fn app_armor_is_refused_where_it_is_asked_for() {
        let refused = |yaml: &str| {
            let pod = pod(yaml);
            app_armor_refusal(&pod, &pod.spec.as_ref().unwrap().containers[0]).is_some()
        };
        assert!(!refused("spec: {containers: [{name: a}]}"));
        let field = |kind: &str| {
            format!(
                "spec: {{containers: [{{name: a, securityContext: {{appArmorProfile: {{type: {kind}}}}}}}]}}"
            )
        };
        assert!(refused(&field("RuntimeDefault")));
        assert!(!refused(&field("Unconfined")));
        let annotation = "container.apparmor.security.beta.kubernetes.io/a: runtime/default";
        assert!(refused(&format!(
            "{{metadata: {{annotations: {{{annotation}}}}}, spec: {{containers: [{{name: a}}]}}}}"
        )));
    }
}
