//! From an encoded message and its table to a JSON object.
//!
//! Promises what protobuf asks of readers: the last one of a single value counts, messages that stand more
//! than once are merged, unknown fields are skipped. What nobody set does not appear (see
//! [`Field::is_optional`]). Nesting and the number of values are bounded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::table::{self, Count, Field, MessageId, Type};
use super::wire::{Fields, Wire};
use super::{Malformed, Problem};
use crate::object;

/// The zero time of Kubernetes' types, 0001-01-01T00:00:00Z.
const ZERO_SECONDS: i64 = -62_135_596_800;
/// 0000-01-01T00:00:00Z; RFC 3339 has no earlier year.
const EARLIEST_SECONDS: i64 = -62_167_219_200;
/// Deepest nesting of messages.
const DEPTH_MAX: usize = 100;
/// Most messages, list items and map entries in one body: each may take a few bytes there, and some hundred
/// as JSON.
const VALUES_MAX: usize = 200_000;

/// What is left of the bounds of one body.
pub(super) struct Reader {
    depth: usize,
    values: usize,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { depth: DEPTH_MAX, values: VALUES_MAX }
    }

    /// Adds the fields of a message to an object.
    pub(super) fn message(
        &mut self,
        id: MessageId,
        bytes: &[u8],
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        self.count()?;
        self.depth = self.depth.checked_sub(1).ok_or(Problem::Depth)?;
        let message = table::get(id);
        for wire in Fields(bytes) {
            let (number, wire) = wire?;
            if let Some(field) = message.field(number) {
                self.set(field, wire, object).map_err(|error| error.within(field.name))?;
            }
        }
        self.depth += 1;
        Ok(())
    }

    fn count(&mut self) -> Result<(), Problem> {
        self.values = self.values.checked_sub(1).ok_or(Problem::Values)?;
        Ok(())
    }

    fn set(
        &mut self,
        field: &Field,
        wire: Wire<'_>,
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        match (field.count, field.ty, wire) {
            (Count::One, Type::Message(id), Wire::Delimited(bytes)) => {
                return self.set_message(field, id, bytes, object);
            }
            (Count::Many, Type::Int32 | Type::Int64, Wire::Delimited(bytes)) => {
                return self.append_packed(field, bytes, object);
            }
            (Count::Many, ..) => {
                let item = self.value(field.ty, wire)?.unwrap_or(Value::Null);
                return self.append(field, item, object);
            }
            (Count::Map, _, Wire::Delimited(bytes)) => return self.insert(field, bytes, object),
            _ => {}
        }
        let value = self.value(field.ty, wire)?;
        match value.filter(|value| field.is_optional || field.is_required || !is_zero(value)) {
            Some(value) => object.insert(field.name.to_owned(), value),
            None => object.remove(field.name),
        };
        Ok(())
    }

    fn set_message(
        &mut self,
        field: &Field,
        id: MessageId,
        bytes: &[u8],
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        if field.name.is_empty() {
            return self.message(id, bytes, object);
        }
        let mut inner = match object.remove(field.name) {
            Some(Value::Object(earlier)) => earlier,
            _ => Map::new(),
        };
        self.message(id, bytes, &mut inner)?;
        if field.is_optional || field.is_required || !inner.is_empty() {
            object.insert(field.name.to_owned(), Value::Object(inner));
        }
        Ok(())
    }

    fn append(
        &mut self,
        field: &Field,
        item: Value,
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        self.count()?;
        let items = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(items) = items {
            items.push(item);
        }
        Ok(())
    }

    /// Appends numbers that stand without keys one after the other.
    fn append_packed(
        &mut self,
        field: &Field,
        mut bytes: &[u8],
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            let mut fields = Fields(bytes);
            let number = fields.varint()?;
            bytes = fields.0;
            let item = self.value(field.ty, Wire::Varint(number))?.unwrap_or(Value::Null);
            self.append(field, item, object)?;
        }
        Ok(())
    }

    /// Inserts an entry of a map: a message of a key (1) and a value (2), each empty if not there.
    fn insert(
        &mut self,
        field: &Field,
        bytes: &[u8],
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        self.count()?;
        let (mut key, mut value) = (&[][..], &[][..]);
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Delimited(bytes)) => key = bytes,
                (2, Wire::Delimited(bytes)) => value = bytes,
                (1 | 2, _) => return Err(Problem::WireType.into()),
                _ => {}
            }
        }
        let key = text(key)?;
        let value = self.value(field.ty, Wire::Delimited(value))?.unwrap_or(Value::Null);
        let entries = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(entries) = entries {
            entries.insert(key, value);
        }
        Ok(())
    }

    /// One value; `None` for the zero time, which is null in JSON.
    fn value(&mut self, ty: Type, wire: Wire<'_>) -> Result<Option<Value>, Malformed> {
        Ok(Some(match (ty, wire) {
            (Type::Int32, Wire::Varint(number)) => Value::from(int32(number)?),
            // Varints carry 64-bit two's complement.
            (Type::Int64, Wire::Varint(number)) => Value::from(number.cast_signed()),
            (Type::Bool, Wire::Varint(number)) => Value::from(number != 0),
            (Type::Double, Wire::Fixed(number)) => double(f64::from_bits(number))?,
            (Type::Text, Wire::Delimited(bytes)) => Value::from(text(bytes)?),
            (Type::Bytes, Wire::Delimited(bytes)) => Value::from(STANDARD.encode(bytes)),
            (Type::Time, Wire::Delimited(bytes)) => {
                return Ok(time(bytes)?.map(|at| Value::from(object::timestamp(at))));
            }
            (Type::MicroTime, Wire::Delimited(bytes)) => {
                return Ok(time(bytes)?.map(|at| Value::from(object::micro_timestamp(at))));
            }
            (Type::Quantity, Wire::Delimited(bytes)) => Value::from(text(last_delimited(bytes)?)?),
            (Type::IntOrString, Wire::Delimited(bytes)) => int_or_string(bytes)?,
            (Type::Json, Wire::Delimited(bytes)) => json(last_delimited(bytes)?)?,
            (Type::Raw, Wire::Delimited(bytes)) => return self.raw(last_delimited(bytes)?),
            (Type::Texts, Wire::Delimited(bytes)) => self.texts(bytes)?,
            (Type::SchemaOrArray(id), Wire::Delimited(bytes)) => self.schema_or_array(id, bytes)?,
            (Type::SchemaOrBool(id), Wire::Delimited(bytes)) => self.schema_or_bool(id, bytes)?,
            (Type::SchemaOrTexts(id), Wire::Delimited(bytes)) => self.schema_or_texts(id, bytes)?,
            (Type::Message(id), Wire::Delimited(bytes)) => self.object(id, bytes)?,
            _ => return Err(Problem::WireType.into()),
        }))
    }

    fn object(&mut self, id: MessageId, bytes: &[u8]) -> Result<Value, Malformed> {
        let mut inner = Map::new();
        self.message(id, bytes, &mut inner)?;
        Ok(Value::Object(inner))
    }

    /// An object in an envelope of its own, or JSON; nothing at all is none.
    fn raw(&mut self, bytes: &[u8]) -> Result<Option<Value>, Malformed> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if !bytes.starts_with(super::MAGIC) {
            return json(bytes).map(Some).map_err(Malformed::from);
        }
        match super::enveloped(bytes, self) {
            Ok(value) => Ok(Some(value)),
            Err(super::Error::Malformed(malformed)) => Err(malformed),
            Err(_) => Err(Problem::Embedded.into()),
        }
    }

    fn texts(&mut self, bytes: &[u8]) -> Result<Value, Malformed> {
        let mut items = Vec::new();
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Delimited(bytes)) => {
                    self.count()?;
                    items.push(Value::from(text(bytes)?));
                }
                (1, _) => return Err(Problem::WireType.into()),
                _ => {}
            }
        }
        Ok(Value::Array(items))
    }

    fn schema_or_array(&mut self, id: MessageId, bytes: &[u8]) -> Result<Value, Malformed> {
        let (mut schema, mut items) = (None, Vec::new());
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Delimited(bytes)) => schema = Some(self.object(id, bytes)?),
                (2, Wire::Delimited(bytes)) => items.push(self.object(id, bytes)?),
                (1 | 2, _) => return Err(Problem::WireType.into()),
                _ => {}
            }
        }
        Ok(schema.unwrap_or(Value::Array(items)))
    }

    fn schema_or_bool(&mut self, id: MessageId, bytes: &[u8]) -> Result<Value, Malformed> {
        let (mut allows, mut schema) = (false, None);
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Varint(number)) => allows = number != 0,
                (2, Wire::Delimited(bytes)) => schema = Some(self.object(id, bytes)?),
                (1 | 2, _) => return Err(Problem::WireType.into()),
                _ => {}
            }
        }
        Ok(schema.unwrap_or(Value::from(allows)))
    }

    fn schema_or_texts(&mut self, id: MessageId, bytes: &[u8]) -> Result<Value, Malformed> {
        let (mut schema, mut items) = (None, Vec::new());
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Delimited(bytes)) => schema = Some(self.object(id, bytes)?),
                (2, Wire::Delimited(bytes)) => {
                    self.count()?;
                    items.push(Value::from(text(bytes)?));
                }
                (1 | 2, _) => return Err(Problem::WireType.into()),
                _ => {}
            }
        }
        Ok(schema.unwrap_or(Value::Array(items)))
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Reads text.
pub(super) fn text(bytes: &[u8]) -> Result<String, Problem> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Problem::Utf8)
}

