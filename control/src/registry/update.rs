//! Updates: the guarded read-change-write that every change of an existing object goes through.

use std::sync::Arc;

use api::quota::charges_updates;
use api::{Kind, Status, object};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::MutexGuard;

use super::admission::quota::Charges;
use super::admission::{self, Operation};
use super::conversion::Encoded;
use super::create::{check_namespace, set_type};
use super::list::parse_version;
use super::policies::Asked;
use super::reservations::Free;
use super::{
    DeleteOptions, Object, Part, Registry, Rules, Target, WRITE_ATTEMPTS_MAX, WriteOptions, Written, apply,
    error, keys, reservations, strategies,
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

/// How a commit ended.
enum Committed {
    /// At this revision.
    At(u64),
    /// The object is another one by now, or gone.
    Changed(Option<StoredObject>),
    /// The object is the same, but another one has what it would reserve under this key.
    Taken(Bytes),
}

/// What became of an object.
pub(super) struct Stepped {
    pub(super) object: Arc<Object>,
    pub(super) removed: bool,
    /// What webhooks and policies have to say.
    pub(super) warnings: Vec<String>,
}

/// How a step is made.
#[derive(Clone, Copy)]
pub(super) enum Run<'a> {
    /// A write.
    Write(&'a WriteOptions),
    /// A deletion.
    Delete(&'a DeleteOptions),
}

impl<'a> Run<'a> {
    fn dry_run(self) -> bool {
        match self {
            Self::Write(options) => options.dry_run,
            Self::Delete(options) => options.dry_run,
        }
    }

    fn fence(self) -> Option<u64> {
        match self {
            Self::Write(options) => options.fence,
            Self::Delete(options) => options.fence,
        }
    }

    fn asked(self, target: Target<'a>) -> Asked<'a> {
        let (operation, asker) = match self {
            Self::Write(options) => ("UPDATE", &options.asker),
            Self::Delete(options) => ("DELETE", &options.asker),
        };
        Asked { target, operation, dry_run: self.dry_run(), asker: asker.as_deref() }
    }
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
        let rules = self.rules(target.kind)?;
        let warnings = rules.check_fields(&mut object, options)?;
        check_namespace(target.kind, target.namespace, &mut object)?;
        check_name(target, &mut object)?;
        let expected = expected_version(&object)?;
        let mut free = self.free_for_update(target, &object).await?;
        let stepped = self
            .step(target, Run::Write(options), |current| {
                if expected.is_some_and(|expected| expected != current.revision()) {
                    return Err(Status::modified(target.kind, target.name));
                }
                self.prepare(target, options, current.value(), object.clone(), &mut free)
            })
            .await?;
        let warnings = warnings.into_iter().chain(stepped.warnings).collect();
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
        let mut free = self.free_for_update(target, &Value::Null).await?;
        let stepped = self
            .step(target, Run::Write(options), |current| {
                let mut object = current.value().clone();
                change(&mut object)?;
                self.prepare(target, options, current.value(), object, &mut free)
            })
            .await?;
        Ok(Written { object: stepped.object, warnings: stepped.warnings, removed: stepped.removed })
    }

    /// The loop under every change. The first look is local and cheap; whatever it leads to other than a
    /// write that the log accepted is decided anew on the newest state.
    pub(super) async fn step(
        &self,
        target: Target<'_>,
        run: Run<'_>,
        mut change: impl FnMut(&Object) -> Result<Step, Status> + Send,
    ) -> Result<Stepped, Status> {
        let rules = self.rules(target.kind)?;
        let key = keys::object(target.kind, target.namespace, target.name);
        let mut newest = run.dry_run();
        let mut known: Option<StoredObject> = None;
        let mut refused: Option<Bytes> = None;
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let stored = match known.take() {
                Some(stored) => Some(stored),
                None => self.read_stored(&key, newest).await?,
            };
            let Some(stored) = stored else {
                if newest {
                    return Err(Status::not_found(target.kind, target.name));
                }
                newest = true;
                continue;
            };
            let current = self.converter().open_one(&rules, stored).await?;
            let step = match change(&current) {
                Err(_) if !newest => {
                    newest = true;
                    continue;
                }
                step => step?,
            };
            let (step, warnings) = self.admit_step(target, run, &rules, current.value(), step).await?;
            let (next, Encoded { value, shown }) = self.successor(step, &rules, &current).await?;
            let Some(next) = next else {
                if newest {
                    return Ok(Stepped { object: Arc::new(current), removed: false, warnings });
                }
                newest = true;
                continue;
            };
            let charged = self.charge_update(target, current.value(), next.as_ref(), newest).await;
            let (_turn, charges) = match charged {
                Err(_) if !newest => {
                    newest = true;
                    continue;
                }
                charged => charged?,
            };
            let committed = match run.dry_run() {
                true => Committed::At(current.revision()),
                false => self.commit(&current, next.as_ref(), &value, charges, run.fence()).await?,
            };
            match committed {
                Committed::At(revision) => {
                    let removed = next.is_none();
                    let create_revision = current.stored().create_revision;
                    let key = key.clone();
                    let object = match removed {
                        true => current.at(revision),
                        false => {
                            let stored = StoredObject { key, value, create_revision, mod_revision: revision };
                            rules.written(stored, shown)
                        }
                    };
                    return Ok(Stepped { object: Arc::new(object), removed, warnings });
                }
                Committed::Taken(taken) if refused.as_ref() == Some(&taken) => {
                    return Err(reservations::taken(target.kind, target.name, &taken));
                }
                // What was drawn at random is another one at the next try.
                Committed::Taken(taken) => {
                    newest = true;
                    refused = Some(taken);
                }
                Committed::Changed(None) => return Err(Status::not_found(target.kind, target.name)),
                Committed::Changed(now) => {
                    newest = true;
                    known = now;
                }
            }
        }
        Err(Status::modified(target.kind, target.name))
    }

    /// Asks webhooks and policies about a step, the namespace about containers that are added, and the class about claims that
    /// grow; mutating webhooks may change what is put.
    async fn admit_step(
        &self,
        target: Target<'_>,
        run: Run<'_>,
        rules: &Rules,
        old: &Value,
        step: Step,
    ) -> Result<(Step, Vec<String>), Status> {
        if let (Part::EphemeralContainers, Step::Put(new)) = (target.part, &step) {
            let namespace = self.namespace_of(target).await?;
            admission::pod_security::check(target.kind, &namespace, new)?;
        }
        if let (Part::Main, Step::Put(new), Run::Write(_)) = (target.part, &step, run) {
            let consistency = Consistency::Linearizable;
            admission::claim_resize::admit(self, target.kind, old, new, consistency).await?;
        }
        let asked = run.asked(target);
        match (step, run) {
            (step, _) if !self.has_policies() => Ok((step, Vec::new())),
            (Step::Put(new), Run::Write(options)) => {
                let mut changed = new.clone();
                let mut warnings = Box::pin(self.mutate(asked, rules, old, &mut changed)).await?;
                let step = match changed == new {
                    true => Step::Put(new),
                    false => {
                        let mut free = self.free_for_update(target, &changed).await?;
                        self.prepare(target, options, old, changed, &mut free)?
                    }
                };
                if let Step::Put(new) = &step {
                    warnings.extend(Box::pin(self.consult(asked, old, new)).await?);
                }
                Ok((step, warnings))
            }
            // Only the first request to delete is one; what removes the last finalizer is not.
            (step @ (Step::Put(_) | Step::Delete), Run::Delete(_)) => {
                let warnings = Box::pin(self.consult(asked, old, &Value::Null)).await?;
                Ok((step, warnings))
            }
            (step, _) => Ok((step, Vec::new())),
        }
    }

    /// What becomes of `current`: nothing new, its end, or an object; and its bytes.
    async fn successor(
        &self,
        step: Step,
        rules: &Rules,
        current: &Object,
    ) -> Result<(Option<Option<Value>>, Encoded), Status> {
        let unchanged = || Encoded { value: current.stored().value.clone(), shown: None };
        match step {
            Step::Keep => Ok((None, unchanged())),
            Step::Delete => Ok((Some(None), unchanged())),
            Step::Put(object) => {
                let encoded = self.converter().encode(rules, &object).await?;
                let is_same = encoded.value == current.stored().value;
                Ok(((!is_same).then_some(Some(object)), encoded))
            }
        }
    }

    async fn read_stored(&self, key: &Bytes, newest: bool) -> Result<Option<StoredObject>, Status> {
        let read = self.store().get(key.clone(), consistency(newest)).await;
        Ok(read.map_err(error::from_store)?.0)
    }

    /// Charges what an object comes to count for beyond what it did, and the turn in which that may be committed.
    async fn charge_update(
        &self,
        Target { kind, namespace, part, .. }: Target<'_>,
        old: &Value,
        new: Option<&Value>,
        newest: bool,
    ) -> Result<(Option<MutexGuard<'_, ()>>, Charges), Status> {
        let Some(new) = new.filter(|_| part == Part::Main && charges_updates(kind)) else {
            return Ok((None, Charges::default()));
        };
        let turn = self.quota_turn(kind, namespace).await;
        let charges = admission::quota::charge(self, kind, namespace, (Some(old), new), consistency(newest));
        Ok((turn, charges.await?))
    }

    /// Commits what follows `current` (`None`: nothing does), and what goes with it.
    async fn commit(
        &self,
        current: &Object,
        next: Option<&Value>,
        value: &Bytes,
        charges: Charges,
        fence: Option<u64>,
    ) -> Result<Committed, Status> {
        let key = current.key().clone();
        let mutation = match next {
            Some(_) => Mutation::Put { key, value: value.clone() },
            None => Mutation::Delete { key },
        };
        let reserved = reservations::change(current.kind(), Some(current.value()), next);
        let unchanged = Condition::Unchanged { key: current.key().clone(), mod_revision: current.revision() };
        let mut conditions = vec![unchanged];
        conditions.extend(reserved.conditions);
        conditions.extend(charges.conditions);
        let mut mutations = vec![mutation];
        mutations.extend(reserved.mutations);
        mutations.extend(charges.mutations);
        let asked = conditions.clone();
        let transaction = Transaction { conditions, mutations, fence };
        match self.store().transact(transaction).await.map_err(error::from_store)? {
            TransactionOutcome::Committed { revision } => Ok(Committed::At(revision)),
            TransactionOutcome::ConditionFailed { current: mut found } => {
                let is_same = found[0].as_ref().is_some_and(|now| now.mod_revision == current.revision());
                match reservations::refused(&asked, &found).filter(|_| is_same) {
                    Some(taken) => Ok(Committed::Taken(taken)),
                    None => Ok(Committed::Changed(found.swap_remove(0))),
                }
            }
            TransactionOutcome::Fenced => Err(error::fenced()),
        }
    }

    /// What seems free for an update; nothing for one that touches a part only.
    pub(super) async fn free_for_update(&self, target: Target<'_>, new: &Value) -> Result<Free, Status> {
        match target.part {
            Part::Main => self.free_for(target.kind, new).await,
            _ => Ok(Free::default()),
        }
    }

    /// What of `new` may be written over `old`: defaulted, given what it reserves, admitted, validated, and
    /// let through by the writer's guard.
    pub(super) fn prepare(
        &self,
        target: Target<'_>,
        options: &WriteOptions,
        old: &Value,
        mut new: Value,
        free: &mut Free,
    ) -> Result<Step, Status> {
        let Target { kind, name, part, .. } = target;
        check_uid(kind, name, old, &new)?;
        set_type(kind, &mut new);
        let sent = object::metadata_mut(&mut new).and_then(|metadata| metadata.remove("managedFields"));
        keep_server_metadata(old, &mut new);
        let now = object::timestamp(self.now());
        strategies::in_stored_form(kind, old, &mut new, |old, new| match part {
            Part::Main => strategies::of(kind).prepare_update(old, new),
            Part::Status => strategies::of(kind).prepare_status_update(old, new),
            Part::Approval => strategies::certificate::prepare_approval(old, new, &now),
            Part::Finalize => strategies::namespace::prepare_finalize(old, new),
            Part::EphemeralContainers => strategies::pod::prepare_ephemeral_containers(old, new),
        });
        let rules = self.rules(kind)?;
        rules.default(&mut new);
        apply::set_managers(rules.typed(), target, options, (old, &mut new), sent.unwrap_or_default());
        if rules.changes_generation(old, &new) {
            object::set_generation(&mut new, object::generation(old) + 1);
        }
        if part == Part::Main {
            self.reserve(kind, Some(old), &mut new, free)?;
            admission::admit(kind, Operation::Update, &mut new)?;
        }
        // Both sides of the comparison carry the version that was read: metadata validation demands one.
        let version = object::resource_version(old).to_owned();
        object::set_resource_version(&mut new, &version);
        let causes = match part {
            Part::EphemeralContainers => api::validation::ephemeral_containers(old, &new),
            _ => rules.check_update(old, &new),
        };
        if !causes.is_empty() {
            return Err(Status::invalid(kind, name, causes));
        }
        object::set_metadata(&mut new, "resourceVersion", Value::Null);
        if strategies::is_finished(kind, &new) {
            return Ok(Step::Delete);
        }
        if let Some(guard) = &options.guard {
            guard.check(kind, Some(old), &new)?;
        }
        Ok(Step::Put(new))
    }
}

/// How a look is made: first here, then at what everybody has agreed on.
fn consistency(newest: bool) -> Consistency {
    if newest { Consistency::Linearizable } else { Consistency::Serializable }
}

pub(super) fn check_name(target: Target<'_>, object: &mut Value) -> Result<(), Status> {
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

pub(super) fn expected_version(object: &Value) -> Result<Option<u64>, Status> {
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
