//! Pod Security Standards: what a pod may ask of its node at the levels `privileged`, `baseline` and
//! `restricted`.
//!
//! Pure; texts and their order are those of Kubernetes' PodSecurity admission. Namespaces choose the level by
//! labels; see [`Policy`].

use serde_json::Value;

use crate::object;

/// How much a pod may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Everything.
    #[default]
    Privileged,
    /// Nothing that is known to lead out of a container.
    Baseline,
    /// Only what is hardened.
    Restricted,
}

/// A level and the version of the standard, as labels name them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// The level.
    pub level: Level,
    /// `latest`, or a version such as `v1.33`. All are checked as `latest`.
    pub version: String,
}

/// What a namespace demands of its pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// A pod that does not comply is refused.
    pub enforce: Demand,
    /// Whoever makes it is warned.
    pub warn: Demand,
    /// It is noted in the audit log.
    pub audit: Demand,
}

impl Policy {
    /// The policy that a namespace's labels name. A level that is none counts as the strictest.
    pub fn of(namespace: &Value) -> Self {
        let demand = |mode: &str| {
            let label = |suffix: &str| {
                object::label(namespace, &format!("pod-security.kubernetes.io/{mode}{suffix}"))
            };
            Demand {
                level: match label("") {
                    None | Some("" | "privileged") => Level::Privileged,
                    Some("baseline") => Level::Baseline,
                    Some(_) => Level::Restricted,
                },
                version: label("-version").unwrap_or("latest").to_owned(),
            }
        };
        Self { enforce: demand("enforce"), warn: demand("warn"), audit: demand("audit") }
    }
}

impl Demand {
    /// What a pod violates: `PodSecurity "baseline:latest": privileged (container "c" must not ...)`.
    pub fn violation(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let problems = check(self.level, metadata, spec);
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        (!problems.is_empty())
            .then(|| format!("PodSecurity \"{level}:{}\": {}", self.version, problems.join(", ")))
    }
}

/// The metadata and spec of the pods that an object makes, if it makes any.
pub fn template<'a>(group: &str, kind: &str, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let template = match (group, kind) {
        ("", "Pod") => object,
        ("batch", "CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"],
        ("", "PodTemplate") => &object["template"],
        ("", "ReplicationController")
        | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job") => &object["spec"]["template"],
        _ => return None,
    };
    template["spec"].is_object().then(|| (&template["metadata"], &template["spec"]))
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    containers: Vec<&'a Value>,
}

fn check(level: Level, metadata: &Value, spec: &Value) -> Vec<String> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let containers = lists.iter().flat_map(|list| spec[*list].as_array().into_iter().flatten()).collect();
    let pod = Pod { metadata, spec, containers };
    let restricted = level == Level::Restricted;
    let checks: [Option<String>; 15] = [
        restricted.then(|| pod.privilege_escalation()).flatten(),
        pod.app_armor(),
        if restricted { pod.restricted_capabilities() } else { pod.capabilities() },
        pod.host_namespaces(),
        pod.host_paths(),
        pod.host_ports(),
        pod.privileged(),
        pod.proc_mount(),
        restricted.then(|| pod.volumes()).flatten(),
        restricted.then(|| pod.non_root()).flatten(),
        restricted.then(|| pod.root_user()).flatten(),
        pod.selinux(),
        if restricted { pod.restricted_seccomp() } else { pod.seccomp() },
        pod.sysctls(),
        pod.host_process(),
    ];
    checks.into_iter().flatten().collect()
}

fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<String>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("container{plural} {}", quoted(names))
}

