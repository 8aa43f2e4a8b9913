//! The kinds that this replica serves: the built-in ones and those that CustomResourceDefinitions register.
//!
//! Owns the snapshot of served kinds, kept current by a reflector of the definitions. Promises that a kind
//! whose definition was established before a request began is found, at any replica: what the snapshot does
//! not know is looked up in the store before it counts as unknown. Does not decide about definitions; the
//! leader's controller does.

use std::sync::{Arc, Mutex, PoisonError};

use api::Kind;
use api::crd::{CustomKind, KindSet, ROWS_MAX, Rows, definition};
use api::kinds::EXTENSIONS_GROUP;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::keys;
use crate::object_store::{Consistency, Error, ObjectStore, SharedStore};
use crate::reflector::{Feed, Reflector, no_index};

/// The kind of CustomResourceDefinitions.
pub(crate) fn definition_kind() -> &'static Kind {
    api::kinds::by_kind(EXTENSIONS_GROUP, "v1", "CustomResourceDefinition")
        .expect("the table of kinds has CustomResourceDefinition")
}

/// The handle; clones share everything.
#[derive(Debug, Clone)]
pub struct Kinds {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: SharedStore,
    definitions: Reflector<SharedStore>,
    rows: Rows,
    current: watch::Sender<Arc<KindSet>>,
    /// Held while the snapshot is made, so that it only moves forward.
    publishing: Mutex<()>,
}

impl Kinds {
    /// Follows the definitions of a store, in `tasks`, until `cancel` is cancelled.
    pub(super) fn start(store: SharedStore, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let definitions = Reflector::new(store.clone(), definition_kind(), no_index);
        tasks.spawn(definitions.clone().run(cancel.clone()));
        let current = watch::Sender::new(Arc::new(KindSet::default()));
        let inner = Inner { store, definitions, rows: Rows::default(), current, publishing: Mutex::new(()) };
        let kinds = Self { inner: Arc::new(inner) };
        let (following, cancel) = (kinds.clone(), cancel.clone());
        tasks.spawn(async move {
            cancel.run_until_cancelled(following.follow()).await;
        });
        kinds
    }

    /// The kinds served now.
    pub fn current(&self) -> Arc<KindSet> {
        self.inner.current.borrow().clone()
    }

    /// The kinds served now, and whenever they change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<KindSet>> {
        self.inner.current.subscribe()
    }

    /// Every definition.
    pub(crate) fn definitions(&self) -> &Reflector<SharedStore> {
        &self.inner.definitions
    }

    /// Takes in every definition that was acknowledged before this call, by whichever replica.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        self.inner.definitions.sync().await?;
        self.publish();
        Ok(())
    }

    /// Looks a resource up that the snapshot does not know: whether it knows it now.
    pub(crate) async fn learn(&self, group: &str, plural: &str) -> bool {
        // Definitions of groups without a dot cannot be; most mistyped paths end here.
        if !group.contains('.') || plural.contains('/') {
            return false;
        }
        let key = keys::object(definition_kind(), "", &format!("{plural}.{group}"));
        let Ok((Some(stored), _)) = self.inner.store.get(key, Consistency::Linearizable).await else {
            return false;
        };
        let is_known = self.inner.definitions.get("", &format!("{plural}.{group}"));
        if is_known.is_some_and(|known| known.revision() >= stored.mod_revision) {
            self.publish();
            return true;
        }
        self.refresh().await.is_ok()
    }

    async fn follow(&self) {
        self.inner.definitions.wait_synced().await;
        let mut feed = Feed::new(self.inner.definitions.clone());
        loop {
            while feed.try_next().is_some() {}
            self.publish();
            let _ = feed.next().await;
        }
    }

    /// Makes the snapshot anew from the copy of the definitions. What did not change is kept, since patterns
    /// and rules are costly to read.
    fn publish(&self) {
        let _turn = self.inner.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        let mut is_same = true;
        let mut custom: Vec<Arc<CustomKind>> = Vec::new();
        for object in self.inner.definitions.list() {
            let known = current.custom_kinds().iter().filter(|own| own.definition() == object.name());
            let known: Vec<Arc<CustomKind>> =
                known.filter(|own| own.revision() == object.revision()).cloned().collect();
            if known.is_empty() && definition::is_true(object.value(), "Established") {
                is_same = false;
                let made = CustomKind::of(object.value(), object.revision(), &self.inner.rows);
                if made.is_empty() {
                    tracing::error!(
                        definition = object.name(),
                        rows_max = ROWS_MAX,
                        "the kind is not served: this process has made too many kinds; restart the replica"
                    );
                }
                custom.extend(made);
            } else {
                custom.extend(known);
            }
        }
        if !is_same || custom.len() != current.custom_kinds().len() {
            self.inner.current.send_replace(Arc::new(KindSet::new(custom)));
        }
    }
}
