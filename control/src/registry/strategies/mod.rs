//! What a write may change, per kind.
//!
//! Owns the [`Strategy`] of each kind: which fields a client may set at creation, what a plain update and a
//! status update may touch, how deletion begins. A kind without a file of its own follows [`Plain`]. Pure:
//! no store, no clock.

pub(super) mod certificate;
mod definition;
mod job;
pub(super) mod namespace;
mod node;
pub(super) mod pod;
mod service;
mod storage;

use api::{Kind, Status, object};
use serde_json::Value;

/// How long an object waits between the request to delete it and its removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grace {
    /// The kind knows no grace.
    None,
    /// So many seconds, until its node reports it gone.
    Seconds(i64),
}

/// The rules of one kind.
pub(super) trait Strategy: Sync {
    /// Drops what a client may not set at creation.
    fn prepare_create(&self, object: &mut Value) {
        remove(object, "status");
    }

    /// Fills in the first status, once the spec is defaulted.
    fn default_status(&self, _object: &mut Value) {}

    /// Undoes what a plain update may not change.
    fn prepare_update(&self, old: &Value, new: &mut Value) {
        copy(old, new, "status");
    }

    /// Undoes what a status update may not change: all but status, labels and annotations.
    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        keep_all_but_status(old, new);
    }

    /// Whether objects of that name may be deleted at all.
    fn check_delete(&self, _name: &str) -> Result<(), Status> {
        Ok(())
    }

    /// How long the object waits, given what the request asked for.
    fn grace(&self, _object: &Value, _requested_s: Option<i64>) -> Grace {
        Grace::None
    }

    /// What holds every object of the kind from the moment its deletion begins.
    fn deletion_finalizer(&self) -> Option<&'static str> {
        None
    }

    /// Changes the object when its deletion begins.
    fn begin_delete(&self, _object: &mut Value) {}
}

/// The rules of kinds that have none of their own.
struct Plain;

impl Strategy for Plain {}

/// The rules of kinds that have no status subresource: every field is the client's.
struct Whole;

impl Strategy for Whole {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _old: &Value, _new: &mut Value) {}
}

/// The rules of a kind.
pub(super) fn of(kind: &Kind) -> &'static dyn Strategy {
    match (kind.stored_group(), kind.kind) {
        (api::kinds::EXTENSIONS_GROUP, "CustomResourceDefinition") => &definition::DefinitionStrategy,
        ("", "Namespace") => &namespace::NamespaceStrategy,
        ("", "Node") => &node::NodeStrategy,
        ("", "Pod") => &pod::PodStrategy,
        ("", "PersistentVolume") => &storage::VOLUME,
        ("", "PersistentVolumeClaim") => &storage::CLAIM,
        ("", "Service") => &service::ServiceStrategy,
        ("batch", "Job") => &job::JobStrategy,
        ("certificates.k8s.io", _) => &certificate::RequestStrategy,
        _ if kind.has_status => &Plain,
        _ => &Whole,
    }
}

/// Runs rules on an object and its successor in the form that is stored: what a write is about is told by the
/// members of that form, whichever version it comes in.
pub(super) fn in_stored_form(
    kind: &Kind,
    old: &Value,
    new: &mut Value,
    rules: impl FnOnce(&Value, &mut Value),
) {
    if kind.stored_as.is_none() {
        return rules(old, new);
    }
    let (_, old) = api::versions::as_stored(kind, old);
    api::versions::store(kind, new);
    rules(&old, new);
    api::versions::show(kind, new);
}

/// Whether nothing holds an object back any more whose deletion has begun.
pub(super) fn is_finished(kind: &Kind, object: &Value) -> bool {
    object::deletion_timestamp(object).is_some()
        && object::finalizers(object).next().is_none()
        && object::deletion_grace_period_s(object).unwrap_or(0) == 0
        && !has_spec_finalizers(kind, object)
}

/// Whether the kind keeps finalizers in its spec (namespaces do) and the object still has some.
pub(super) fn has_spec_finalizers(kind: &Kind, object: &Value) -> bool {
    kind.kind == "Namespace"
        && kind.group.is_empty()
        && object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

fn keep_all_but_status(old: &Value, new: &mut Value) {
    let status = new.get("status").cloned();
    let labels = new["metadata"].get("labels").cloned().unwrap_or(Value::Null);
    let annotations = new["metadata"].get("annotations").cloned().unwrap_or(Value::Null);
    *new = old.clone();
    object::set_metadata(new, "labels", labels);
    object::set_metadata(new, "annotations", annotations);
    match (status, new.as_object_mut()) {
        (Some(status), Some(members)) => {
            members.insert("status".to_owned(), status);
        }
        _ => remove(new, "status"),
    }
}

fn remove(object: &mut Value, member: &str) {
    if let Some(members) = object.as_object_mut() {
        members.remove(member);
    }
}

/// Sets a top-level member as it is in `from`.
fn copy(from: &Value, to: &mut Value, member: &str) {
    match (from.get(member), to.as_object_mut()) {
        (Some(value), Some(members)) => {
            members.insert(member.to_owned(), value.clone());
        }
        _ => remove(to, member),
    }
}
