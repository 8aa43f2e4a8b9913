//! Garbage: objects whose owners are gone go too, and owners wait for their dependents if they were asked to.
//!
//! Owns what follows from `metadata.ownerReferences` and the finalizers `foregroundDeletion` and `orphan` (set
//! by the registry when a deletion asks for them), as "Garbage Collection" of the Kubernetes documentation
//! says. An object goes when none of its owners is left; that an owner is gone is believed only after the
//! store was asked, since the graph is built from watches that may lag. References to kinds that are not
//! served keep their object.
//!
//! ```text
//! owner deleted, background:  owner gone ──► dependents deleted
//!                foreground:  dependents deleted ──► those that block are gone ──► finalizer goes ──► owner gone
//!                orphan:      dependents forget the owner ──► finalizer goes ──► owner gone
//! ```

mod graph;

use std::time::Duration;

use api::object::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER};
use api::{Kind, Status, object};
use futures_util::future::select_all;
use serde_json::Value;
use tokio::sync::watch;

use self::graph::{Graph, Node, OwnerReference};
use super::work_queue::WorkQueue;
use super::{Context, options, settled};
use crate::leader::Epoch;
use crate::object_store::SharedStore;
use crate::reflector::{Delta, Feed, Reflector};
use crate::registry::{DeleteOptions, Propagation, Target};

/// The wait before an object is looked at again whose turn failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    for reflector in &context.everything {
        reflector.wait_synced().await;
    }
    let mut custom = context.custom.clone();
    let mut feeds: Vec<Feed<SharedStore>> = context.everything.iter().cloned().map(Feed::new).collect();
    let fixed = feeds.len();
    let mut collector = Collector {
        context,
        epoch,
        graph: Graph::default(),
        queue: WorkQueue::new(RETRY_AFTER, RETRY_AFTER),
    };
    loop {
        follow_custom(&mut feeds, fixed, &mut custom, &mut collector).await;
        // Everything is in the graph before anything is judged.
        collector.take_in(&mut feeds);
        for uid in collector.queue.take_due() {
            let outcome = collector.turn(&uid).await;
            collector.queue.ended(uid, outcome);
            collector.take_in(&mut feeds);
        }
        tokio::select! {
            (delta, ..) = select_all(feeds.iter_mut().map(|feed| Box::pin(feed.next()))) => collector.note(&delta),
            () = collector.queue.wait() => {}
            _ = custom.changed() => custom.mark_changed(),
        }
    }
}

/// Follows the custom kinds there are now. What is gone takes its objects along.
async fn follow_custom(
    feeds: &mut Vec<Feed<SharedStore>>,
    fixed: usize,
    custom: &mut watch::Receiver<Option<Vec<Reflector<SharedStore>>>>,
    collector: &mut Collector<'_>,
) {
    let is_first = feeds.len() == fixed && collector.graph.is_empty();
    if !is_first && !custom.has_changed().unwrap_or(false) {
        return;
    }
    // An error says that the replica stops.
    let Ok(reflectors) = custom.wait_for(Option::is_some).await.map(|reflectors| reflectors.clone()) else {
        return;
    };
    custom.mark_unchanged();
    let reflectors = reflectors.unwrap_or_default();
    let is_there = |kind: &Kind| reflectors.iter().any(|reflector| std::ptr::eq(reflector.kind(), kind));
    let mut gone = Vec::new();
    let mut index = 0;
    feeds.retain(|feed| {
        index += 1;
        let keep = index <= fixed || is_there(feed.kind());
        if !keep {
            gone.push(feed.kind());
        }
        keep
    });
    for kind in gone {
        for uid in collector.graph.forget_kind(kind) {
            collector.queue.add(uid);
        }
    }
    for reflector in &reflectors {
        if !feeds[fixed..].iter().any(|feed| std::ptr::eq(feed.kind(), reflector.kind())) {
            reflector.wait_synced().await;
            feeds.push(Feed::new(reflector.clone()));
        }
    }
}

struct Collector<'a> {
    context: &'a Context,
    epoch: Epoch,
    graph: Graph,
    /// By uid.
    queue: WorkQueue<String>,
}

/// How an object's owners are.
#[derive(Default)]
struct Owners {
    /// There, and staying.
    solid: Vec<String>,
    /// There, and waiting for their dependents to go.
    waiting: Vec<String>,
    /// Gone.
    gone: Vec<String>,
}

