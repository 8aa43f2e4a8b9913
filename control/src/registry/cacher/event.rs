//! One change of one object, shared by all that watch it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::object_store::WatchEvent;
use crate::registry::{Object, Rules};

/// What happened to an object, as far as a watcher can see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It came into view.
    Added,
    /// It changed.
    Modified,
    /// It went out of view.
    Deleted,
}

impl Change {
    /// The `type` of a Kubernetes watch event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change with everything about it that is computed once for all watchers.
#[derive(Debug)]
pub(in crate::registry) struct SharedEvent {
    object: Arc<Object>,
    previous: Option<Object>,
    deleted: bool,
    lines: [OnceLock<Bytes>; 3],
    frames: [OnceLock<Option<Bytes>>; 3],
}

impl SharedEvent {
    pub(in crate::registry) fn new(rules: &Rules, event: WatchEvent) -> Self {
        Self {
            object: Arc::new(rules.object(event.object)),
            previous: event.previous.map(|previous| rules.object(previous)),
            deleted: event.deleted,
            lines: Default::default(),
            frames: Default::default(),
        }
    }

    /// An object that a watch begins with.
    pub(in crate::registry) fn initial(object: Arc<Object>) -> Self {
        Self { object, previous: None, deleted: false, lines: Default::default(), frames: Default::default() }
    }

    pub(in crate::registry) fn object(&self) -> &Arc<Object> {
        &self.object
    }

    pub(in crate::registry) fn previous(&self) -> Option<&Object> {
        self.previous.as_ref()
    }

    pub(in crate::registry) fn is_deletion(&self) -> bool {
        self.deleted
    }

    pub(in crate::registry) fn change(&self) -> Change {
        match (self.deleted, &self.previous) {
            (true, _) => Change::Deleted,
            (false, None) => Change::Added,
            (false, Some(_)) => Change::Modified,
        }
    }
}

/// A change as one watcher sees it.
#[derive(Debug, Clone)]
pub struct ObjectEvent {
    change: Change,
    shared: Arc<SharedEvent>,
}

impl ObjectEvent {
    pub(in crate::registry) fn new(change: Change, shared: Arc<SharedEvent>) -> Self {
        Self { change, shared }
    }

    /// What happened.
    pub fn change(&self) -> Change {
        self.change
    }

    /// The object after the change; for a deletion as it last was, with the deletion's revision.
    pub fn object(&self) -> &Arc<Object> {
        &self.shared.object
    }

    /// The event as a line of a Kubernetes watch stream; written once for all watchers.
    pub fn json_line(&self) -> Bytes {
        let line = self.shared.lines[self.change as usize].get_or_init(|| {
            let mut out = Vec::with_capacity(self.shared.object.json_bytes_max() + 40);
            out.extend_from_slice(b"{\"type\":\"");
            out.extend_from_slice(self.change.as_str().as_bytes());
            out.extend_from_slice(b"\",\"object\":");
            self.shared.object.write_json(&mut out);
            out.extend_from_slice(b"}\n");
            Bytes::from(out)
        });
        line.clone()
    }

    /// The event as a frame of a stream in Kubernetes protobuf; written once for all watchers. `None` if the kind
    /// has no message there.
    pub fn protobuf_frame(&self) -> Option<Bytes> {
        let frame = self.shared.frames[self.change as usize].get_or_init(|| {
            let object = self.shared.object.protobuf()?;
            Some(Bytes::from(api::protobuf::watch_frame(self.change.as_str(), &object)))
        });
        frame.clone()
    }
}
