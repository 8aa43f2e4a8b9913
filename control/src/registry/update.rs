//! Updates: the guarded read-change-write that every change of an existing object goes through.

use std::sync::Arc;

use api::{Kind, Status, object};
use bytes::Bytes;
use serde_json::Value;

use super::admission::{self, Operation};
use super::create::{check_fields, check_namespace, encode, set_type};
use super::list::parse_version;
use super::{
    Object, Part, Registry, Target, WRITE_ATTEMPTS_MAX, WriteOptions, Written, error, keys, strategies,
};
use crate::object_store::{
    Condition, Consistency, Mutation, ObjectStore, StoredObject, Transaction, TransactionOutcome,
};

/// What a change wants done with the object it was shown.
pub(super) enum Step {
    /// Store this instead.
    Put(Value),
    /// Remove it.
    Delete,
    /// Leave it as it is.
    Keep,
}

/// What became of an object.
pub(super) struct Stepped {
    pub(super) object: Arc<Object>,
    pub(super) removed: bool,
}

impl Registry {
    /// Replaces an object, or the part of it that the target names. If the new object carries a resource
    /// version, the write is made only if the object still has it.
    pub async fn update(
        &self,
        target: Target<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let warnings = check_fields(target.kind, &mut object, options)?;
        check_namespace(target.kind, target.namespace, &mut object)?;
        check_name(target, &mut object)?;
        let expected = expected_version(&object)?;
        let stepped = self
            .step(target, options.dry_run, options.fence, |current| {
                if expected.is_some_and(|expected| expected != current.revision()) {
                    return Err(Status::modified(target.kind, target.name));
                }
                guarded(target, options, current.value(), prepare(target, current.value(), object.clone())?)
            })
            .await?;
        Ok(Written { object: stepped.object, warnings, removed: stepped.removed })
    }

    /// Reads an object, lets `change` alter it, and writes it if it still is the one that was read; else
    /// once more with the newer one. `change` may be called several times. If it changes nothing, nothing
    /// is written.
    pub async fn modify(
        &self,
        target: Target<'_>,
        options: &WriteOptions,
        mut change: impl FnMut(&mut Value) -> Result<(), Status> + Send,
    ) -> Result<Written, Status> {
        let stepped = self
            .step(target, options.dry_run, options.fence, |current| {
                let mut object = current.value().clone();
                change(&mut object)?;
                guarded(target, options, current.value(), prepare(target, current.value(), object)?)
            })
            .await?;
        Ok(Written { object: stepped.object, warnings: Vec::new(), removed: stepped.removed })
    }

    /// The loop under every change. The first look is local and cheap; whatever it leads to other than a
    /// write that the log accepted is decided anew on the newest state.
    pub(super) async fn step(
        &self,
        target: Target<'_>,
        dry_run: bool,
        fence: Option<u64>,
        mut change: impl FnMut(&Object) -> Result<Step, Status> + Send,
    ) -> Result<Stepped, Status> {
        let key = keys::object(target.kind, target.namespace, target.name);
        let mut newest = dry_run;
        let mut known: Option<StoredObject> = None;
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let stored = match known.take() {
                Some(stored) => Some(stored),
                None => self.read_stored(&key, newest).await?,
            };
            let Some(current) = stored.map(|stored| Object::new(target.kind, stored)) else {
                if newest {
                    return Err(Status::not_found(target.kind, target.name));
                }
                newest = true;
                continue;
            };
            let step = match change(&current) {
                Err(_) if !newest => {
                    newest = true;
                    continue;
                }
                step => step?,
            };
            let (mutation, value) = match step {
                Step::Keep => (None, Bytes::new()),
                Step::Delete => (Some(Mutation::Delete { key: key.clone() }), current.stored().value.clone()),
                Step::Put(object) => match encode(&object) {
                    same if same == current.stored().value => (None, same),
                    value => (Some(Mutation::Put { key: key.clone(), value: value.clone() }), value),
                },
            };
            let Some(mutation) = mutation else {
                if newest {
                    return Ok(Stepped { object: Arc::new(current), removed: false });
                }
                newest = true;
                continue;
            };
            let removed = matches!(mutation, Mutation::Delete { .. });
            let revision = match dry_run {
                true => Ok(current.revision()),
                false => self.commit(&current, mutation, fence).await?,
            };
            match revision {
                Ok(revision) => {
                    let create_revision = current.stored().create_revision;
                    let stored =
                        StoredObject { key: key.clone(), value, create_revision, mod_revision: revision };
                    return Ok(Stepped { object: Arc::new(Object::new(target.kind, stored)), removed });
                }
                Err(now) => {
                    newest = true;
                    known = now;
                    if known.is_none() {
                        return Err(Status::not_found(target.kind, target.name));
                    }
                }
            }
        }
        Err(Status::modified(target.kind, target.name))
    }

    async fn read_stored(&self, key: &Bytes, newest: bool) -> Result<Option<StoredObject>, Status> {
        let consistency = if newest { Consistency::Linearizable } else { Consistency::Serializable };
        let (stored, _) = self.store().get(key.clone(), consistency).await.map_err(error::from_store)?;
        Ok(stored)
    }

    /// Commits one mutation of `current`: the new revision, or what stands there instead.
    async fn commit(
        &self,
        current: &Object,
        mutation: Mutation,
        fence: Option<u64>,
    ) -> Result<Result<u64, Option<StoredObject>>, Status> {
        let unchanged = Condition::Unchanged { key: current.key().clone(), mod_revision: current.revision() };
        let transaction = Transaction { conditions: vec![unchanged], mutations: vec![mutation], fence };
        match self.store().transact(transaction).await.map_err(error::from_store)? {
            TransactionOutcome::Committed { revision } => Ok(Ok(revision)),
            TransactionOutcome::ConditionFailed { mut current } => Ok(Err(current.pop().flatten())),
            TransactionOutcome::Fenced => Err(error::fenced()),
        }
    }
}

