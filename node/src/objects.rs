//! The objects beside pods that the control plane gave this node: ConfigMaps, Secrets, claims and volumes.
//!
//! Owns the node's only copy. Written by the leader's session, read by whoever makes something of them; who
//! waits for an object subscribes to changes and looks again. Promises that contents stay in memory: they
//! reach no disk and no log, so an agent that starts anew knows nothing until the leader has spoken
//! ([`Lookup::Unknown`]), and what runs goes on meanwhile with the files that it has. The leader sends only
//! what pods of this node refer to, before the pod itself.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};

use api::references::{Reference, ReferenceKind};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// What is known of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lookup<T> {
    /// It is this.
    Found(Arc<T>),
    /// There is no such object.
    Missing,
    /// No leader has told this life of the agent about objects yet.
    Unknown,
}

/// One object as it was told.
#[derive(Clone)]
enum Object {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    Claim(Arc<PersistentVolumeClaim>),
    Volume(Arc<PersistentVolume>),
}

impl Object {
    fn parse(kind: ReferenceKind, json: &[u8]) -> Result<Self, serde_json::Error> {
        fn of<T: DeserializeOwned>(json: &[u8]) -> Result<Arc<T>, serde_json::Error> {
            serde_json::from_slice(json).map(Arc::new)
        }
        Ok(match kind {
            ReferenceKind::ConfigMap => Self::ConfigMap(of(json)?),
            ReferenceKind::Secret => Self::Secret(of(json)?),
            ReferenceKind::PersistentVolumeClaim => Self::Claim(of(json)?),
            ReferenceKind::PersistentVolume => Self::Volume(of(json)?),
        })
    }

    fn version(&self) -> String {
        let metadata = match self {
            Self::ConfigMap(object) => &object.metadata,
            Self::Secret(object) => &object.metadata,
            Self::Claim(object) => &object.metadata,
            Self::Volume(object) => &object.metadata,
        };
        metadata.resource_version.clone().unwrap_or_default()
    }
}

/// The node's copy; see the module.
pub(crate) struct Objects {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// A leader has told everything at least once.
    told: bool,
    objects: BTreeMap<Reference, Entry>,
}

struct Entry {
    object: Object,
    version: String,
}

impl Default for Objects {
    fn default() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Objects {
    /// The ConfigMap of that name.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Lookup<ConfigMap> {
        self.get(ReferenceKind::ConfigMap, namespace, name, |object| match object {
            Object::ConfigMap(map) => Some(map),
            _ => None,
        })
    }

