//! Printed columns of custom kinds, and the JSON paths that columns, scale and field selectors name.
//!
//! Owns the part of Kubernetes' JSONPath that definitions may use: fields, indices, `[*]`, and filters such as
//! `[?(@.type=="Ready")]`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::duration;
use crate::object;

/// Longest path.
const PATH_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items in which that path is equal to the value, or not.
    Filter(Vec<Step>, bool, Value),
}

/// A JSON path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

impl JsonPath {
    /// Reads a path such as `.spec.replicas`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > PATH_BYTES_MAX {
            return Err(format!("has more than {PATH_BYTES_MAX} bytes"));
        }
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        Ok(Self { steps: steps(inner)? })
    }

    /// The first value that the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        walk(&self.steps, value).into_iter().next()
    }

    /// The names of the path, if it is made of fields only.
    pub fn fields(&self) -> Option<Vec<&str>> {
        let steps = self.steps.iter().map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        });
        steps.collect()
    }

    /// Sets what the path leads to, making objects on the way; nothing if it is not made of fields only.
    pub fn set(&self, root: &mut Value, new: Value) {
        let Some(fields) = self.fields() else { return };
        let mut place = root;
        for field in fields {
            if !place.is_object() {
                *place = json!({});
            }
            let Some(members) = place.as_object_mut() else { return };
            place = members.entry(field.to_owned()).or_insert(Value::Null);
        }
        *place = new;
    }
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after).ok_or_else(|| format!("unterminated array in {text:?}"))?;
            steps.push(bracket(&after[..end])?);
            rest = &after[end + 1..];
            continue;
        }
        let after = match rest.strip_prefix('.') {
            Some(after) => after,
            None if steps.is_empty() => rest,
            None => return Err(format!("unexpected {rest:?}")),
        };
        let end = name_end(after);
        let name = after[..end].replace('\\', "");
        match name.as_str() {
            "" if after.starts_with('[') => {}
            "" => return Err("a field has no name".to_owned()),
            "*" => steps.push(Step::All),
            _ => steps.push(Step::Field(name)),
        }
        rest = &after[end..];
    }
    if steps.is_empty() { Err("must not be empty".to_owned()) } else { Ok(steps) }
}

/// Where a field's name ends; a backslash takes the next letter for itself.
fn name_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '.' | '[' => return at,
            _ => {}
        }
    }
    text.len()
}

/// Where the bracket closes that was opened before the text.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_usize, None);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Ok(index) = text.parse() {
        return Ok(Step::Index(index));
    }
    if let Some(name) = unquoted(text) {
        return Ok(Step::Field(name));
    }
    let filter = text.strip_prefix("?(").and_then(|text| text.strip_suffix(')'));
    let Some(filter) = filter else { return Err(format!("invalid array index {text}")) };
    let (path, is_equal, value) = match (filter.split_once("=="), filter.split_once("!=")) {
        (Some((path, value)), _) => (path, true, value),
        (_, Some((path, value))) => (path, false, value),
        _ => return Err(format!("unsupported filter {filter}")),
    };
    let path = path.trim().strip_prefix('@').ok_or_else(|| format!("unsupported filter {filter}"))?;
    let value = value.trim();
    let value = match unquoted(value) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(value).map_err(|_| format!("unsupported filter {filter}"))?,
    };
    Ok(Step::Filter(steps(path)?, is_equal, value))
}

fn unquoted(text: &str) -> Option<String> {
    ['"', '\''].iter().find_map(|quote| {
        let inner = text.strip_prefix(*quote)?.strip_suffix(*quote)?;
        Some(inner.to_owned())
    })
}

fn walk<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![value];
    for step in steps {
        found = found
            .into_iter()
            .flat_map(|value| -> Vec<&'a Value> {
                match (step, value) {
                    (Step::Field(name), _) => value.get(name).into_iter().collect(),
                    (Step::Index(index), Value::Array(items)) => {
                        let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
                        let at = match *index < 0 {
                            true => items.len().checked_sub(from_end),
                            false => Some(from_end),
                        };
                        at.and_then(|at| items.get(at)).into_iter().collect()
                    }
                    (Step::All, Value::Array(items)) => items.iter().collect(),
                    (Step::All, Value::Object(members)) => members.values().collect(),
                    (Step::Filter(path, is_equal, wanted), Value::Array(items)) => {
                        let matches =
                            |item: &&Value| (walk(path, item).first() == Some(&wanted)) == *is_equal;
                        items.iter().filter(matches).collect()
                    }
                    _ => Vec::new(),
                }
            })
            .collect();
    }
    found
}

/// A printed column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) ty: String,
    pub(super) format: String,
    pub(super) description: String,
    pub(super) priority: i64,
    pub(super) path: Option<JsonPath>,
}

impl Column {
    pub(super) fn parse(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        Self {
            name: text("name"),
            ty: text("type"),
            format: text("format"),
            description: text("description"),
            priority: json["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(&text("jsonPath")).ok(),
        }
    }

    /// What a kind prints that names no columns.
    pub(super) fn age() -> Self {
        Self {
            name: "Age".to_owned(),
            ty: "date".to_owned(),
            format: String::new(),
            description: "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata".to_owned(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }
    }

    /// The column's definition in a table.
    pub(super) fn definition(&self) -> Value {
        let description = match self.description.is_empty() {
            true => format!("Custom resource definition column (in JSONPath format): {}", self.name),
            false => self.description.clone(),
        };
        json!({"name": self.name, "type": self.ty, "format": self.format, "description": description,
            "priority": self.priority})
    }

    /// The column's cell for an object.
    pub(super) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(found) = self.path.as_ref().and_then(|path| path.find(object)) else { return Value::Null };
        match (self.ty.as_str(), found) {
            (_, Value::Null) => Value::Null,
            ("date", Value::String(text)) => match object::parse_timestamp(text) {
                Some(_) => Value::from(duration::since_field(Some(found), now)),
                None => Value::from("<invalid>"),
            },
            ("integer", Value::Number(number)) => number.as_i64().map_or_else(|| found.clone(), Value::from),
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
            ("string", Value::String(text)) => Value::from(text.as_str()),
            ("string", other) => Value::from(other.to_string()),
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({"spec": {"a": 1, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}],
            "m": {"a.b": "c", "d/e": 3}}});
        for (path, wanted) in [
            (".spec.a", Some(json!(1))),
            ("spec.a", Some(json!(1))),
            ("{.spec.a}", Some(json!(1))),
            (".spec.l[1].n", Some(json!("y"))),
            (".spec.l[-1].n", Some(json!("y"))),
            (".spec.l[*].n", Some(json!("x"))),
            (".spec.l[?(@.n==\"y\")].v", Some(json!(2))),
            (".spec.l[?(@.v == 2)].n", Some(json!("y"))),
            (".spec.m['a.b']", Some(json!("c"))),
            (".spec.m.a\\.b", Some(json!("c"))),
            (".spec.m.d/e", Some(json!(3))),
            (".spec.none", None),
        ] {
            let parsed = JsonPath::parse(path).unwrap_or_else(|why| panic!("{path}: {why}"));
            assert_eq!(parsed.find(&object), wanted.as_ref(), "{path}");
        }
        for path in ["", ".", ".a[", ".a[x]", ".a[?(@.b>1)]", "..a"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_path_can_be_set() {
        let mut object = json!({"spec": {}});
        JsonPath::parse(".spec.scale.count").expect("a path").set(&mut object, json!(3));
        assert_eq!(object, json!({"spec": {"scale": {"count": 3}}}));
    }
}
