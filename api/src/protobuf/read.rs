//! From an encoded message and its table to a JSON object.
//!
//! Promises what protobuf asks of readers: the last one of a single value counts, messages that stand more
//! than once are merged, unknown fields are skipped. What nobody set does not appear (see
//! [`Field::is_optional`]).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::messages::{Field, Type};
use super::wire::{Fields, Wire};
use super::{Malformed, Problem};
use crate::object;

/// The zero time of Kubernetes' types, 0001-01-01T00:00:00Z.
const ZERO_SECONDS: i64 = -62_135_596_800;
/// 0000-01-01T00:00:00Z; RFC 3339 has no earlier year.
const EARLIEST_SECONDS: i64 = -62_167_219_200;

/// Adds the fields of a message to an object.
pub(super) fn message(
    fields: &[Field],
    bytes: &[u8],
    object: &mut Map<String, Value>,
) -> Result<(), Malformed> {
    for wire in Fields(bytes) {
        let (number, wire) = wire?;
        if let Some(field) = fields.iter().find(|field| field.number == number) {
            set(field, wire, object).map_err(|error| error.within(field.name))?;
        }
    }
    Ok(())
}

fn set(field: &Field, wire: Wire<'_>, object: &mut Map<String, Value>) -> Result<(), Malformed> {
    let value = match (field.ty, wire) {
        (Type::Int32, Wire::Varint(number)) => Some(Value::from(int32(number)?)),
        // Varints carry 64-bit two's complement.
        (Type::Int64, Wire::Varint(number)) => Some(Value::from(number.cast_signed())),
        (Type::Bool, Wire::Varint(number)) => Some(Value::from(number != 0)),
        (Type::Text, Wire::Delimited(bytes)) => Some(Value::from(text(bytes)?)),
        (Type::Time, Wire::Delimited(bytes)) => time(bytes)?.map(|at| Value::from(object::timestamp(at))),
        (Type::MicroTime, Wire::Delimited(bytes)) => {
            time(bytes)?.map(|at| Value::from(object::micro_timestamp(at)))
        }
        (Type::Message(fields), Wire::Delimited(bytes)) => {
            let mut inner = match object.remove(field.name) {
                Some(Value::Object(earlier)) => earlier,
                _ => Map::new(),
            };
            message(fields, bytes, &mut inner)?;
            (!inner.is_empty()).then_some(Value::Object(inner))
        }
        (Type::Texts, Wire::Delimited(bytes)) => return append(field, Value::from(text(bytes)?), object),
        (Type::Messages(fields), Wire::Delimited(bytes)) => {
            let mut inner = Map::new();
            message(fields, bytes, &mut inner)?;
            return append(field, Value::Object(inner), object);
        }
        (Type::TextMap | Type::BytesMap, Wire::Delimited(bytes)) => return insert(field, bytes, object),
        _ => return Err(Problem::WireType.into()),
    };
    match value.filter(|value| field.is_optional || !is_zero(value)) {
        Some(value) => object.insert(field.name.to_owned(), value),
        None => object.remove(field.name),
    };
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn append(field: &Field, item: Value, object: &mut Map<String, Value>) -> Result<(), Malformed> {
    let items = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(items) = items {
        items.push(item);
    }
    Ok(())
}

/// Inserts an entry of a map: a message of a key (1) and a value (2), each empty if not there.
fn insert(field: &Field, bytes: &[u8], object: &mut Map<String, Value>) -> Result<(), Malformed> {
    let (mut key, mut value) = (&[][..], &[][..]);
    for wire in Fields(bytes) {
        match wire? {
            (1, Wire::Delimited(bytes)) => key = bytes,
            (2, Wire::Delimited(bytes)) => value = bytes,
            (1 | 2, _) => return Err(Problem::WireType.into()),
            _ => {}
        }
    }
    let value = match field.ty {
        Type::BytesMap => STANDARD.encode(value),
        _ => text(value)?,
    };
    let entries = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(entries) = entries {
        entries.insert(text(key)?, Value::from(value));
    }
    Ok(())
}

/// Reads text.
pub(super) fn text(bytes: &[u8]) -> Result<String, Problem> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Problem::Utf8)
}

fn int32(number: u64) -> Result<i32, Problem> {
    i32::try_from(number.cast_signed()).map_err(|_| Problem::Range)
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
