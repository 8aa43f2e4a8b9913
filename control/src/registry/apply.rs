//! Server-side apply on the write path, and the entries of `metadata.managedFields` that other writes leave.
//!
//! The rules are `api::patch::apply`'s; here they meet the stored object. An apply to what does not exist creates
//! it. Writes of the cluster's own parts name no manager and are not tracked: the status of pods and what
//! controllers make would else carry entries half as large as themselves (see `docs/guarantees.md`).

use api::patch::apply::{self, Config, Typed, Writer};
use api::{Status, object};
use serde_json::{Value, json};

use super::create::check_namespace;
use super::options::FieldManager;
use super::update::{Run, check_name, expected_version};
use super::{Part, Registry, Target, WRITE_ATTEMPTS_MAX, WriteOptions, Written};

/// Metadata in a configuration that says for which object it is meant, not what it should be.
const NO_OPINION: [&str; 4] = ["creationTimestamp", "generation", "resourceVersion", "selfLink"];

/// A configuration to apply.
#[derive(Debug, Clone)]
pub struct Application {
    /// The fields that the applier has an opinion about.
    pub config: Value,
    /// Whether fields that others own are taken over.
    pub force: bool,
    /// Why the applier may not create the object, if he may not.
    pub no_creation: Option<Status>,
}

impl Registry {
    /// Applies a configuration; says whether that created the object.
    pub async fn apply(
        &self,
        target: Target<'_>,
        application: Application,
        options: &WriteOptions,
    ) -> Result<(Written, bool), Status> {
        let Application { mut config, force, no_creation } = application;
        let FieldManager::Applies(manager) = &options.manager else {
            return Err(Status::internal("an apply names no field manager"));
        };
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let rules = self.rules(target.kind)?;
        let mut warnings = rules.check_fields(&mut config, options)?;
        check_namespace(target.kind, target.namespace, &mut config)?;
        check_name(target, &mut config)?;
        let expected = expected_version(&config)?;
        NO_OPINION.iter().for_each(|field| object::set_metadata(&mut config, field, Value::Null));
        let apply_to = |live: &Value| {
            let by = Writer { manager, subresource: target.part.subresource(), now: self.now() };
            apply::apply(rules.typed(), live, Config { object: &config, force }, by)
        };
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let mut free = self.free_for_update(target, &config).await?;
            let stepped = self.step(target, Run::Write(options), |current| {
                if expected.is_some_and(|expected| expected != current.revision()) {
                    return Err(Status::modified(target.kind, target.name));
                }
                let mut merged = apply_to(current.value())?;
                // What a change leaves of defaults or of lists may have to be brought into form.
                rules.check_fields(&mut merged, &WriteOptions::default())?;
                self.prepare(target, options, current.value(), merged, &mut free)
            });
            match stepped.await {
                Err(status) if status.reason() == "NotFound" && target.part == Part::Main => {}
                other => {
                    let stepped = other?;
                    warnings.extend(stepped.warnings);
                    let written = Written { object: stepped.object, warnings, removed: stepped.removed };
                    return Ok((written, false));
                }
            }
            if let Some(refusal) = no_creation {
                return Err(refusal);
            }
            if expected.is_some() || !object::uid(&config).is_empty() {
                let why =
                    "the provided object specifies a version or a uid, and no existing object was found";
                return Err(Status::conflict(target.kind, target.name, why));
            }
            let object = apply_to(&json!({}))?;
            match self.create(target.kind, target.namespace, object, options).await {
                Err(status) if status.reason() == "AlreadyExists" => {}
                other => return other.map(|created| (Written { warnings, ..created }, true)),
            }
        }
        Err(Status::modified(target.kind, target.name))
    }
}

/// Sets the entries of an object that is about to be written: those of an apply are at hand (`sent`), those of an
/// update follow from what it changes. `old` is null before a creation.
pub(super) fn set_managers(
    typed: Typed<'_>,
    target: Target<'_>,
    options: &WriteOptions,
    (old, new): (&Value, &mut Value),
    sent: Value,
) {
    match &options.manager {
        FieldManager::Untracked => {}
        FieldManager::Applies(_) => object::set_metadata(new, "managedFields", sent),
        FieldManager::Updates(manager) => {
            let subresource = match options.subresource {
                "" => target.part.subresource(),
                named => named,
            };
            let by = Writer { manager, subresource, now: jiff::Timestamp::now() };
            apply::track(typed, old, new, &sent, by);
        }
    }
}
