//! Priority and fairness as users configure it: FlowSchemas and PriorityLevelConfigurations.
//!
//! Owns this replica's plan of them, made anew whenever one changes, and what every cluster begins with. Promises
//! that there is a plan at any time: before the objects were read, and whatever is deleted, the suggested or at
//! least the mandatory ones hold. Gives out no seats; `rest/fairness` does.

mod plan;
pub(crate) mod suggested;

use std::sync::Arc;

use api::Kind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::plan::{Flow, Plan};
use crate::object_store::SharedStore;
use crate::reflector::{Feed, Reflector, no_index};

/// The group of both kinds.
pub(crate) const GROUP: &str = api::kinds::FLOW_CONTROL_GROUP;

/// The kind of that name.
pub(crate) fn kind(name: &str) -> &'static Kind {
    api::kinds::by_kind(GROUP, "v1", name).expect("the table of kinds has those of flow control")
}

/// The plan that holds now; clones share it.
#[derive(Debug, Clone)]
pub struct FlowControl {
    plan: watch::Receiver<Arc<Plan>>,
}

impl FlowControl {
    /// Follows the objects of a store, in `tasks`, until `cancel` is cancelled.
    pub fn start(store: &SharedStore, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let follow = |name: &str| {
            let reflector = Reflector::new(store.clone(), kind(name), no_index);
            tasks.spawn(reflector.clone().run(cancel.clone()));
            reflector
        };
        let (schemas, levels) = (follow("FlowSchema"), follow("PriorityLevelConfiguration"));
        let (publisher, plan) = watch::channel(Arc::new(Plan::suggested()));
        let cancel = cancel.clone();
        tasks.spawn(async move {
            cancel.run_until_cancelled(publish(schemas, levels, publisher)).await;
        });
        Self { plan }
    }

    /// The plan of now.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        self.plan.borrow().clone()
    }

    /// A plan that stays as it is.
    #[cfg(test)]
    pub(crate) fn fixed() -> Self {
        Self { plan: watch::channel(Arc::new(Plan::suggested())).1 }
    }
}

async fn publish(
    schemas: Reflector<SharedStore>,
    levels: Reflector<SharedStore>,
    publisher: watch::Sender<Arc<Plan>>,
) {
    schemas.wait_synced().await;
    levels.wait_synced().await;
    let mut feeds = (Feed::new(schemas.clone()), Feed::new(levels.clone()));
    loop {
        while feeds.0.try_next().is_some() || feeds.1.try_next().is_some() {}
        let (all_schemas, all_levels) = (schemas.list(), levels.list());
        // Nobody has made any yet: the leader will.
        let plan = match all_levels.is_empty() && all_schemas.is_empty() {
            true => Plan::suggested(),
            false => Plan::of(
                all_schemas.iter().map(|object| object.value()),
                all_levels.iter().map(|object| object.value()),
            ),
        };
        publisher.send_replace(Arc::new(plan));
        tokio::select! {
            _ = feeds.0.next() => {}
            _ = feeds.1.next() => {}
        }
    }
}
