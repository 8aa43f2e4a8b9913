//! The registry: the one place where objects are read and written.
//!
//! Owns the write path, the same for every kind: decode → default → admit → validate → conditional write.
//! Per-kind rules are small modules in `strategies/` (what a write may change) and `admission/` (what is
//! filled in or refused). Promises that every write names the version it saw, that readers at one replica
//! never see a resource version go back, and that errors are worded as the Kubernetes API server words them.
//! Does not know HTTP, identities or who leads.
//!
//! ```text
//!   REST, gRPC, controllers, scheduler, node sessions
//!        │ get list watch create update patch modify delete
//!   [registry] ── strategies, admission, api's rules
//!        │ one conditional transaction per write        ▲ events
//!   [object store]                                  [cacher]: one store watch per kind, shared
//! ```

mod admission;
mod binding;
mod cacher;
mod continue_token;
mod create;
mod delete;
mod error;
mod event;
pub mod keys;
mod list;
mod object;
mod options;
mod patch;
mod strategies;
mod update;
mod watch;

use std::sync::Arc;

use api::{Kind, Status};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::binding::{BindError, Binding};
pub use self::create::bootstrap_namespaces;
pub(crate) use self::create::check_fields;
pub use self::delete::Deleted;
pub use self::error::from_store as status_from_store;
pub use self::event::{EventRecord, EventRecorder, EventType, Regarding};
pub use self::list::ObjectList;
pub use self::object::Object;
pub use self::options::{
    DeleteOptions, FieldValidation, Guard, ListOptions, Part, Propagation, Target, VersionMatch,
    WatchOptions, WriteOptions,
};
pub use self::patch::Patch;
pub use self::watch::{Change, Notice, ObjectEvent, Watch};
use crate::object_store::{Consistency, ObjectStore, SharedStore};

/// How often a write is tried anew because the object changed between reading and writing.
pub const WRITE_ATTEMPTS_MAX: usize = 16;

/// What a write gave.
#[derive(Debug, Clone)]
pub struct Written {
    /// The object as it now is (as it would be, for a dry run).
    pub object: Arc<Object>,
    /// What the client should be told, for example about unknown fields.
    pub warnings: Vec<String>,
    /// Whether the write removed the object (its last finalizer went).
    pub removed: bool,
}

/// The handle; clones are cheap and share everything.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: SharedStore,
    cachers: cacher::Cachers,
}

impl Registry {
    /// A registry over a store. Its watch fan-out tasks run in `tasks` until `cancel` is cancelled.
    pub fn new(store: SharedStore, tasks: TaskTracker, cancel: CancellationToken) -> Self {
        let cachers = cacher::Cachers::new(store.clone(), tasks, cancel);
        Self { inner: Arc::new(Inner { store, cachers }) }
    }

    /// The store below.
    pub fn store(&self) -> &SharedStore {
        &self.inner.store
    }

    /// The time written into objects.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Reads one object as of now, at any replica.
    pub async fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.read(kind, namespace, name, Consistency::Linearizable)
            .await?
            .ok_or_else(|| Status::not_found(kind, name))
    }

    /// Reads one object as this replica has it; `None` if it has none.
    pub async fn get_local(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        self.read(kind, namespace, name, Consistency::Serializable).await
    }

    async fn read(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        consistency: Consistency,
    ) -> Result<Option<Arc<Object>>, Status> {
        let key = keys::object(kind, namespace, name);
        let (stored, _) = self.inner.store.get(key, consistency).await.map_err(error::from_store)?;
        Ok(stored.map(|stored| Arc::new(Object::new(kind, stored))))
    }
}
