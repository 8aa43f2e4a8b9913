//! CustomResourceDefinitions: their names are accepted or not, and those that are deleted take the objects of
//! their kind with them.
//!
//! ```text
//! written ──► names free? ──► NamesAccepted, Established ──► served at every replica
//! deleted ──► Terminating ──► every object deleted and gone ──► finalizer goes ──► definition gone
//! ```

use std::time::Duration;

use api::crd::definition::{self, CLEANUP_FINALIZER};
use api::crd::{self, CustomKind, Names};
use api::{Status, object};
use serde_json::{Value, json};

use super::deleting::delete_all;
use super::work_queue::WorkQueue;
use super::{Context, options, settled};
use crate::leader::Epoch;
use crate::reflector::Feed;
use crate::registry::{Object, Target, definition_kind, status_from_store};

/// The wait before a definition is looked at again; it doubles up to the maximum.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let definitions = context.registry.kinds().definitions();
    definitions.wait_synced().await;
    let mut feed = Feed::new(definitions.clone());
    let mut queue: WorkQueue<String> = WorkQueue::new(RETRY_MIN, RETRY_MAX);
    loop {
        tokio::select! {
            delta = feed.next() => note(context, &mut queue, delta.object()),
            () = queue.wait() => {}
        }
        while let Some(delta) = feed.try_next() {
            note(context, &mut queue, delta.object());
        }
        for name in queue.take_due() {
            match reconcile(context, epoch, &name).await {
                Ok(true) => queue.forget(&name),
                Ok(false) => queue.retry(name),
                Err(status) => {
                    tracing::warn!(definition = name, %status, "the definition of a custom kind must wait");
                    queue.retry(name);
                }
            }
        }
    }
}

/// A change of one definition may free names for others of its group.
fn note(context: &Context, queue: &mut WorkQueue<String>, changed: &Object) {
    let group = &changed.value()["spec"]["group"];
    for other in context.registry.kinds().definitions().list() {
        if other.value()["spec"]["group"] == *group {
            queue.add(other.name().to_owned());
        }
    }
}

/// Brings a definition forward. `false`: something is still to come.
async fn reconcile(context: &Context, epoch: Epoch, name: &str) -> Result<bool, Status> {
    let definitions = context.registry.kinds().definitions();
    let Some(definition) = definitions.get("", name) else { return Ok(true) };
    if object::deletion_timestamp(definition.value()).is_some() {
        return terminate(context, epoch, &definition).await;
    }
    let others = definitions.list();
    let names = crd::accept(definition.value(), others.iter().map(|other| other.value()));
    let now = object::timestamp(context.registry.now());
    let mut wanted = definition.value().clone();
    set_names(&mut wanted, &names, &now);
    if wanted != *definition.value() {
        let uid = object::uid(definition.value()).to_owned();
        let change = |value: &mut Value| {
            if object::uid(value) == uid {
                set_names(value, &names, &now);
            }
            Ok(())
        };
        write_status(context, epoch, name, change).await?;
    }
    Ok(true)
}

async fn write_status(
    context: &Context,
    epoch: Epoch,
    name: &str,
    change: impl FnMut(&mut Value) -> Result<(), Status> + Send,
) -> Result<(), Status> {
    let target = Target::status(definition_kind(), "", name);
    settled(context.registry.modify(target, &options(epoch), change).await.map(drop))
}

fn set_names(definition: &mut Value, names: &Names, now: &str) {
    let mut condition = |ty: &str, status: bool, reason: &str, message: &str| {
        definition::set_condition(
            definition,
            json!({
                "type": ty, "status": if status { "True" } else { "False" }, "lastTransitionTime": now,
                "reason": reason, "message": message,
            }),
        );
    };
    match &names.conflict {
        None => condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
        Some((reason, message)) => condition("NamesAccepted", false, reason, message),
    }
    let was = definition::is_true(definition, "Established");
    let mut condition = |status: bool, reason: &str, message: &str| {
        definition::set_condition(
            definition,
            json!({
                "type": "Established", "status": if status { "True" } else { "False" }, "lastTransitionTime": now,
                "reason": reason, "message": message,
            }),
        );
    };
    // Once established, a definition stays so: a conflict only keeps the new names from it.
    if names.conflict.is_none() {
        condition(true, "InitialNamesAccepted", "the initial names have been accepted");
    } else if !was {
        condition(false, "NotAccepted", "not all names are accepted");
    }
    definition["status"]["acceptedNames"] = names.accepted.clone();
}

/// Deletes the objects of a definition that is on its way out; lets it go when there are none left.
async fn terminate(context: &Context, epoch: Epoch, definition: &Object) -> Result<bool, Status> {
    if !object::finalizers(definition.value()).any(|finalizer| finalizer == CLEANUP_FINALIZER) {
        return Ok(true);
    }
    let kinds = context.registry.kinds();
    kinds.refresh().await.map_err(status_from_store)?;
    let current = kinds.current();
    // In the version that is stored: a conversion webhook that is gone must not keep the kind.
    let is_stored = |own: &CustomKind| own.storage_api_version() == own.kind().api_version();
    let kind =
        current.custom_kinds().iter().find(|own| own.definition() == definition.name() && is_stored(own));
    let now = object::timestamp(context.registry.now());
    if kind.is_none() && definition::is_true(definition.value(), "Established") {
        return Err(Status::internal(
            "the kind is not served by this replica, so its objects cannot be deleted",
        ));
    }
    if let Some(kind) = kind {
        let left = delete_all(context, epoch, kind.kind(), None).await?;
        if left > 0 {
            let change = |value: &mut Value| {
                definition::set_condition(
                    value,
                    json!({
                        "type": "Terminating", "status": "True", "lastTransitionTime": now,
                        "reason": "InstanceDeletionInProgress", "message": "CustomResource deletion is in progress",
                    }),
                );
                Ok(())
            };
            write_status(context, epoch, definition.name(), change).await?;
            return Ok(false);
        }
    }
    let target = Target::new(definition_kind(), "", definition.name());
    let let_go = |value: &mut Value| {
        if let Some(finalizers) = value["metadata"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != CLEANUP_FINALIZER);
        }
        Ok(())
    };
    settled(context.registry.modify(target, &options(epoch), let_go).await.map(drop))?;
    tracing::info!(definition = definition.name(), "the custom kind and all its objects are gone");
    Ok(true)
}
