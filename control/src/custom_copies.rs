//! This replica's copies of the objects of custom kinds, for who follows owners: one reflector for each kind,
//! begun when its definition is served and ended when that goes.

use std::collections::HashMap;
use std::sync::Arc;

use api::crd::KindSet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::object_store::SharedStore;
use crate::reflector::{Reflector, no_index};
use crate::registry::Registry;

/// The reflectors there are now; `None` until the definitions were read for the first time.
pub(crate) type Copies = watch::Receiver<Option<Vec<Reflector<SharedStore>>>>;

/// Keeps the copies, in `tasks`, until `cancel` is cancelled.
pub(crate) fn start(
    store: &SharedStore,
    registry: &Registry,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Copies {
    let (publisher, copies) = watch::channel(None);
    let (store, registry) = (store.clone(), registry.clone());
    let (tasks_inside, cancel) = (tasks.clone(), cancel.clone());
    tasks.spawn(async move {
        let keeper = Keeper { store, tasks: tasks_inside, cancel: cancel.clone(), running: HashMap::new() };
        cancel.run_until_cancelled(keeper.run(&registry, publisher)).await;
    });
    copies
}

struct Keeper {
    store: SharedStore,
    tasks: TaskTracker,
    cancel: CancellationToken,
    /// By group and plural: versions of a kind show the same objects.
    running: HashMap<(&'static str, &'static str), (Reflector<SharedStore>, CancellationToken)>,
}

impl Keeper {
    async fn run(
        mut self,
        registry: &Registry,
        publisher: watch::Sender<Option<Vec<Reflector<SharedStore>>>>,
    ) {
        let kinds = registry.kinds();
        let mut changes = kinds.subscribe();
        kinds.definitions().wait_synced().await;
        let mut current: Arc<KindSet> = changes.borrow_and_update().clone();
        loop {
            self.follow(&current);
            let all = self.running.values().map(|(reflector, _)| reflector.clone()).collect();
            publisher.send_replace(Some(all));
            if changes.changed().await.is_err() {
                return;
            }
            current = changes.borrow_and_update().clone();
        }
    }

    fn follow(&mut self, kinds: &KindSet) {
        let is_there = |key: &(&str, &str)| {
            kinds.custom_kinds().iter().any(|own| (own.kind().group, own.kind().plural) == *key)
        };
        self.running.retain(|key, (_, stop)| {
            let keep = is_there(key);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for custom in kinds.custom_kinds() {
            let kind = custom.kind();
            self.running.entry((kind.group, kind.plural)).or_insert_with(|| {
                let stop = self.cancel.child_token();
                let reflector = Reflector::new(self.store.clone(), kind, no_index);
                self.tasks.spawn(reflector.clone().run(stop.clone()));
                (reflector, stop)
            });
        }
    }
}
