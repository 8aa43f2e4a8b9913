//! Rows of the table of kinds that are made while the process runs.
//!
//! A row lives as long as the process, as those of the static table do: that is what lets every module hold a
//! kind as a plain reference. Rows hold names only (schemas come and go with [`super::CustomKind`]), equal
//! definitions share a row however often they are made anew, and there are at most [`ROWS_MAX`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::schema::texts;
use crate::kinds::{Kind, PLAIN, SCALE, STATUS_VERBS, Subresource};

/// Most different rows of one process.
pub const ROWS_MAX: usize = 10_000;

/// The rows made so far.
#[derive(Debug, Default)]
pub struct Rows {
    /// By everything that a row says.
    known: Mutex<HashMap<String, &'static Kind>>,
}

impl Rows {
    /// The row of one version of a definition, by its accepted names. `None`: there are too many rows.
    pub(super) fn row(&self, definition: &Value, version: &Value) -> Option<&'static Kind> {
        let names = match &definition["status"]["acceptedNames"] {
            accepted if accepted["plural"].as_str().is_some_and(|plural| !plural.is_empty()) => accepted,
            _ => &definition["spec"]["names"],
        };
        let subresources = &version["subresources"];
        let has = |name: &str| subresources.get(name).is_some_and(|value| !value.is_null());
        let key = json!([
            definition["spec"]["group"],
            definition["spec"]["scope"],
            version["name"],
            names,
            has("status"),
            has("scale"),
        ]);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key.to_string();
        if let Some(row) = known.get(&key) {
            return Some(row);
        }
        if known.len() >= ROWS_MAX {
            return None;
        }
        let text = |value: &Value| leak(value.as_str().unwrap_or_default());
        let list = |value: &Value| -> &'static [&'static str] {
            Box::leak(texts(value).iter().map(|text| leak(text)).collect())
        };
        let kind = text(&names["kind"]);
        let status = Subresource { name: "status", group: "", version: "", kind, verbs: STATUS_VERBS };
        let subresources: Vec<Subresource> =
            has("scale").then_some(SCALE).into_iter().chain(has("status").then_some(status)).collect();
        let row = Kind {
            group: text(&definition["spec"]["group"]),
            version: text(&version["name"]),
            kind,
            plural: text(&names["plural"]),
            singular: text(&names["singular"]),
            short_names: list(&names["shortNames"]),
            namespaced: definition["spec"]["scope"] == "Namespaced",
            categories: list(&names["categories"]),
            subresources: Box::leak(subresources.into_boxed_slice()),
            has_status: has("status"),
            has_generation: true,
            list: text(&names["listKind"]),
            is_custom: true,
            ..PLAIN
        };
        let row: &'static Kind = Box::leak(Box::new(row));
        known.insert(key, row);
        Some(row)
    }
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}