fn int32(number: u64) -> Result<i32, Problem> {
    i32::try_from(number.cast_signed()).map_err(|_| Problem::Range)
}

/// A whole number stays one in JSON.
fn double(number: f64) -> Result<Value, Problem> {
    /// Up to here every whole number is a `f64` of its own.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT_MAX {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        return Ok(Value::from(number as i64));
    }
    serde_json::Number::from_f64(number).map(Value::Number).ok_or(Problem::Range)
}

fn json(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|_| Problem::Json)
}

/// The last value of field 1 of a message that has no other.
fn last_delimited(bytes: &[u8]) -> Result<&[u8], Problem> {
    let mut last = &[][..];
    for wire in Fields(bytes) {
        match wire? {
            (1, Wire::Delimited(bytes)) => last = bytes,
            (1, _) => return Err(Problem::WireType),
            _ => {}
        }
    }
    Ok(last)
}

/// Reads which of the two (1), the number (2) and the text (3).
fn int_or_string(bytes: &[u8]) -> Result<Value, Problem> {
    let (mut is_text, mut number, mut string) = (false, 0, &[][..]);
    for wire in Fields(bytes) {
        match wire? {
            (1, Wire::Varint(which)) => is_text = which != 0,
            (2, Wire::Varint(value)) => number = int32(value)?,
            (3, Wire::Delimited(bytes)) => string = bytes,
            (1..=3, _) => return Err(Problem::WireType),
            _ => {}
        }
    }
    Ok(if is_text { Value::from(text(string)?) } else { Value::from(number) })
}

/// Reads a moment: seconds (1) and nanoseconds (2). Nothing at all is the zero time, that is none.
fn time(bytes: &[u8]) -> Result<Option<jiff::Timestamp>, Problem> {
    let (mut seconds, mut nanos) = (0, 0);
    for wire in Fields(bytes) {
        match wire? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = int32(number)?,
            (1 | 2, _) => return Err(Problem::WireType),
            _ => {}
        }
    }
    if bytes.is_empty() || (seconds, nanos) == (ZERO_SECONDS, 0) {
        return Ok(None);
    }
    if seconds < EARLIEST_SECONDS || !(0..1_000_000_000).contains(&nanos) {
        return Err(Problem::Range);
    }
    jiff::Timestamp::new(seconds, nanos).map(Some).map_err(|_| Problem::Range)
}
