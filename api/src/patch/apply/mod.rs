//! Server-side apply, and who owns which fields (`metadata.managedFields`).
//!
//! Owns what Kubernetes' reference describes as "Server-Side Apply": an applier sends the fields that it has an
//! opinion about; they are merged into the object, those that it sent before and sends no more go unless somebody
//! else owns them, and fields that others own with another value are conflicts. Whoever updates or patches owns
//! what it changes. Promises that nothing else about the object changes, that an apply that changes nothing leaves
//! the entries as they are, and that objects without entries get none from updates, as with Kubernetes.
//! Does not judge the object, and does not store it.
//!
//! ```text
//!   config ─► its fields ─► live + config ─► prune what was applied before ─► compare with live
//!                                                                                │ others own it?
//!                                                             entries ◄── no, or force ──┴── yes: conflict
//! ```

mod fields;
mod lists;
mod managers;
mod shape;
mod walk;

use serde_json::{Value, json};

use self::fields::FieldSet;
pub use self::managers::UPDATERS_MAX;
use self::managers::{Operation, Owner, Owners, is_reset, strip};
use self::shape::Shape;
use crate::crd::CustomKind;
use crate::kinds::Kind;
use crate::object;
use crate::status::Status;

/// What kubectl applied from the client's side, kept in an annotation.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The applier that takes over what it applied from the client's side.
const KUBECTL: &str = "kubectl";
/// Who owns what there was before the first apply of an object without entries.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// A kind, and what a definition says of it if one registered it.
#[derive(Debug, Clone, Copy)]
pub struct Typed<'a> {
    /// The row.
    pub kind: &'a Kind,
    /// Its schema tells which lists have items of their own, and what is one value.
    pub custom: Option<&'a CustomKind>,
}

impl<'a> From<&'a Kind> for Typed<'a> {
    fn from(kind: &'a Kind) -> Self {
        Self { kind, custom: None }
    }
}

impl<'a> From<&'a CustomKind> for Typed<'a> {
    fn from(custom: &'a CustomKind) -> Self {
        Self { kind: custom.kind(), custom: Some(custom) }
    }
}

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The name of the field manager.
    pub manager: &'a str,
    /// The subresource written to; empty for the object itself.
    pub subresource: &'a str,
    /// When.
    pub now: jiff::Timestamp,
}

impl Writer<'_> {
    fn owner(&self, kind: &Kind, operation: Operation, fields: FieldSet) -> Owner {
        Owner {
            manager: self.manager.to_owned(),
            operation,
            api_version: kind.api_version(),
            subresource: self.subresource.to_owned(),
            time: managers::time(self.now),
            fields,
        }
    }
}

/// A configuration to apply.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The fields that the applier has an opinion about.
    pub object: &'a Value,
    /// Whether fields that others own are taken over.
    pub force: bool,
}

/// Applies a configuration to an object (an empty one, if there is none yet): the object as it should be, with its
/// entries.
pub fn apply<'a>(
    typed: impl Into<Typed<'a>>,
    live: &Value,
    config: Config<'_>,
    by: Writer<'_>,
) -> Result<Value, Status> {
    let typed = typed.into();
    let Config { object: sent, force } = config;
    if sent["metadata"].get("managedFields").is_some_and(|entries| !entries.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let shape = Shape::of(typed);
    let sent = walk::without_nulls(sent);
    if let Some(found) = walk::duplicate(shape, &sent, "") {
        return Err(Status::bad_request(format!(
            "failed to create typed patch object ({}; {}): {found}",
            object::key(&sent),
            typed.kind.api_version()
        )));
    }
    let owners = owners_before_apply(typed, live, by);
    let Outcome { object, mut conflicts } = applied(typed, live, &sent, owners, by);
    if by.manager == KUBECTL && !conflicts.is_empty() {
        let allowed = unchanged_since_client_side(shape, live);
        conflicts.iter_mut().for_each(|(_, fields)| fields.subtract(&allowed));
        conflicts.retain(|(_, fields)| !fields.is_empty());
    }
    match force || conflicts.is_empty() {
        true => Ok(object),
        false => Err(conflict(&conflicts)),
    }
}

/// What came of an apply, were it forced.
struct Outcome {
    object: Value,
    conflicts: Vec<(Owner, FieldSet)>,
}

fn owners_before_apply(typed: Typed<'_>, live: &Value, by: Writer<'_>) -> Owners {
    let mut owners = Owners::of(live);
    let exists = !object::uid(live).is_empty();
    if owners.is_empty() && exists {
        let mut fields = walk::compare(Shape::of(typed), &Value::Null, live).added;
        strip(&mut fields, "", false);
        let before = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..by };
        owners.set(before.owner(typed.kind, Operation::Update, fields));
    }
    owners
}

