//! Who owns which fields: the entries of `metadata.managedFields`.
//!
//! Owns their reading and writing, their order, and the folding of old ones: of writers that update rather than
//! apply, at most [`UPDATERS_MAX`] are told apart.

use serde_json::{Map, Value, json};

use super::fields::{FieldSet, member};
use crate::object;
use crate::status::quoted;

/// How many entries of updates are kept; the oldest become one.
pub const UPDATERS_MAX: usize = 10;
/// The name of the entry that the oldest become.
const ANCIENT: &str = "ancient-changes";

/// How fields came to be owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// The fields of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: Option<String>,
    pub(super) fields: FieldSet,
}

impl Owner {
    fn read(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let fields = match entry.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) => FieldSet::read(fields)?,
        };
        if !matches!(text("fieldsType").as_str(), "FieldsV1") {
            return None;
        }
        let time = Some(text("time")).filter(|time| !time.is_empty());
        let (manager, api_version, subresource) = (text("manager"), text("apiVersion"), text("subresource"));
        Some(Self { manager, operation, api_version, subresource, time, fields })
    }

    fn write(&self) -> Value {
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut entry = json!({"manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.write()});
        if let Some(time) = &self.time {
            entry["time"] = Value::from(time.as_str());
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = Value::from(self.subresource.as_str());
        }
        entry
    }

    /// Whether both are the same owner. An applier stays the same whatever version it applies.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As messages name it.
    pub(super) fn printed(&self) -> String {
        let mut text = quoted(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", quoted(&self.subresource)));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// All owners of an object's fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owners(pub(super) Vec<Owner>);

impl Owners {
    /// Reads the entries; `None` if one makes no sense, which nobody but a client that wrote it itself causes.
    pub(super) fn read(entries: &Value) -> Option<Self> {
        let entries = entries.as_array().map_or(&[][..], Vec::as_slice);
        entries.iter().map(Owner::read).collect::<Option<_>>().map(Self)
    }

    /// Those of a stored object.
    pub(super) fn of(object: &Value) -> Self {
        Self::read(&object["metadata"]["managedFields"]).unwrap_or_default()
    }

    /// The entries in the order that Kubernetes gives them; null if there are none.
    pub(super) fn write(mut self) -> Value {
        self.0.retain(|owner| !owner.fields.is_empty());
        if self.0.is_empty() {
            return Value::Null;
        }
        self.0.sort_by(|a, b| {
            let key = |owner: &Owner| (owner.operation, owner.time.clone());
            key(a)
                .cmp(&key(b))
                .then_with(|| a.manager.cmp(&b.manager))
                .then_with(|| (&a.api_version, &a.subresource).cmp(&(&b.api_version, &b.subresource)))
        });
        Value::Array(self.0.iter().map(Owner::write).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets what an owner has. The time changes only if the fields do.
    pub(super) fn set(&mut self, owner: Owner) {
        match self.0.iter_mut().find(|other| other.is(&owner)) {
            Some(same) if same.fields == owner.fields && same.api_version == owner.api_version => {}
            Some(same) => *same = owner,
            None => self.0.push(owner),
        }
    }

    pub(super) fn find(&self, owner: &Owner) -> Option<&Owner> {
        self.0.iter().find(|other| other.is(owner))
    }

    /// Everything that anybody owns.
    pub(super) fn all_fields(&self) -> FieldSet {
        let mut all = FieldSet::default();
        self.0.iter().for_each(|owner| all.add(&owner.fields));
        all
    }

    /// Makes one entry, of each version, of the oldest updates beyond [`UPDATERS_MAX`].
    pub(super) fn fold(&mut self) {
        let updaters = self.0.iter().filter(|owner| owner.operation == Operation::Update).count();
        if updaters <= UPDATERS_MAX {
            return;
        }
        self.0.sort_by(|a, b| (a.operation, &a.time, &a.manager).cmp(&(b.operation, &b.time, &b.manager)));
        let first = self.0.iter().position(|owner| owner.operation == Operation::Update).unwrap_or(0);
        let mut folded: Vec<Owner> = Vec::new();
        // The fold itself is an entry too.
        for old in self.0.drain(first..first + updaters + 1 - UPDATERS_MAX) {
            match folded.iter_mut().find(|other| other.api_version == old.api_version) {
                Some(ancient) => {
                    ancient.fields.add(&old.fields);
                    ancient.time = old.time;
                }
                None => folded.push(Owner { manager: ANCIENT.to_owned(), subresource: String::new(), ..old }),
            }
        }
        self.0.extend(folded);
    }
}

/// Whether a client asks for the entries to be dropped: a list of one empty entry.
pub(super) fn is_reset(entries: &Value) -> bool {
    let first = entries.as_array().filter(|entries| entries.len() == 1).and_then(|entries| entries.first());
    first.and_then(Value::as_object).is_some_and(Map::is_empty)
}

/// Takes out what belongs to the server, and what the target of the write does not take.
pub(super) fn strip(fields: &mut FieldSet, subresource: &str, has_status: bool) {
    const SERVERS: [&str; 8] = [
        "creationTimestamp",
        "generation",
        "managedFields",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
        "uid",
    ];
    fields.remove("f:apiVersion");
    fields.remove("f:kind");
    fields.alter("f:metadata", |metadata| {
        metadata.is_member = false;
        SERVERS.iter().for_each(|name| drop(metadata.below.remove(&member(name))));
    });
    match subresource {
        "status" => fields.retain(|step| matches!(step, "f:metadata" | "f:status")),
        "" if has_status => drop(fields.remove("f:status")),
        _ => {}
    }
}

/// The present moment as entries carry it.
pub(super) fn time(now: jiff::Timestamp) -> Option<String> {
    Some(object::timestamp(now))
}