impl Pod<'_> {
    /// The containers of which something holds.
    fn which(&self, is_bad: impl Fn(&Value) -> bool) -> Option<Vec<&str>> {
        let bad = self.containers.iter().filter(|container| is_bad(container));
        let names: Vec<&str> = bad.map(|container| name(container)).collect();
        (!names.is_empty()).then_some(names)
    }

    fn privilege_escalation(&self) -> Option<String> {
        let bad = self.which(|own| own["securityContext"]["allowPrivilegeEscalation"] != false)?;
        Some(format!(
            "allowPrivilegeEscalation != false ({} must set securityContext.allowPrivilegeEscalation=false)",
            containers(&bad)
        ))
    }

    fn app_armor(&self) -> Option<String> {
        const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
        let is_bad = |profile: &str| {
            !(profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/"))
        };
        let annotations = self.metadata["annotations"].as_object().into_iter().flatten();
        let mut bad: Vec<String> = annotations
            .filter(|(key, profile)| key.starts_with(PREFIX) && is_bad(profile.as_str().unwrap_or_default()))
            .map(|(key, profile)| format!("{key}={profile}"))
            .collect();
        let own = |context: &Value| context["appArmorProfile"]["type"] == "Unconfined";
        if own(&self.spec["securityContext"]) {
            bad.push("pod must not set AppArmor profile type to \"Unconfined\"".to_owned());
        }
        if let Some(names) = self.which(|container| own(&container["securityContext"])) {
            bad.push(format!("{} must not set AppArmor profile type to \"Unconfined\"", containers(&names)));
        }
        let plural = if bad.len() == 1 { "" } else { "s" };
        (!bad.is_empty()).then(|| format!("forbidden AppArmor profile{plural} ({})", bad.join(", ")))
    }

    fn added<'a>(&'a self, allowed: &'a [&str]) -> Option<(Vec<&'a str>, Vec<&'a str>)> {
        let of = |container: &'a Value| {
            let added = container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
            added.filter_map(Value::as_str).filter(|capability| !allowed.contains(capability))
        };
        let names = self.which(|container| {
            let added = container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
            added.filter_map(Value::as_str).any(|capability| !allowed.contains(&capability))
        })?;
        let mut capabilities: Vec<&str> =
            self.containers.iter().flat_map(|container| of(container)).collect();
        capabilities.sort_unstable();
        capabilities.dedup();
        Some((names, capabilities))
    }

    fn capabilities(&self) -> Option<String> {
        let (names, capabilities) = self.added(&CAPABILITIES)?;
        Some(format!(
            "non-default capabilities ({} must not include {} in securityContext.capabilities.add)",
            containers(&names),
            quoted(&capabilities)
        ))
    }

    fn restricted_capabilities(&self) -> Option<String> {
        let mut problems = Vec::new();
        let keeps = self.which(|container| {
            let dropped = container["securityContext"]["capabilities"]["drop"].as_array();
            !dropped.into_iter().flatten().any(|capability| capability == "ALL")
        });
        if let Some(names) = keeps {
            problems
                .push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&names)));
        }
        if let Some((names, capabilities)) = self.added(&["NET_BIND_SERVICE"]) {
            problems.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&names),
                quoted(&capabilities)
            ));
        }
        (!problems.is_empty()).then(|| format!("unrestricted capabilities ({})", problems.join("; ")))
    }

    fn host_namespaces(&self) -> Option<String> {
        let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
            .iter()
            .filter(|field| self.spec[**field] == true)
            .map(|field| format!("{field}=true"))
            .collect();
        (!shared.is_empty()).then(|| format!("host namespaces ({})", shared.join(", ")))
    }

    fn host_paths(&self) -> Option<String> {
        let volumes = self.spec["volumes"].as_array().into_iter().flatten();
        let bad: Vec<&str> = volumes.filter(|volume| !volume["hostPath"].is_null()).map(name).collect();
        let plural = if bad.len() == 1 { "" } else { "s" };
        (!bad.is_empty()).then(|| format!("hostPath volumes (volume{plural} {})", quoted(&bad)))
    }

    fn host_ports(&self) -> Option<String> {
        let ports = |container: &Value| -> Vec<i64> {
            let ports = container["ports"].as_array().into_iter().flatten();
            ports.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0).collect()
        };
        let names = self.which(|container| !ports(container).is_empty())?;
        let mut all: Vec<i64> = self.containers.iter().flat_map(|container| ports(container)).collect();
        all.sort_unstable();
        all.dedup();
        let texts: Vec<String> = all.iter().map(i64::to_string).collect();
        let (uses, plural) =
            (if names.len() == 1 { "uses" } else { "use" }, if all.len() == 1 { "" } else { "s" });
        Some(format!("hostPort ({} {uses} hostPort{plural} {})", containers(&names), texts.join(", ")))
    }

    fn privileged(&self) -> Option<String> {
        let bad = self.which(|container| container["securityContext"]["privileged"] == true)?;
        Some(format!("privileged ({} must not set securityContext.privileged=true)", containers(&bad)))
    }

    fn proc_mount(&self) -> Option<String> {
        let is_bad = |container: &Value| {
            !matches!(container["securityContext"]["procMount"].as_str(), None | Some("" | "Default"))
        };
        let bad = self.which(is_bad)?;
        Some(format!(
            "procMount ({} must not set securityContext.procMount to \"Unmasked\")",
            containers(&bad)
        ))
    }

    fn volumes(&self) -> Option<String> {
        let mut types: Vec<&str> = Vec::new();
        let mut names = Vec::new();
        for volume in self.spec["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_object().into_iter().flatten().map(|(field, _)| field.as_str());
            let mut bad = source.filter(|field| *field != "name" && !VOLUMES.contains(field)).peekable();
            if bad.peek().is_some() {
                names.push(name(volume));
                types.extend(bad);
            }
        }
        types.sort_unstable();
        types.dedup();
        let (plural, uses) = if names.len() == 1 { ("", "uses") } else { ("s", "use") };
        let types_plural = if types.len() == 1 { "" } else { "s" };
        (!names.is_empty()).then(|| {
            format!(
                "restricted volume types (volume{plural} {} {uses} restricted volume type{types_plural} {})",
                quoted(&names),
                quoted(&types)
            )
        })
    }

    fn non_root(&self) -> Option<String> {
        let pod = &self.spec["securityContext"]["runAsNonRoot"];
        if *pod == false {
            return Some(
                "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)".to_owned(),
            );
        }
        if let Some(bad) = self.which(|container| container["securityContext"]["runAsNonRoot"] == false) {
            let who = containers(&bad);
            return Some(format!(
                "runAsNonRoot != true ({who} must not set securityContext.runAsNonRoot=false)"
            ));
        }
        if *pod == true {
            return None;
        }
        let bad = self.which(|container| container["securityContext"]["runAsNonRoot"] != true)?;
        let who = containers(&bad);
        Some(format!("runAsNonRoot != true (pod or {who} must set securityContext.runAsNonRoot=true)"))
    }

    fn root_user(&self) -> Option<String> {
        let is_root = |context: &Value| context["runAsUser"].as_i64() == Some(0);
        let mut problems = Vec::new();
        if is_root(&self.spec["securityContext"]) {
            problems.push("pod must not set runAsUser=0".to_owned());
        }
        if let Some(bad) = self.which(|container| is_root(&container["securityContext"])) {
            problems.push(format!("{} must not set runAsUser=0", containers(&bad)));
        }
        (!problems.is_empty()).then(|| format!("runAsUser=0 ({})", problems.join("; ")))
    }

    fn selinux(&self) -> Option<String> {
        let is_bad = |context: &Value| {
            let options = &context["seLinuxOptions"];
            let text = |field: &str| options[field].as_str().unwrap_or_default();
            !SELINUX_TYPES.contains(&text("type")) || !text("user").is_empty() || !text("role").is_empty()
        };
        let mut who = Vec::new();
        if is_bad(&self.spec["securityContext"]) {
            who.push("pod".to_owned());
        }
        if let Some(bad) = self.which(|container| is_bad(&container["securityContext"])) {
            who.push(containers(&bad));
        }
        (!who.is_empty()).then(|| {
            format!("seLinuxOptions ({} set forbidden securityContext.seLinuxOptions)", who.join(" and "))
        })
    }

    fn seccomp(&self) -> Option<String> {
        let is_bad = |context: &Value| context["seccompProfile"]["type"] == "Unconfined";
        let mut who = Vec::new();
        if is_bad(&self.spec["securityContext"]) {
            who.push("pod".to_owned());
        }
        if let Some(bad) = self.which(|container| is_bad(&container["securityContext"])) {
            who.push(containers(&bad));
        }
        (!who.is_empty()).then(|| {
            format!(
                "seccompProfile ({} must not set securityContext.seccompProfile.type to \"Unconfined\")",
                who.join(" and ")
            )
        })
    }

    fn restricted_seccomp(&self) -> Option<String> {
        if let Some(problem) = self.seccomp() {
            return Some(problem);
        }
        let is_good = |context: &Value| {
            matches!(context["seccompProfile"]["type"].as_str(), Some("RuntimeDefault" | "Localhost"))
        };
        if is_good(&self.spec["securityContext"]) {
            return None;
        }
        let bad = self.which(|container| !is_good(&container["securityContext"]))?;
        Some(format!(
            "seccompProfile (pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            containers(&bad)
        ))
    }

    fn sysctls(&self) -> Option<String> {
        let sysctls = self.spec["securityContext"]["sysctls"].as_array().into_iter().flatten();
        let bad: Vec<&str> = sysctls.map(name).filter(|name| !SYSCTLS.contains(name)).collect();
        (!bad.is_empty()).then(|| format!("forbidden sysctls ({})", bad.join(", ")))
    }

    fn host_process(&self) -> Option<String> {
        let is_bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
        let mut who = Vec::new();
        if is_bad(&self.spec["securityContext"]) {
            who.push("pod".to_owned());
        }
        if let Some(bad) = self.which(|container| is_bad(&container["securityContext"])) {
            who.push(containers(&bad));
        }
        (!who.is_empty()).then(|| {
            format!(
                "hostProcess ({} must not set securityContext.windowsOptions.hostProcess=true)",
                who.join(" and ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn violation(level: Level, spec: Value) -> Option<String> {
        Demand { level, version: "latest".to_owned() }.violation(&json!({}), &spec)
    }

    #[test]
    fn a_plain_pod_passes_baseline_and_hears_all_that_restricted_wants() {
        let spec = json!({"containers": [{"name": "nginx"}]});
        assert_eq!(violation(Level::Baseline, spec.clone()), None);
        assert_eq!(
            violation(Level::Restricted, spec).as_deref(),
            Some(
                "PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
            )
        );
        let hardened = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}}}]});
        assert_eq!(violation(Level::Restricted, hardened), None);
    }

    #[test]
    fn each_way_out_is_named() {
        for (spec, wanted) in [
            (json!({"hostNetwork": true, "containers": []}), "host namespaces (hostNetwork=true)"),
            (
                json!({"containers": [{"name": "a", "securityContext": {"privileged": true}},
                {"name": "b", "securityContext": {"privileged": true}}]}),
                "privileged (containers \"a\", \"b\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["NET_ADMIN", "KILL"]}}}]}),
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}]}),
                "hostPort (container \"a\" uses hostPort 80)",
            ),
            (
                json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"containers": [], "securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
        ] {
            let found = violation(Level::Baseline, spec).expect("a violation");
            assert_eq!(found, format!("PodSecurity \"baseline:latest\": {wanted}"));
        }
    }

    #[test]
    fn labels_choose_the_level() {
        let policy = Policy::of(&json!({"metadata": {"labels": {
            "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted",
            "pod-security.kubernetes.io/warn-version": "v1.30"}}}));
        assert_eq!(policy.enforce, Demand { level: Level::Baseline, version: "latest".to_owned() });
        assert_eq!((policy.warn.level, policy.warn.version.as_str()), (Level::Restricted, "v1.30"));
        assert_eq!(policy.audit.level, Level::Privileged);
    }
}
