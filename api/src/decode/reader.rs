//! A deserializer over JSON that remembers where it is.
//!
//! Owns the path, the enclosing struct's name, and what should be edited in the value: unknown fields, nulls,
//! quantities that are not canonical. Promises errors in the words of Go's decoder. One instantiation per
//! type, so that the large pod types are compiled once.

use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde_json::Value;

use crate::quantity::Quantity;

/// A step from a value to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// A change that brings the value into stored form.
#[derive(Debug)]
pub(super) enum Edit {
    /// The type has no such field.
    Unknown(Vec<Segment>),
    /// An optional field is null.
    Null(Vec<Segment>),
    /// The value is meant, but written otherwise.
    Rewrite(Vec<Segment>, Value),
}

impl Edit {
    pub(super) fn apply(self, root: &mut Value) {
        match self {
            Self::Unknown(path) | Self::Null(path) => {
                if let Some((Segment::Key(key), parents)) = path.split_last()
                    && let Some(parent) = find(root, parents).and_then(Value::as_object_mut)
                {
                    parent.remove(key);
                }
            }
            Self::Rewrite(path, value) => {
                if let Some(place) = find(root, &path) {
                    *place = value;
                }
            }
        }
    }
}

fn find<'a>(root: &'a mut Value, path: &[Segment]) -> Option<&'a mut Value> {
    path.iter().try_fold(root, |value, segment| match segment {
        Segment::Key(key) => value.get_mut(key),
        Segment::Index(index) => value.get_mut(index),
    })
}

/// `spec.containers[0].foo`.
pub(super) fn printed(path: &[Segment]) -> String {
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Segment::Index(index) => out.push_str(&format!("[{index}]")),
        }
    }
    out
}

/// Where the reader is, and what it has noticed.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    path: Vec<Segment>,
    structs: Vec<&'static str>,
    pub(super) edits: Vec<Edit>,
}

impl Tracker {
    fn mismatch(&self, got: &str, wanted: &str) -> Error {
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|s| match s {
                Segment::Key(key) => Some(key.as_str()),
                Segment::Index(_) => None,
            })
            .collect();
        let owner = self.structs.last().copied().unwrap_or("");
        Error(format!(
            "json: cannot unmarshal {got} into Go struct field {owner}.{} of type {wanted}",
            fields.join(".")
        ))
    }
}

/// A value's JSON type as Go's decoder names it.
pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Reads the value as a `T`.
pub(super) fn read<T: DeserializeOwned>(value: &Value, tracker: &mut Tracker) -> Result<T, String> {
    T::deserialize(Reader { value, tracker }).map_err(|error| error.0)
}

#[derive(Debug)]
struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct Reader<'de, 'a> {
    value: &'de Value,
    tracker: &'a mut Tracker,
}

static EMPTY_OBJECT: std::sync::LazyLock<serde_json::Map<String, Value>> =
    std::sync::LazyLock::new(serde_json::Map::new);

impl<'de> Reader<'de, '_> {
    fn mismatch(&self, wanted: &str) -> Error {
        self.tracker.mismatch(json_type(self.value), wanted)
    }

    fn rewrite(&mut self, value: Value) {
        self.tracker.edits.push(Edit::Rewrite(self.tracker.path.clone(), value));
    }

    /// A number that Go's type holds, or the error that names the number when only its size is wrong.
    fn integer(&self, wanted: &str, range: std::ops::RangeInclusive<i64>) -> Result<i64, Error> {
        let Value::Number(number) = self.value else { return Err(self.mismatch(wanted)) };
        number
            .as_i64()
            .filter(|n| range.contains(n))
            .ok_or_else(|| self.tracker.mismatch(&format!("number {number}"), wanted))
    }

    fn map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let members = match self.value {
            Value::Object(members) => members,
            _ => &*EMPTY_OBJECT,
        };
        visitor.visit_map(Members { members: members.iter(), value: None, tracker: self.tracker })
    }
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(n), _, _) => visitor.visit_i64(n),
                (_, Some(n), _) => visitor.visit_u64(n),
                (_, _, n) => visitor.visit_f64(n.unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Bool(b) => visitor.visit_bool(*b),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let n = self.integer("int32", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
        visitor.visit_i64(n)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let n = self.integer("int64", i64::MIN..=i64::MAX)?;
        visitor.visit_i64(n)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.as_f64() {
            Some(n) => visitor.visit_f64(n),
            None => Err(self.mismatch("float64")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Null => {
                self.rewrite(Value::from(""));
                visitor.visit_borrowed_str("")
            }
            _ => Err(self.mismatch("string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() {
            self.tracker.edits.push(Edit::Null(self.tracker.path.clone()));
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == "Quantity" {
            let written = match self.value {
                Value::String(text) => text.trim().to_owned(),
                Value::Number(number) => number.to_string(),
                _ => return Err(self.mismatch("resource.Quantity")),
            };
            let canonical = Quantity::parse(&written).map_err(de::Error::custom)?.to_string();
            if self.value.as_str() != Some(canonical.as_str()) {
                self.rewrite(Value::from(canonical));
            }
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(items) => {
                visitor.visit_seq(Items { items: items.iter().enumerate(), tracker: self.tracker })
            }
            _ => Err(self.mismatch("array")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_object() { self.map(visitor) } else { Err(self.mismatch("map")) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::Object(_) => {}
            // A null in a list is an empty item to Go.
            Value::Null => self.rewrite(Value::Object(serde_json::Map::new())),
            _ => return Err(self.mismatch(&format!("v1.{name}"))),
        }
        self.tracker.structs.push(name);
        let tracker = &mut *self.tracker;
        let result = Reader { value: self.value, tracker }.map(visitor);
        self.tracker.structs.pop();
        result
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.tracker.edits.push(Edit::Unknown(self.tracker.path.clone()));
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier
    }
}

struct Members<'de, 'a> {
    members: serde_json::map::Iter<'de>,
    value: Option<(&'de str, &'de Value)>,
    tracker: &'a mut Tracker,
}

impl<'de> de::MapAccess<'de> for Members<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.members.next() else { return Ok(None) };
        self.value = Some((key, value));
        let key: BorrowedStrDeserializer<'de, Error> = BorrowedStrDeserializer::new(key);
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, value) =
            self.value.take().ok_or_else(|| Error("a value was read before its key".into()))?;
        self.tracker.path.push(Segment::Key(key.to_owned()));
        let result = seed.deserialize(Reader { value, tracker: self.tracker });
        if result.is_ok() {
            self.tracker.path.pop();
        }
        result
    }
}

struct Items<'de, 'a> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    tracker: &'a mut Tracker,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        self.tracker.path.push(Segment::Index(index));
        let result = seed.deserialize(Reader { value, tracker: self.tracker });
        if result.is_ok() {
            self.tracker.path.pop();
        }
        result.map(Some)
    }
}