    /// The Secret of that name.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Lookup<Secret> {
        self.get(ReferenceKind::Secret, namespace, name, |object| match object {
            Object::Secret(secret) => Some(secret),
            _ => None,
        })
    }

    /// The claim of that name.
    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Lookup<PersistentVolumeClaim> {
        self.get(ReferenceKind::PersistentVolumeClaim, namespace, name, |object| match object {
            Object::Claim(claim) => Some(claim),
            _ => None,
        })
    }

    /// The volume of that name.
    pub(crate) fn volume(&self, name: &str) -> Lookup<PersistentVolume> {
        self.get(ReferenceKind::PersistentVolume, "", name, |object| match object {
            Object::Volume(volume) => Some(volume),
            _ => None,
        })
    }

    /// Every volume that this node was told of.
    pub(crate) fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        let state = self.lock();
        let volumes = state.objects.values().filter_map(|entry| match &entry.object {
            Object::Volume(volume) => Some(Arc::clone(volume)),
            _ => None,
        });
        volumes.collect()
    }

    /// Sees a new number after every change of any object.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether a leader has told this life of the agent everything once.
    pub(crate) fn is_told(&self) -> bool {
        self.lock().told
    }

    /// A number that changes when one of these objects appears, changes, goes, or becomes known.
    pub(crate) fn fingerprint<'a>(&self, references: impl IntoIterator<Item = &'a Reference>) -> u64 {
        let state = self.lock();
        let mut hasher = DefaultHasher::new();
        state.told.hash(&mut hasher);
        for reference in references {
            state.objects.get(reference).map(|entry| &entry.version).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The leader tells an object.
    pub(crate) fn put(&self, reference: Reference, json: &[u8]) {
        let (version, object) = match Object::parse(reference.kind, json) {
            Ok(object) => (object.version(), object),
            Err(error) => {
                // Where it is wrong, not what it holds.
                tracing::error!(%reference, line = error.line(), column = error.column(), "an object from the control plane cannot be read; ignored");
                return;
            }
        };
        tracing::debug!(%reference, version, "object");
        self.change(|state| {
            let known = state.objects.get(&reference).is_some_and(|entry| entry.version == version);
            state.objects.insert(reference, Entry { object, version });
            !known
        });
    }

    /// The leader says that there is no such object for this node.
    pub(crate) fn remove(&self, reference: &Reference) {
        tracing::debug!(%reference, "no such object");
        self.change(|state| state.objects.remove(reference).is_some());
    }

    /// The leader has told everything: these are all that there are.
    pub(crate) fn keep_only(&self, references: &[Reference]) {
        self.change(|state| {
            let before = state.objects.len();
            state.objects.retain(|reference, _| references.contains(reference));
            !std::mem::replace(&mut state.told, true) || state.objects.len() != before
        });
    }

    fn get<T>(
        &self,
        kind: ReferenceKind,
        namespace: &str,
        name: &str,
        pick: impl Fn(&Object) -> Option<&Arc<T>>,
    ) -> Lookup<T> {
        let state = self.lock();
        let entry = state.objects.get(&Reference::new(kind, namespace, name));
        match entry.and_then(|entry| pick(&entry.object)) {
            Some(object) => Lookup::Found(Arc::clone(object)),
            None if state.told => Lookup::Missing,
            None => Lookup::Unknown,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        if change(&mut self.lock()) {
            self.changes.send_modify(|number| *number += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the objects panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str) -> Reference {
        Reference::new(ReferenceKind::ConfigMap, "d", name)
    }

    fn put(objects: &Objects, name: &str, version: u32) {
        let json = serde_json::json!({"metadata": {"name": name, "resourceVersion": version.to_string()},
            "data": {"k": format!("v{version}")}});
        objects.put(map(name), json.to_string().as_bytes());
    }

    #[test]
    fn nothing_is_missing_before_a_leader_has_told_everything() {
        let objects = Objects::default();
        assert_eq!(objects.config_map("d", "a"), Lookup::Unknown);
        put(&objects, "a", 1);
        put(&objects, "b", 2);
        assert_eq!(objects.config_map("d", "c"), Lookup::Unknown);
        objects.keep_only(&[map("a")]);
        let Lookup::Found(found) = objects.config_map("d", "a") else { panic!("a is there") };
        assert_eq!(found.data.as_ref().unwrap()["k"], "v1");
        assert_eq!(objects.config_map("d", "b"), Lookup::Missing, "no pod refers to it any more");
        assert_eq!(objects.secret("d", "a"), Lookup::Missing);
        objects.put(map("d"), b"{");
        assert_eq!(objects.config_map("d", "d"), Lookup::Missing);
    }

    #[test]
    fn who_waits_is_woken_by_changes_of_what_it_waits_for() {
        let objects = Objects::default();
        let mut changes = objects.subscribe();
        objects.keep_only(&[]);
        assert!(changes.has_changed().unwrap());
        let mine = [map("a")];
        let before = objects.fingerprint(&mine);
        put(&objects, "b", 1);
        assert_eq!(objects.fingerprint(&mine), before);
        put(&objects, "a", 2);
        let after = objects.fingerprint(&mine);
        assert_ne!(after, before);
        changes.mark_unchanged();
        put(&objects, "a", 2);
        assert!(!changes.has_changed().unwrap(), "told again, not changed");
        objects.remove(&map("a"));
        assert_eq!(objects.fingerprint(&mine), before);
    }
}
