//! A custom object held against its schema: every cause in the words of the Kubernetes API server.
//!
//! A part of an object that an update leaves as it was is not looked at again, so that objects that were
//! valid when they were stored can still be changed elsewhere.

use std::collections::HashSet;

use serde_json::Value;

use super::formats;
use super::schema::{ListType, Schema, Type};
use crate::status::{Cause, CauseKind, quoted};

/// Most causes in one answer.
pub(super) const CAUSES_MAX: usize = 128;

/// Adds why the value does not fit the schema. `old` is what it replaces.
pub(super) fn check(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &mut String,
    causes: &mut Vec<Cause>,
) {
    if causes.len() >= CAUSES_MAX || old == Some(value) {
        return;
    }
    if value.is_null() && schema.nullable {
        return;
    }
    if !fits(schema.ty, value) {
        causes.push(wrong_type(schema, value, path));
        return;
    }
    own(schema, value, path, causes);
    combined(schema, value, path, causes);
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let Some(inner) = schema.member(name) else { continue };
                let length = push(path, name, !schema.properties.contains_key(name));
                check(inner, member, old.and_then(|old| old.get(name)), path, causes);
                path.truncate(length);
            }
            if schema.embedded {
                embedded(value, path, causes);
            }
        }
        Value::Array(items) => {
            list(schema, items, path, causes);
            let Some(inner) = &schema.items else { return };
            for (index, item) in items.iter().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{index}]"));
                let before = old.and_then(|old| same_item(schema, old, item));
                check(inner, item, before, path, causes);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// The item of an older list that this one replaces, where items have names.
pub(super) fn same_item<'a>(schema: &Schema, old: &'a Value, item: &Value) -> Option<&'a Value> {
    let ListType::Map(keys) = &schema.list_type else { return None };
    old.as_array()?.iter().find(|old| keys.iter().all(|key| old.get(key) == item.get(key)))
}

/// Adds a member's name to a path; gives the length to go back to.
pub(super) fn push(path: &mut String, name: &str, is_key: bool) -> usize {
    let length = path.len();
    if is_key {
        path.push_str(&format!("[{name}]"));
    } else {
        if length > 0 {
            path.push('.');
        }
        path.push_str(name);
    }
    length
}

