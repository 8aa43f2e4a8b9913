//! What callers of the registry ask for.

use std::sync::Arc;

use api::{FieldSelector, Kind, LabelSelector, Status};
use serde_json::Value;

use super::Disruption;

/// Which part of an object a request speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object; a plain write leaves its status alone.
    Main,
    /// Its status; such a write leaves everything but status, labels and annotations alone.
    Status,
    /// A namespace's `spec.finalizers`.
    Finalize,
    /// What is decided about a certificate signing request: its conditions.
    Approval,
    /// A pod's `spec.ephemeralContainers`, to which such a write only adds.
    EphemeralContainers,
}

impl Part {
    /// The subresource that the part is; empty for the object.
    pub fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Approval => "approval",
            Self::Finalize => "finalize",
            Self::EphemeralContainers => "ephemeralcontainers",
        }
    }
}

/// One object, or one part of it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The kind.
    pub kind: &'static Kind,
    /// The namespace; empty for a kind outside namespaces.
    pub namespace: &'a str,
    /// The name. For a creation: empty, as the object carries it.
    pub name: &'a str,
    /// The part that a write may change.
    pub part: Part,
}

impl<'a> Target<'a> {
    /// The object itself.
    pub fn new(kind: &'static Kind, namespace: &'a str, name: &'a str) -> Self {
        Self { kind, namespace, name, part: Part::Main }
    }

    /// Its status.
    pub fn status(kind: &'static Kind, namespace: &'a str, name: &'a str) -> Self {
        Self { part: Part::Status, ..Self::new(kind, namespace, name) }
    }
}

/// What to do about fields that the kind does not have, or that stand twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so in a warning.
    #[default]
    Warn,
    /// Refuse the write.
    Strict,
}

type GuardCheck = dyn Fn(&'static Kind, Option<&Value>, &Value) -> Result<(), Status> + Send + Sync;

/// What else must hold for a caller's write: given the kind, the object as it is and as it would be stored.
#[derive(Clone)]
pub struct Guard(Arc<GuardCheck>);

impl Guard {
    /// A guard that asks `check`; it may be asked several times for one write.
    pub fn new(
        check: impl Fn(&'static Kind, Option<&Value>, &Value) -> Result<(), Status> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(check))
    }

    /// Both guards, this one first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::new(move |kind, old, new| {
            self.check(kind, old, new)?;
            other.check(kind, old, new)
        })
    }

    pub(super) fn check(&self, kind: &'static Kind, old: Option<&Value>, new: &Value) -> Result<(), Status> {
        (self.0)(kind, old, new)
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Guard")
    }
}

/// Who writes, as far as `metadata.managedFields` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FieldManager {
    /// A part of the cluster, whose writes are not tracked.
    #[default]
    Untracked,
    /// Owns what the write changes.
    Updates(String),
    /// Owns what it applied; the object to write carries the entries already.
    Applies(String),
}

/// How a write is made.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Go through everything but the write itself.
    pub dry_run: bool,
    /// About unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Fields found to stand twice while the body was read, worded as warnings.
    pub duplicate_fields: Vec<String>,
    /// The raft term under which the writer leads: the write loses if another leader has taken over.
    pub fence: Option<u64>,
    /// What else the writer must be allowed to.
    pub guard: Option<Guard>,
    /// Who asks, as `UserInfo`, for webhooks and policies; `None`: a part of Barque.
    pub asker: Option<Arc<Value>>,
    /// Who writes.
    pub manager: FieldManager,
    /// The subresource through which the write comes, if the target does not tell; empty otherwise.
    pub subresource: &'static str,
}

/// How dependents of a deleted object fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Deleted after it.
    Background,
    /// Deleted before it.
    Foreground,
    /// Kept.
    Orphan,
}

/// How a deletion is made.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Go through everything but the write itself.
    pub dry_run: bool,
    /// Seconds that a pod has to stop; `None`: what the pod says; 0: remove at once.
    pub grace_period_s: Option<i64>,
    /// Only if the object still has this uid.
    pub uid: Option<String>,
    /// Only if the object still has this resource version.
    pub resource_version: Option<String>,
    /// What happens to dependents; `None`: what the object's own finalizers say, else as in the background.
    pub propagation: Option<Propagation>,
    /// Why a pod is taken from who runs it; the pod is told by the same write.
    pub disruption: Option<Disruption>,
    /// The raft term under which the writer leads: the write loses if another leader has taken over.
    pub fence: Option<u64>,
    /// Who asks, as `UserInfo`, for webhooks and policies; `None`: a part of Barque.
    pub asker: Option<Arc<Value>>,
}

impl DeleteOptions {
    /// Removes the object at once, if it is still the one with this uid.
    pub fn now(uid: &str) -> Self {
        Self { grace_period_s: Some(0), uid: Some(uid.to_owned()), ..Self::default() }
    }
}

/// How `resourceVersion` of a list is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// At exactly that version.
    Exact,
    /// At that version or a newer one.
    NotOlderThan,
}

/// What a list asks for.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Only objects with these labels.
    pub labels: LabelSelector,
    /// Only objects with these fields.
    pub fields: FieldSelector,
    /// At most this many; `None`: all.
    pub limit: Option<usize>,
    /// Where the page before ended.
    pub continue_token: Option<String>,
    /// `None`: the newest state; `"0"`: what this replica has.
    pub resource_version: Option<String>,
    /// How the version is meant.
    pub version_match: Option<VersionMatch>,
}

/// What a watch asks for.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Only objects with these labels.
    pub labels: LabelSelector,
    /// Only objects with these fields.
    pub fields: FieldSelector,
    /// Changes after this version; `None` or `"0"`: everything there is as `Added` first.
    pub resource_version: Option<String>,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// Everything there is as `Added` first, ended by a bookmark.
    pub send_initial_events: bool,
}
