//! Which other objects a pod refers to: what a node must be given beside the pod, and nothing more.
//!
//! Owns the one list of the fields that name ConfigMaps, Secrets and claims. The control plane derives from
//! it what a node may see; the node derives from it which changes concern a pod.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, EnvVar, PersistentVolumeClaim, Pod, PodSpec, Volume};

use crate::kinds::{self, Kind};

/// A kind that pods refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceKind {
    /// Files and variables.
    ConfigMap,
    /// Files, variables and credentials for images.
    Secret,
    /// What a pod asks for of storage.
    PersistentVolumeClaim,
    /// Where a claim that a pod refers to is bound.
    PersistentVolume,
}

impl ReferenceKind {
    /// Every one.
    pub const ALL: [Self; 4] =
        [Self::ConfigMap, Self::Secret, Self::PersistentVolumeClaim, Self::PersistentVolume];

    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::PersistentVolume => "PersistentVolume",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind in the table of kinds.
    pub fn kind(self) -> &'static Kind {
        kinds::by_kind("", "v1", self.name()).expect("the table of kinds has every kind that pods refer to")
    }
}

/// The address of an object that a pod refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Its kind.
    pub kind: ReferenceKind,
    /// Its namespace; empty for kinds outside namespaces.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Reference {
    /// A reference to an object.
    pub fn new(kind: ReferenceKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

/// The claim that a volume of a pod uses: the one it names, or the one that is made for it
/// (generic ephemeral volumes).
pub fn claim_of<'a>(pod: &str, volume: &'a Volume) -> Option<Cow<'a, str>> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(Cow::Borrowed(&claim.claim_name)),
        (None, Some(_)) => Some(Cow::Owned(format!("{pod}-{}", volume.name))),
        (None, None) => None,
    }
}

/// Refuses a claim that only has the name of the one that is made for a pod's volume, and is somebody else's.
pub fn check_owner(pod: &Pod, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    if controllers.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
        return Ok(());
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (namespace, name) = (text(&pod.metadata.namespace), text(&claim.metadata.name));
    let pod = text(&pod.metadata.name);
    Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"))
}

/// Everything that a pod refers to. Where its claims are bound stands in the claims.
pub fn of_pod(namespace: &str, pod: &str, spec: &PodSpec) -> BTreeSet<Reference> {
    let mut found = Found { namespace, pod, references: BTreeSet::new() };
    for volume in spec.volumes.iter().flatten() {
        found.volume(volume);
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        found.container(container);
    }
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        let (env, env_from) = (ephemeral.env.clone(), ephemeral.env_from.clone());
        found.container(&Container { env, env_from, ..Container::default() });
    }
    for secret in spec.image_pull_secrets.iter().flatten() {
        found.add(ReferenceKind::Secret, &secret.name);
    }
    found.references
}

struct Found<'a> {
    namespace: &'a str,
    pod: &'a str,
    references: BTreeSet<Reference>,
}

impl Found<'_> {
    fn add(&mut self, kind: ReferenceKind, name: &str) {
        if !name.is_empty() {
            self.references.insert(Reference::new(kind, self.namespace, name));
        }
    }

    fn volume(&mut self, volume: &Volume) {
        if let Some(claim) = claim_of(self.pod, volume) {
            self.add(ReferenceKind::PersistentVolumeClaim, &claim);
        }
        if let Some(map) = &volume.config_map {
            self.add(ReferenceKind::ConfigMap, &map.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|secret| secret.secret_name.as_deref()) {
            self.add(ReferenceKind::Secret, name);
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(map) = &source.config_map {
                self.add(ReferenceKind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret {
                self.add(ReferenceKind::Secret, &secret.name);
            }
        }
    }

    fn container(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            if let Some(map) = &source.config_map_ref {
                self.add(ReferenceKind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret_ref {
                self.add(ReferenceKind::Secret, &secret.name);
            }
        }
        let variables = container.env.iter().flatten();
        for source in variables.filter_map(|variable: &EnvVar| variable.value_from.as_ref()) {
            if let Some(key) = &source.config_map_key_ref {
                self.add(ReferenceKind::ConfigMap, &key.name);
            }
            if let Some(key) = &source.secret_key_ref {
                self.add(ReferenceKind::Secret, &key.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_names_an_object_is_found() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "files"}},
                {"name": "b", "secret": {"secretName": "keys"}},
                {"name": "c", "projected": {"sources": [
                    {"configMap": {"name": "part"}}, {"secret": {"name": "part"}},
                    {"serviceAccountToken": {"path": "token"}},
                ]}},
                {"name": "d", "emptyDir": {}},
                {"name": "e", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
            ],
            "initContainers": [{"name": "i", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "k"}}},
                {"name": "B", "value": "plain"},
            ]}],
            "containers": [{"name": "c", "envFrom": [
                {"configMapRef": {"name": "all"}}, {"secretRef": {"name": "all", "optional": true}},
            ], "env": [{"name": "C", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}]}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"configMapRef": {"name": "debug"}}]}],
        }))
        .unwrap();
        let found: Vec<String> = of_pod("ns", "p", &spec).iter().map(Reference::to_string).collect();
        assert_eq!(
            found,
            [
                "ConfigMap ns/all",
                "ConfigMap ns/debug",
                "ConfigMap ns/files",
                "ConfigMap ns/one",
                "ConfigMap ns/part",
                "Secret ns/all",
                "Secret ns/keys",
                "Secret ns/one",
                "Secret ns/part",
                "Secret ns/registry",
                "PersistentVolumeClaim ns/data",
                "PersistentVolumeClaim ns/p-scratch",
            ]
        );
        for kind in ReferenceKind::ALL {
            assert_eq!(ReferenceKind::parse(kind.kind().kind), Some(kind));
        }
    }
}
