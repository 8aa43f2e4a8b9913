//! Which names a definition gets: those that nobody else in its group has. Pure.

use serde_json::{Value, json};

use super::schema::texts;
use crate::kinds;

/// What a definition's status should say about its names.
#[derive(Debug, Clone, PartialEq)]
pub struct Names {
    /// For `status.acceptedNames`.
    pub accepted: Value,
    /// Reason and message if not all are accepted.
    pub conflict: Option<(String, String)>,
}

/// The names of one group that are in use.
#[derive(Default)]
struct InUse {
    resources: Vec<String>,
    kinds: Vec<String>,
}

/// Decides about a definition's names; `others` are the definitions beside it.
pub fn accept<'a>(definition: &Value, others: impl Iterator<Item = &'a Value>) -> Names {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let mut in_use = InUse::default();
    for kind in kinds::kinds().iter().filter(|kind| kind.group == group) {
        in_use.resources.extend([kind.plural, kind.singular].map(str::to_owned));
        in_use.resources.extend(kind.short_names.iter().map(|name| (*name).to_owned()));
        in_use.kinds.extend([kind.kind.to_owned(), kind.list_kind()]);
    }
    let own = &definition["metadata"]["name"];
    for other in others.filter(|other| other["spec"]["group"] == group && other["metadata"]["name"] != *own) {
        let names = &other["status"]["acceptedNames"];
        let text = |field: &str| names[field].as_str().map(str::to_owned);
        in_use.resources.extend(["plural", "singular"].into_iter().filter_map(text));
        in_use.resources.extend(texts(&names["shortNames"]));
        in_use.kinds.extend(["kind", "listKind"].into_iter().filter_map(text));
    }
    decide(definition, &in_use)
}

fn decide(definition: &Value, in_use: &InUse) -> Names {
    let requested = &definition["spec"]["names"];
    let mut accepted = match &definition["status"]["acceptedNames"] {
        names @ Value::Object(_) => names.clone(),
        _ => json!({"plural": "", "kind": ""}),
    };
    let mut conflict = None;
    let mut refuse = |reason: &str, name: &str| {
        conflict = Some((reason.to_owned(), format!("{name:?} is already in use")));
    };
    for (field, reason) in [
        ("plural", "PluralConflict"),
        ("singular", "SingularConflict"),
        ("kind", "KindConflict"),
        ("listKind", "ListKindConflict"),
    ] {
        let name = requested[field].as_str().unwrap_or_default();
        let used = if field.to_lowercase().ends_with("kind") { &in_use.kinds } else { &in_use.resources };
        match used.iter().any(|used| used == name) && !name.is_empty() {
            true => refuse(reason, name),
            false if name.is_empty() => {}
            false => accepted[field] = Value::from(name),
        }
    }
    let short = texts(&requested["shortNames"]);
    match short.iter().find(|name| in_use.resources.contains(*name)) {
        Some(name) => refuse("ShortNamesConflict", name),
        None => set_list(&mut accepted, "shortNames", &requested["shortNames"]),
    }
    set_list(&mut accepted, "categories", &requested["categories"]);
    Names { accepted, conflict }
}

fn set_list(names: &mut Value, field: &str, list: &Value) {
    let Some(members) = names.as_object_mut() else { return };
    match list.as_array().is_some_and(|list| !list.is_empty()) {
        true => members.insert(field.to_owned(), list.clone()),
        false => members.remove(field),
    };
}