fn applied(typed: Typed<'_>, live: &Value, sent: &Value, mut owners: Owners, by: Writer<'_>) -> Outcome {
    let (kind, shape) = (typed.kind, Shape::of(typed));
    let mut fields = walk::field_set(shape, sent);
    let mut merged = walk::merge(shape, live, sent);
    let own = by.owner(kind, Operation::Apply, FieldSet::default());
    let last = owners.find(&own).map(|owner| owner.fields.clone()).unwrap_or_default();
    owners.0.retain(|owner| !owner.is(&own));
    let mut owned = owners.all_fields();
    owned.add(&fields);
    // Type and identity are the server's, and never go.
    keep_identity(&mut owned);
    walk::prune(shape, &mut merged, &last, &owned);
    strip(&mut fields, by.subresource, kind.has_status);

    let difference = walk::compare(shape, live, &merged);
    let mut changed = difference.modified.clone();
    changed.add(&difference.added);
    let mut conflicts = Vec::new();
    for owner in &mut owners.0 {
        let contested = owner.fields.intersection(&changed);
        if !contested.is_empty() {
            owner.fields.subtract(&contested);
            conflicts.push((owner.clone(), contested));
        }
        owner.fields.subtract(&difference.removed);
    }
    let before = Owners::of(live);
    let mut entry = Owner { fields, ..own };
    if let Some(same) = before.find(&entry)
        && same.fields == entry.fields
        && difference.is_empty()
    {
        entry.time.clone_from(&same.time);
    }
    owners.0.push(entry);
    update_last_applied(&mut merged, sent, by.manager);
    object::set_metadata(&mut merged, "managedFields", owners.write());
    Outcome { object: merged, conflicts }
}

fn keep_identity(owned: &mut FieldSet) {
    let identity = json!({"f:apiVersion": {}, "f:kind": {}, "f:metadata": {"f:name": {}, "f:namespace": {}, "f:uid": {}}});
    owned.add(&FieldSet::read(&identity).unwrap_or_default());
}

/// Keeps the annotation of client-side apply up to date, so that a user may go back to that.
fn update_last_applied(merged: &mut Value, sent: &Value, manager: &str) {
    if manager != KUBECTL || object::annotation(merged, LAST_APPLIED).is_none() {
        return;
    }
    let mut config = sent.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(annotations) = merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert(LAST_APPLIED.to_owned(), Value::from(format!("{config}\n")));
    }
}

/// The fields that client-side apply set and that are still as it set them.
fn unchanged_since_client_side(shape: Shape<'_>, live: &Value) -> FieldSet {
    let text = object::annotation(live, LAST_APPLIED).unwrap_or_default();
    let Ok(config) = serde_json::from_str::<Value>(text) else { return FieldSet::default() };
    let mut fields = walk::field_set(shape, &config);
    let difference = walk::compare(shape, &config, live);
    for changed in [&difference.added, &difference.modified, &difference.removed] {
        fields.subtract(changed);
    }
    fields
}

fn conflict(conflicts: &[(Owner, FieldSet)]) -> Status {
    let mut conflicts: Vec<(String, Vec<String>)> =
        conflicts.iter().map(|(owner, fields)| (owner.printed(), fields.places())).collect();
    conflicts.sort();
    let causes = conflicts.iter().flat_map(|(owner, places)| {
        places.iter().map(move |place| (place.clone(), format!("conflict with {owner}")))
    });
    let causes: Vec<(String, String)> = causes.collect();
    let message = match (conflicts.as_slice(), causes.len()) {
        ([(owner, places)], 1) => {
            format!("Apply failed with 1 conflict: conflict with {owner}: {}", places.join(""))
        }
        (conflicts, count) => {
            let texts: Vec<String> = conflicts
                .iter()
                .map(|(owner, places)| format!("conflicts with {owner}:\n- {}", places.join("\n- ")))
                .collect();
            format!("Apply failed with {count} conflicts: {}", texts.join("\n"))
        }
    };
    Status::apply_conflict(&message, &causes)
}

/// Gives what a create, an update or a patch changed to its writer. `old` is the object as it was, null before a
/// creation; `sent` are the entries that the writer itself sent.
pub fn track<'a>(typed: impl Into<Typed<'a>>, old: &Value, new: &mut Value, sent: &Value, by: Writer<'_>) {
    let typed = typed.into();
    let (kind, shape) = (typed.kind, Shape::of(typed));
    let live = Owners::of(old);
    let mut owners = match () {
        () if !by.subresource.is_empty() => live,
        () if is_reset(sent) => Owners::default(),
        () => Owners::read(sent).filter(|sent| !sent.is_empty()).unwrap_or(live),
    };
    if owners.is_empty() && !old.is_null() {
        return object::set_metadata(new, "managedFields", Value::Null);
    }
    let difference = walk::compare(shape, old, new);
    let mut changed = difference.modified;
    changed.add(&difference.added);
    strip(&mut changed, by.subresource, kind.has_status);
    let own = by.owner(kind, Operation::Update, FieldSet::default());
    for owner in &mut owners.0 {
        if !owner.is(&own) {
            owner.fields.subtract(&changed);
        }
        owner.fields.subtract(&difference.removed);
    }
    if !changed.is_empty() {
        let mut fields = owners.find(&own).map(|owner| owner.fields.clone()).unwrap_or_default();
        fields.add(&changed);
        owners.0.retain(|owner| !owner.is(&own));
        owners.0.push(Owner { fields, ..own });
    }
    owners.fold();
    object::set_metadata(new, "managedFields", owners.write());
}

#[cfg(test)]
mod tests;
