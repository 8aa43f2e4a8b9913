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
//!        │ get list watch create update patch apply modify delete
//!   [registry] ── strategies, admission, api's rules
//!        │ one conditional transaction per write        ▲ events
//!   [object store]                                  [cacher]: one store watch per kind, shared
//! ```

mod admission;
mod apply;
mod binding;
mod cacher;
mod continue_token;
mod conversion;
mod create;
mod delete;
mod disruption;
mod error;
mod event;
mod eviction;
mod guarded_status;
pub mod keys;
mod kinds;
mod list;
mod object;
mod options;
mod patch;
mod policies;
mod reservations;
mod rules;
mod scale;
mod strategies;
mod update;
mod watch;
mod webhook_client;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::{Kind, Status};
use jiff::Timestamp;
use streams::PodStreams;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::apply::Application;
pub use self::binding::{BindError, Binding};
pub use self::create::bootstrap_namespaces;
pub(crate) use self::create::check_fields;
pub use self::delete::Deleted;
pub use self::disruption::Disruption;
pub(crate) use self::disruption::set_condition;
pub use self::error::from_store as status_from_store;
pub use self::event::{EventRecord, EventRecorder, EventType, Regarding};
pub use self::kinds::Kinds;
pub(crate) use self::kinds::definition_kind;
pub use self::list::ObjectList;
pub use self::object::Object;
pub use self::options::{
    DeleteOptions, FieldManager, FieldValidation, Guard, ListOptions, Part, Propagation, Target,
    VersionMatch, WatchOptions, WriteOptions,
};
pub use self::patch::Patch;
pub(crate) use self::reservations::BALANCER_CLASS;
pub use self::reservations::ServiceRanges;
pub(crate) use self::rules::Rules;
pub use self::scale::{Scale, set_replicas};
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
    kinds: Kinds,
    webhooks: webhook_client::WebhookClient,
    converter: conversion::Converter,
    policies: policies::Policies,
    quota_turns: admission::quota::Turns,
    cachers: cacher::Cachers,
    service_ranges: ServiceRanges,
    leaves_new_nodes: AtomicBool,
}

impl Registry {
    /// A registry over a store, with the usual ranges for Services. Its tasks (watch fan-out, definitions of
    /// custom kinds, what users configured about writes) run in `tasks` until `cancel` is cancelled.
    pub fn new(store: SharedStore, tasks: TaskTracker, cancel: CancellationToken) -> Self {
        Self::with_ranges(store, ServiceRanges::default(), tasks, cancel)
    }

    /// The same, with ranges of one's own.
    pub fn with_ranges(
        store: SharedStore,
        service_ranges: ServiceRanges,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let kinds = Kinds::start(store.clone(), &tasks, &cancel);
        let policies = policies::Policies::start(&store, &tasks, &cancel);
        let webhooks = webhook_client::WebhookClient::new(store.clone());
        let converter = conversion::Converter::new(webhooks.clone());
        let cachers = cacher::Cachers::new(store.clone(), kinds.clone(), converter.clone(), (tasks, cancel));
        let quota_turns = admission::quota::Turns::default();
        let leaves_new_nodes = AtomicBool::new(false);
        Self {
            inner: Arc::new(Inner {
                store,
                kinds,
                webhooks,
                converter,
                policies,
                quota_turns,
                cachers,
                service_ranges,
                leaves_new_nodes,
            }),
        }
    }

    /// From where Services get their addresses and ports.
    pub fn service_ranges(&self) -> &ServiceRanges {
        &self.inner.service_ranges
    }

    /// From now on, nodes that clients make are not tainted as not ready.
    pub fn leave_new_nodes(&self) {
        self.inner.leaves_new_nodes.store(true, Ordering::Relaxed);
    }

    fn taints_new_nodes(&self) -> bool {
        !self.inner.leaves_new_nodes.load(Ordering::Relaxed)
    }

    /// From now on, webhooks that stand behind Services are called through these, as long as somebody else keeps
    /// them. The first ones stay.
    pub fn reach_pods_through(&self, streams: &Arc<dyn PodStreams>) {
        self.inner.webhooks.reach_pods_through(streams);
    }

    /// What calls webhooks.
    fn webhooks(&self) -> &webhook_client::WebhookClient {
        &self.inner.webhooks
    }

    /// The store below.
    pub fn store(&self) -> &SharedStore {
        &self.inner.store
    }

    /// The kinds that this replica serves.
    pub fn kinds(&self) -> &Kinds {
        &self.inner.kinds
    }

    /// What users configured about writes.
    fn policies(&self) -> &policies::Policies {
        &self.inner.policies
    }

    /// Whose turn it is to be charged to quotas.
    fn quota_turns(&self) -> &admission::quota::Turns {
        &self.inner.quota_turns
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
        let rules = self.rules(kind)?;
        let key = keys::object(kind, namespace, name);
        let (stored, _) = self.inner.store.get(key, consistency).await.map_err(error::from_store)?;
        let Some(stored) = stored else { return Ok(None) };
        Ok(Some(Arc::new(self.converter().open_one(&rules, stored).await?)))
    }
}