fn fits(ty: Type, value: &Value) -> bool {
    let is_whole = |number: &serde_json::Number| {
        number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
    };
    match (ty, value) {
        (Type::Any, _)
        | (Type::Object, Value::Object(_))
        | (Type::Array, Value::Array(_))
        | (Type::String | Type::IntOrString, Value::String(_))
        | (Type::Number, Value::Number(_))
        | (Type::Boolean, Value::Bool(_)) => true,
        (Type::Integer | Type::IntOrString, Value::Number(number)) => is_whole(number),
        _ => false,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong_type(schema: &Schema, value: &Value, path: &str) -> Cause {
    let (got, wanted) = (type_name(value), schema.ty.name());
    let detail = format!("{path} in body must be of type {wanted}: {}", quoted(got));
    Cause { kind: CauseKind::TypeInvalid, ..Cause::invalid(path, got, &detail) }
}

/// The bounds on the value itself.
fn own(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let checks = &schema.checks;
    let is_named = |choice: &Value| match (choice.as_f64(), value.as_f64()) {
        (Some(choice), Some(value)) => choice == value,
        _ => choice == value,
    };
    if !checks.choices.is_empty() && !checks.choices.iter().any(is_named) {
        let texts: Vec<String> = checks
            .choices
            .iter()
            .map(|choice| choice.as_str().map_or_else(|| choice.to_string(), str::to_owned))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        causes.push(Cause::not_supported(path, value.clone(), &texts));
    }
    match value {
        Value::Number(_) => number(schema, value, path, causes),
        Value::String(text) => self::text(schema, text, path, causes),
        Value::Array(items) => {
            let count = items.len() as u64;
            if checks.items_min.is_some_and(|least| count < least) {
                let least = checks.items_min.unwrap_or(0);
                let detail = format!("{path} in body should have at least {least} items");
                causes.push(Cause::invalid(path, count, &detail));
            }
            too_many(path, count, checks.items_max, causes);
        }
        Value::Object(members) => {
            let count = members.len() as u64;
            if checks.members_min.is_some_and(|least| count < least) {
                let least = checks.members_min.unwrap_or(0);
                let detail = format!("{path} in body should have at least {least} properties");
                causes.push(Cause::invalid(path, count, &detail));
            }
            too_many(path, count, checks.members_max, causes);
            for name in checks.required.iter().filter(|name| !members.contains_key(*name)) {
                let dot = if path.is_empty() { "" } else { "." };
                causes.push(Cause::required(format!("{path}{dot}{name}"), ""));
            }
        }
        _ => {}
    }
}

fn too_many(path: &str, count: u64, most: Option<u64>, causes: &mut Vec<Cause>) {
    if let Some(most) = most.filter(|most| count > *most) {
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        causes.push(Cause::too_many(path, size(count), size(most)));
    }
}

fn number(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let checks = &schema.checks;
    let number = value.as_f64().unwrap_or(f64::NAN);
    let bound =
        |bound: &Option<Value>| bound.as_ref().and_then(|bound| Some((bound.as_f64()?, bound.clone())));
    let mut refuse = |detail: String| causes.push(Cause::invalid(path, value.clone(), &detail));
    if let Some((least, text)) = bound(&checks.minimum) {
        if checks.minimum_excluded && number <= least {
            refuse(format!("{path} in body should be greater than {text}"));
        } else if number < least {
            refuse(format!("{path} in body should be greater than or equal to {text}"));
        }
    }
    if let Some((most, text)) = bound(&checks.maximum) {
        if checks.maximum_excluded && number >= most {
            refuse(format!("{path} in body should be less than {text}"));
        } else if number > most {
            refuse(format!("{path} in body should be less than or equal to {text}"));
        }
    }
    if let Some((step, text)) = bound(&checks.multiple_of)
        && step > 0.0
        && (number / step).fract() != 0.0
    {
        refuse(format!("{path} in body should be a multiple of {text}"));
    }
    let narrow = match (schema.ty, checks.format.as_deref()) {
        (Type::Integer, Some("int32")) => number < f64::from(i32::MIN) || number > f64::from(i32::MAX),
        _ => false,
    };
    if narrow {
        refuse(format!("{path} in body must be of type int32: {}", quoted(&value.to_string())));
    }
}

fn text(schema: &Schema, text: &str, path: &str, causes: &mut Vec<Cause>) {
    let checks = &schema.checks;
    let length = text.chars().count() as u64;
    if let Some(least) = checks.length_min.filter(|least| length < *least) {
        let detail = format!("{path} in body should be at least {least} chars long");
        causes.push(Cause::invalid(path, text, &detail));
    }
    if let Some(most) = checks.length_max.filter(|most| length > *most) {
        causes.push(Cause::too_long(path, usize::try_from(most).unwrap_or(usize::MAX)));
    }
    if let Some((pattern, regex)) = &checks.pattern
        && !regex.as_ref().is_some_and(|regex| regex.is_match(text))
    {
        causes.push(Cause::invalid(path, text, &format!("{path} in body should match '{pattern}'")));
    }
    if let Some(format) = checks.format.as_deref().filter(|format| !formats::fits(format, text)) {
        let detail = format!("{path} in body must be of type {format}: {}", quoted(text));
        causes.push(Cause::invalid(path, text, &detail));
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn combined(schema: &Schema, value: &Value, path: &mut String, causes: &mut Vec<Cause>) {
    let mut fits = |inner: &Schema| {
        let mut found = Vec::new();
        check(inner, value, None, path, &mut found);
        found
    };
    let name = |path: &str| if path.is_empty() { String::new() } else { path.to_owned() };
    let mut messages = Vec::new();
    for inner in &schema.all_of {
        causes.extend(fits(inner));
    }
    if !schema.any_of.is_empty() && schema.any_of.iter().all(|inner| !fits(inner).is_empty()) {
        messages.push("must validate at least one schema (anyOf)".to_owned());
    }
    if !schema.one_of.is_empty() {
        match schema.one_of.iter().filter(|inner| fits(inner).is_empty()).count() {
            1 => {}
            0 => messages.push("must validate one and only one schema (oneOf). Found none valid".to_owned()),
            many => messages.push(format!(
                "must validate one and only one schema (oneOf). Found {many} valid alternatives"
            )),
        }
    }
    if schema.not.as_ref().is_some_and(|inner| fits(inner).is_empty()) {
        messages.push("must not validate the schema (not)".to_owned());
    }
    for message in messages {
        causes.push(Cause::invalid(path.clone(), "", &format!("{} {message}", quoted(&name(path)))));
    }
}

/// Items that must differ, do.
fn list(schema: &Schema, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let mut seen = HashSet::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let key = match &schema.list_type {
            ListType::Atomic => return,
            ListType::Set => item.clone(),
            ListType::Map(keys) => {
                let default = |key: &String| {
                    let property = schema.items.as_ref().and_then(|inner| inner.properties.get(key));
                    property.and_then(|property| property.default.clone()).unwrap_or(Value::Null)
                };
                let of = |key: &String| (key.clone(), item.get(key).cloned().unwrap_or_else(|| default(key)));
                Value::Object(keys.iter().map(of).collect())
            }
        };
        if !seen.insert(key.to_string()) {
            causes.push(Cause::duplicate(format!("{path}[{index}]"), key));
        }
    }
}

/// What is an object of its own says which.
fn embedded(value: &Value, path: &str, causes: &mut Vec<Cause>) {
    for field in ["apiVersion", "kind"] {
        if value[field].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("{path}.{field}"), "must not be empty"));
        }
    }
}