impl Collector<'_> {
    fn take_in(&mut self, feeds: &mut [Feed<SharedStore>]) {
        for feed in feeds {
            while let Some(delta) = feed.try_next() {
                self.note(&delta);
            }
        }
    }

    fn note(&mut self, delta: &Delta) {
        for uid in self.graph.apply(delta) {
            self.queue.add(uid);
        }
    }

    /// Does what is to do about one object now.
    async fn turn(&mut self, uid: &str) -> Result<(), Status> {
        let Some(node) = self.graph.get(uid).cloned() else { return Ok(()) };
        if node.orphans_dependents() {
            return self.orphan(uid, &node).await;
        }
        if node.waits_for_dependents() {
            let mut blocking = self.graph.dependents(uid).filter(|(_, dependent)| {
                dependent.owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion)
            });
            if blocking.next().is_none() {
                self.remove_finalizer(&node, uid, FOREGROUND_FINALIZER).await?;
            }
        }
        if node.is_deleting || node.owners.is_empty() {
            return Ok(());
        }
        let owners = self.owners(&node).await?;
        if owners.gone.is_empty() && owners.waiting.is_empty() {
            return Ok(());
        }
        if owners.solid.is_empty() {
            return self.delete(uid, &node, &owners).await;
        }
        let left: Vec<String> = owners.gone.into_iter().chain(owners.waiting).collect();
        self.forget(uid, &node, &left).await
    }

    async fn owners(&self, node: &Node) -> Result<Owners, Status> {
        let mut owners = Owners::default();
        for owner in &node.owners {
            let list = match self.graph.get(&owner.uid) {
                Some(known) if known.waits_for_dependents() && owner.block_owner_deletion => {
                    &mut owners.waiting
                }
                Some(_) => &mut owners.solid,
                None if self.is_gone(node, owner).await? => &mut owners.gone,
                None => &mut owners.solid,
            };
            list.push(owner.uid.clone());
        }
        Ok(owners)
    }

    /// Whether the store has no such owner.
    async fn is_gone(&self, node: &Node, owner: &OwnerReference) -> Result<bool, Status> {
        let (group, _) = api::kinds::split_api_version(&owner.api_version);
        let kinds = self.context.registry.kinds().current();
        let Some(kind) = kinds.by_group_kind(group, &owner.kind) else { return Ok(false) };
        if kind.namespaced && node.namespace.is_empty() {
            // Nothing outside namespaces can belong to something inside one.
            return Ok(false);
        }
        let namespace = if kind.namespaced { node.namespace.as_str() } else { "" };
        match self.context.registry.get(kind, namespace, &owner.name).await {
            Ok(found) => Ok(object::uid(found.value()) != owner.uid),
            Err(status) if status.reason() == "NotFound" => Ok(true),
            Err(status) => Err(status),
        }
    }

    async fn delete(&mut self, uid: &str, node: &Node, owners: &Owners) -> Result<(), Status> {
        let has_dependents = self.graph.dependents(uid).next().is_some();
        let propagation = match owners.waiting.is_empty() || !has_dependents {
            true => None,
            // Who waits for this one waits for what belongs to it, too.
            false => Some(Propagation::Foreground),
        };
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            propagation,
            fence: self.epoch.fence(),
            ..DeleteOptions::default()
        };
        let target = Target::new(node.kind, &node.namespace, &node.name);
        tracing::info!(
            kind = node.kind.kind,
            name = node.name,
            namespace = node.namespace,
            "its owners are gone"
        );
        settled(self.context.registry.delete(target, &options).await.map(drop))
    }

    /// Takes owners out of an object.
    async fn forget(&self, uid: &str, node: &Node, owners: &[String]) -> Result<(), Status> {
        let target = Target::new(node.kind, &node.namespace, &node.name);
        let change = |value: &mut Value| {
            if object::uid(value) == uid
                && let Some(references) = value["metadata"]["ownerReferences"].as_array_mut()
            {
                references.retain(|reference| !owners.iter().any(|owner| reference["uid"] == owner.as_str()));
            }
            Ok(())
        };
        settled(self.context.registry.modify(target, &options(self.epoch), change).await.map(drop))
    }

    async fn orphan(&self, uid: &str, node: &Node) -> Result<(), Status> {
        let owner = [uid.to_owned()];
        for (dependent, of) in self.graph.dependents(uid) {
            self.forget(dependent, of, &owner).await?;
        }
        self.remove_finalizer(node, uid, ORPHAN_FINALIZER).await
    }

    async fn remove_finalizer(&self, node: &Node, uid: &str, name: &str) -> Result<(), Status> {
        let target = Target::new(node.kind, &node.namespace, &node.name);
        let change = |value: &mut Value| {
            if object::uid(value) == uid
                && let Some(finalizers) = value["metadata"]["finalizers"].as_array_mut()
            {
                finalizers.retain(|finalizer| finalizer != name);
            }
            Ok(())
        };
        settled(self.context.registry.modify(target, &options(self.epoch), change).await.map(drop))
    }
}

#[cfg(test)]
mod tests;