/// What of `new` may be written over `old`, defaulted, admitted and validated.
pub(super) fn prepare(target: Target<'_>, old: &Value, mut new: Value) -> Result<Step, Status> {
    let Target { kind, name, part, .. } = target;
    check_uid(kind, name, old, &new)?;
    set_type(kind, &mut new);
    keep_server_metadata(old, &mut new);
    match part {
        Part::Main => strategies::of(kind).prepare_update(old, &mut new),
        Part::Status => strategies::of(kind).prepare_status_update(old, &mut new),
        Part::Finalize => strategies::namespace::prepare_finalize(old, &mut new),
        Part::EphemeralContainers => strategies::pod::prepare_ephemeral_containers(old, &mut new),
    }
    api::defaults::apply(kind, &mut new);
    if kind.has_generation && new.get("spec") != old.get("spec") {
        object::set_generation(&mut new, object::generation(old) + 1);
    }
    if part == Part::Main {
        admission::admit(kind, Operation::Update, &mut new)?;
    }
    // Both sides of the comparison carry the version that was read: metadata validation demands one.
    let version = object::resource_version(old).to_owned();
    object::set_resource_version(&mut new, &version);
    let causes = match part {
        Part::EphemeralContainers => api::validation::ephemeral_containers(old, &new),
        _ => api::validation::update(kind, old, &new),
    };
    if !causes.is_empty() {
        return Err(Status::invalid(kind, name, causes));
    }
    object::set_metadata(&mut new, "resourceVersion", Value::Null);
    if strategies::is_finished(kind, &new) {
        return Ok(Step::Delete);
    }
    Ok(Step::Put(new))
}

/// Asks the writer's guard about a step.
pub(super) fn guarded(
    target: Target<'_>,
    options: &WriteOptions,
    old: &Value,
    step: Step,
) -> Result<Step, Status> {
    if let (Some(guard), Step::Put(new)) = (&options.guard, &step) {
        guard.check(target.kind, Some(old), new)?;
    }
    Ok(step)
}

fn check_name(target: Target<'_>, object: &mut Value) -> Result<(), Status> {
    let own = object::name(object);
    if own.is_empty() {
        let causes = vec![api::Cause::required("metadata.name", "name or generateName is required")];
        return match object::generate_name(object).is_empty() {
            true => Err(Status::invalid(target.kind, "", causes)),
            false => Err(Status::bad_request("name must be provided")),
        };
    }
    if own != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({})",
            target.name
        )));
    }
    Ok(())
}

fn expected_version(object: &Value) -> Result<Option<u64>, Status> {
    match object::resource_version(object) {
        "" | "0" => Ok(None),
        text => parse_version(text).map(Some),
    }
}

fn check_uid(kind: &'static Kind, name: &str, old: &Value, new: &Value) -> Result<(), Status> {
    let (has, wanted) = (object::uid(old), object::uid(new));
    if wanted.is_empty() || wanted == has {
        return Ok(());
    }
    Err(Status::conflict(
        kind,
        name,
        &format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {has}"),
    ))
}

/// Metadata that clients cannot change: what the store has stays, whatever the client sent.
fn keep_server_metadata(old: &Value, new: &mut Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "managedFields",
        "selfLink",
    ] {
        let kept = old["metadata"].get(field).cloned().unwrap_or(Value::Null);
        object::set_metadata(new, field, kept);
    }
}
