//! Revisions of StatefulSets and DaemonSets: each template that there was, as a ControllerRevision.
//!
//! Owns which revision is the newest, its name (owner and hash of the template), and how many old ones are kept.
//! A template that comes back gets its old revision with a new number, so that `kubectl rollout undo` and
//! `history` work as users know them.

use std::sync::Arc;

use api::{Kind, Status, object};
use serde_json::{Value, json};

use super::children::controller_of;
use super::owners::{Owner, Work};
use super::settled;
use crate::registry::{DeleteOptions, Object, Target};

/// The label of pods that says which revision they were made of.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
/// How often a hash is varied because another revision has the name.
const COLLISIONS_MAX: u64 = 16;

fn revision_kind() -> &'static Kind {
    api::kinds::by_kind("apps", "v1", "ControllerRevision")
        .expect("the table of kinds has ControllerRevision")
}

/// The part of an owner's spec that a revision keeps, as a strategic merge patch that replaces the template.
fn data_of(owner: &Value) -> Value {
    let mut template = owner["spec"]["template"].clone();
    if let Some(members) = template.as_object_mut() {
        members.insert("$patch".to_owned(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub(super) fn template_of(revision: &Object) -> Value {
    let mut template = revision.value()["data"]["spec"]["template"].clone();
    if let Some(members) = template.as_object_mut() {
        members.remove("$patch");
    }
    template
}

fn number(revision: &Object) -> i64 {
    revision.value()["revision"].as_i64().unwrap_or(0)
}

/// The hash part of a revision's name, as pods carry it. StatefulSets use the whole name.
pub(super) fn hash_of(revision: &Object) -> &str {
    object::label(revision.value(), HASH_LABEL).unwrap_or_else(|| revision.name())
}

/// The revisions of an owner, oldest first; the newest is that of the template which the owner has now.
pub(super) async fn history(
    work: &mut Work<'_>,
    owner: &Owner<'_>,
    collisions: u64,
) -> Result<Vec<Arc<Object>>, Status> {
    let uid = object::uid(owner.value());
    let all = work.context.every("apps", "ControllerRevision").list();
    let is_own = |revision: &&Arc<Object>| {
        revision.namespace() == owner.object.namespace()
            && controller_of(revision).is_some_and(|controller| controller.uid == uid)
    };
    let mut own: Vec<Arc<Object>> = all.iter().filter(is_own).cloned().collect();
    own.sort_by_key(|revision| (number(revision), revision.name().to_owned()));
    if owner.is_deleting && !own.is_empty() {
        return Ok(own);
    }
    let data = data_of(owner.value());
    let next = own.last().map_or(1, |newest| number(newest) + 1);
    if let Some(index) = own.iter().rposition(|revision| revision.value()["data"] == data) {
        if index + 1 < own.len() {
            let found = own.remove(index);
            own.push(renumber(work, &found, next).await?);
        }
        return Ok(own);
    }
    own.push(create(work, owner, &data, next, collisions).await?);
    Ok(own)
}

async fn renumber(work: &Work<'_>, revision: &Arc<Object>, next: i64) -> Result<Arc<Object>, Status> {
    let target = Target::new(revision_kind(), revision.namespace(), revision.name());
    let change = |value: &mut Value| {
        value["revision"] = json!(next);
        Ok(())
    };
    Ok(work.context.registry.modify(target, &work.options(), change).await?.object)
}

async fn create(
    work: &Work<'_>,
    owner: &Owner<'_>,
    data: &Value,
    next: i64,
    collisions: u64,
) -> Result<Arc<Object>, Status> {
    let mut refused = None;
    for collision in collisions..collisions + COLLISIONS_MAX {
        let mut bytes = data.to_string().into_bytes();
        if collision > 0 {
            bytes.extend_from_slice(&collision.to_le_bytes());
        }
        let hash = api::name::hash(&bytes);
        let name = format!("{}-{hash}", owner.object.name());
        let mut labels = owner.value()["spec"]["template"]["metadata"]["labels"].clone();
        if !labels.is_object() {
            labels = json!({});
        }
        labels[HASH_LABEL] = json!(hash);
        let revision = json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": owner.value()["metadata"]["annotations"],
                "ownerReferences": [owner.reference],
            },
            "data": data,
            "revision": next,
        });
        let namespace = owner.object.namespace();
        match work.context.registry.create(revision_kind(), namespace, revision, &work.options()).await {
            Ok(written) => return Ok(written.object),
            Err(status) if status.reason() == "AlreadyExists" => {
                let found = work.context.registry.get(revision_kind(), namespace, &name).await?;
                let is_ours = controller_of(&found)
                    .is_some_and(|controller| controller.uid == object::uid(owner.value()));
                // The watch is behind.
                if is_ours && found.value()["data"] == *data {
                    return Ok(found);
                }
                refused = Some(status);
            }
            Err(status) => return Err(status),
        }
    }
    Err(refused.unwrap_or_else(|| Status::internal("no name for a revision")))
}

/// Removes the oldest revisions beyond the number that is kept, unless pods are of them.
pub(super) async fn truncate(
    work: &Work<'_>,
    history: &[Arc<Object>],
    live: &[String],
    limit: i64,
) -> Result<(), Status> {
    let is_live =
        |revision: &Object| live.iter().any(|hash| hash == hash_of(revision) || hash == revision.name());
    let past = &history[..history.len().saturating_sub(1)];
    let unused: Vec<&Arc<Object>> = past.iter().filter(|revision| !is_live(revision)).collect();
    let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in &unused[..surplus] {
        let options = DeleteOptions {
            uid: Some(object::uid(revision.value()).to_owned()),
            fence: work.fence(),
            ..DeleteOptions::default()
        };
        let target = Target::new(revision_kind(), revision.namespace(), revision.name());
        settled(work.context.registry.delete(target, &options).await.map(drop))?;
    }
    Ok(())
}
