//! The rules of a kind on the write path: of a built-in one from `api`'s modules, of a custom one from its
//! definition. The one place where the two are told apart.

use std::sync::Arc;

use api::crd::CustomKind;
use api::patch::apply::Typed;
use api::{Cause, Kind, Status};
use bytes::Bytes;
use serde_json::Value;

use super::create::encode;
use super::kinds::definition_kind;
use super::{FieldValidation, Object, Registry, WriteOptions, keys};
use crate::object_store::{Condition, StoredObject};

/// What holds for the objects of one kind.
#[derive(Debug, Clone)]
pub(crate) enum Rules {
    /// A row of the static table.
    BuiltIn(&'static Kind),
    /// Registered by a definition.
    Custom(Arc<CustomKind>),
}

impl Registry {
    /// The rules of a kind; 404 if its definition is gone.
    pub(crate) fn rules(&self, kind: &'static Kind) -> Result<Rules, Status> {
        if !kind.is_custom {
            return Ok(Rules::BuiltIn(kind));
        }
        let kinds = self.kinds().current();
        kinds.custom(kind).cloned().map(Rules::Custom).ok_or_else(Status::not_found_path)
    }
}

impl Rules {
    /// The kind.
    pub(crate) fn kind(&self) -> &'static Kind {
        match self {
            Self::BuiltIn(kind) => kind,
            Self::Custom(custom) => custom.kind(),
        }
    }

    /// The rules, if a definition made them.
    pub(crate) fn custom(&self) -> Option<&Arc<CustomKind>> {
        match self {
            Self::BuiltIn(_) => None,
            Self::Custom(custom) => Some(custom),
        }
    }

    /// What server-side apply goes by.
    pub(super) fn typed(&self) -> Typed<'_> {
        match self {
            Self::BuiltIn(kind) => Typed::from(*kind),
            Self::Custom(custom) => Typed::from(custom.as_ref()),
        }
    }

    /// A stored object as this kind shows it.
    pub(super) fn object(&self, stored: StoredObject) -> Object {
        match self {
            Self::BuiltIn(kind) => Object::new(kind, stored),
            Self::Custom(custom) => Object::custom(custom.clone(), stored),
        }
    }

    /// An object that was just written, with the text that its writer's version shows if that is another one.
    pub(super) fn written(&self, stored: StoredObject, shown: Option<Bytes>) -> Object {
        match shown {
            Some(text) => self.object(stored).converted(text),
            None => self.object(stored),
        }
    }

    /// The bytes that are stored where no webhook converts.
    pub(super) fn encode(&self, object: &Value) -> Bytes {
        match self {
            Self::BuiltIn(kind) if kind.stored_as.is_some() => {
                encode(&api::versions::as_stored(kind, object).1)
            }
            Self::BuiltIn(_) => encode(object),
            Self::Custom(custom) => {
                let mut object = object.clone();
                custom.store(&mut object);
                encode(&object)
            }
        }
    }

    /// Checks types, drops unknown fields; gives the warnings that the client should see.
    pub(super) fn check_fields(
        &self,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<Vec<String>, Status> {
        let Self::Custom(custom) = self else {
            return super::check_fields(self.kind(), object, options);
        };
        let unknown = custom.normalize(object)?;
        let mut problems = options.duplicate_fields.clone();
        problems.extend(unknown);
        let mut warnings: Vec<String> = custom.warning().map(str::to_owned).into_iter().collect();
        match options.field_validation {
            FieldValidation::Strict if !problems.is_empty() => {
                return Err(api::decode::strict_error(custom.kind(), &problems));
            }
            FieldValidation::Ignore => {}
            FieldValidation::Warn | FieldValidation::Strict => warnings.extend(problems),
        }
        Ok(warnings)
    }

    /// Fills in defaults.
    pub(super) fn default(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(kind) => api::defaults::apply(kind, object),
            Self::Custom(custom) => custom.default(object),
        }
    }

    /// Why the object may not be created.
    pub(super) fn check_create(&self, object: &Value) -> Vec<Cause> {
        match self {
            Self::BuiltIn(kind) => api::validation::create(kind, object),
            Self::Custom(custom) => custom.check_create(object),
        }
    }

    /// Why the object may not replace its predecessor.
    pub(super) fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        match self {
            Self::BuiltIn(kind) => api::validation::update(kind, old, new),
            Self::Custom(custom) => custom.check_update(old, new),
        }
    }

    /// Whether a write changes what the generation counts.
    pub(super) fn changes_generation(&self, old: &Value, new: &Value) -> bool {
        match self {
            Self::BuiltIn(kind) => {
                kind.has_generation && !api::object::same_but_metadata_and_status(old, new)
            }
            Self::Custom(custom) => {
                let counts = |name: &&String| {
                    name.as_str() != "metadata" && (name.as_str() != "status" || !custom.kind().has_status)
                };
                let names = [old, new].into_iter().filter_map(Value::as_object).flat_map(|o| o.keys());
                names.filter(counts).any(|name| old.get(name) != new.get(name))
            }
        }
    }

    /// Under which condition an object may be made: its definition is there, and not on its way out.
    pub(super) fn creation_guard(&self) -> Result<Option<Condition>, Status> {
        let Self::Custom(custom) = self else { return Ok(None) };
        if custom.is_deleting() {
            return Err(Status::method_not_allowed(custom.kind(), "create"));
        }
        let key = keys::object(definition_kind(), "", custom.definition());
        Ok(Some(Condition::Unchanged { key, mod_revision: custom.revision() }))
    }
}
