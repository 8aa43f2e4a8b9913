//! From JSON to an encoded message, as its table says.
//!
//! Promises to read the JSON once, from the front, without building anything but the bytes: fields stand in
//! the order of the JSON, which protobuf allows, and an inline message may stand in several pieces, which its
//! readers merge. Members that the table does not know, and nulls, are left out. JSON of the wrong type is an
//! error. Does not write what nobody set; readers take that for zero.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::table::{self, Count, Field, MessageId, Named, Type};
use super::wire::Writer;
use crate::object;

/// Writes the fields of a message; a seed for the JSON object.
pub(super) struct Message<'a> {
    pub(super) id: MessageId,
    pub(super) out: &'a mut Writer,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        while let Some(named) = access.next_key_seed(Name { message: table::get(self.id) })? {
            match named {
                None => drop(access.next_value::<IgnoredAny>()?),
                Some(named) => access.next_value_seed(Member { named, out: &mut *self.out })?,
            }
        }
        Ok(())
    }
}

/// Looks a member's name up.
struct Name {
    message: &'static table::Message,
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static Named>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static Named>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.message.named(name))
    }
}

/// Writes a member of an object, in the inline fields that it lies in.
struct Member<'a> {
    named: &'static Named,
    out: &'a mut Writer,
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Member { named, out } = self;
        let opened: Vec<usize> = named.inside.iter().map(|number| out.open(*number)).collect();
        let field = named.field;
        match field.count {
            Count::One => deserializer.deserialize_any(One { field, out })?,
            Count::Many => deserializer.deserialize_any(Many { field, out })?,
            Count::Map => deserializer.deserialize_any(Entries { field, out })?,
        }
        opened.into_iter().rev().for_each(|at| out.close(at));
        Ok(())
    }
}

/// Writes the items of a list, each with the field's number.
struct Many<'a> {
    field: Field,
    out: &'a mut Writer,
}

impl<'de> Visitor<'de> for Many<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        while access.next_element_seed(Element { field: self.field, out: &mut *self.out })?.is_some() {}
        Ok(())
    }
}

/// A value for which the key is written, as an item or an entry's value.
struct Element<'a> {
    field: Field,
    out: &'a mut Writer,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Element { field, out } = self;
        deserializer.deserialize_any(One { field, out })
    }
}

/// Writes the entries of a map: messages of a key (1) and a value (2).
struct Entries<'a> {
    field: Field,
    out: &'a mut Writer,
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let out = self.out;
        let value = Field { number: 2, ..self.field };
        while let Some(key) = access.next_key::<String>()? {
            let entry = out.open(self.field.number);
            out.bytes(1, key.as_bytes());
            access.next_value_seed(Element { field: value, out: &mut *out })?;
            out.close(entry);
        }
        Ok(())
    }
}

/// Writes one value with its key; null writes nothing.
struct One<'a> {
    field: Field,
    out: &'a mut Writer,
}

impl One<'_> {
    fn integer<E: Error>(self, number: i64) -> Result<(), E> {
        let One { field, out } = self;
        match field.ty {
            Type::Int32 => match i32::try_from(number) {
                Ok(number) => out.number(field.number, i64::from(number)),
                Err(_) => return Err(E::custom(format!("{number} has more than 32 bits"))),
            },
            Type::Int64 => out.number(field.number, number),
            #[expect(clippy::cast_precision_loss, reason = "the type of the field")]
            Type::Double => out.double(field.number, number as f64),
            Type::Quantity => out.wrapped(field.number, 1, number.to_string().as_bytes()),
            Type::IntOrString => {
                let at = out.open(field.number);
                out.number(1, 0);
                out.number(2, number);
                out.close(at);
            }
            Type::Json | Type::Raw => out.wrapped(field.number, 1, number.to_string().as_bytes()),
            _ => return Err(mistyped(field, "a number")),
        }
        Ok(())
    }

    fn moment<E: Error>(field: Field, text: &str, out: &mut Writer) -> Result<(), E> {
        let at = object::parse_timestamp(text)
            .ok_or_else(|| E::custom(format!("{}: {text:?} is no time of RFC 3339", field.name)))?;
        let nanos = match field.ty {
            Type::MicroTime => at.subsec_nanosecond() / 1000 * 1000,
            _ => 0,
        };
        // Before 1970 the parts of a second count back.
        let seconds = if at.subsec_nanosecond() < 0 { at.as_second() - 1 } else { at.as_second() };
        let nanos = if nanos < 0 { nanos + 1_000_000_000 } else { nanos };
        let message = out.open(field.number);
        out.number(1, seconds);
        out.number(2, i64::from(nanos));
        out.close(message);
        Ok(())
    }
}

fn mistyped<E: Error>(field: Field, found: &str) -> E {
    E::custom(format!("{}: {found} where the kind's type has something else", field.name))
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a value of {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        let One { field, out } = self;
        match field.ty {
            Type::Bool => out.number(field.number, i64::from(value)),
            Type::SchemaOrBool(_) => {
                let at = out.open(field.number);
                out.number(1, i64::from(value));
                out.close(at);
            }
            Type::Json | Type::Raw => out.wrapped(field.number, 1, value.to_string().as_bytes()),
            _ => return Err(mistyped(field, "a bool")),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.integer(number)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        match (self.field.ty, i64::try_from(number)) {
            (_, Ok(number)) => self.integer(number),
            #[expect(clippy::cast_precision_loss, reason = "the type of the field")]
            (Type::Double, _) => self.visit_f64(number as f64),
            (Type::Json | Type::Raw, _) => {
                self.out.wrapped(self.field.number, 1, number.to_string().as_bytes());
                Ok(())
            }
            _ => Err(mistyped(self.field, "a number of more than 63 bits")),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        let One { field, out } = self;
        match field.ty {
            Type::Double => out.double(field.number, number),
            Type::Quantity => out.wrapped(field.number, 1, number.to_string().as_bytes()),
            Type::Json | Type::Raw => {
                let text = serde_json::to_string(&number).map_err(E::custom)?;
                out.wrapped(field.number, 1, text.as_bytes());
            }
            _ => return Err(mistyped(field, "a number with a fraction")),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let One { field, out } = self;
        match field.ty {
            Type::Text => out.bytes(field.number, text.as_bytes()),
            Type::Bytes => match STANDARD.decode(text) {
                Ok(bytes) => out.bytes(field.number, &bytes),
                Err(_) => return Err(mistyped(field, "a text that is no base64")),
            },
            Type::Time | Type::MicroTime => return Self::moment(field, text, out),
            Type::Quantity => out.wrapped(field.number, 1, text.as_bytes()),
            Type::IntOrString => {
                let at = out.open(field.number);
                out.number(1, 1);
                out.number(2, 0);
                out.bytes(3, text.as_bytes());
                out.close(at);
            }
            Type::Json | Type::Raw => {
                let text = serde_json::to_string(text).map_err(E::custom)?;
                out.wrapped(field.number, 1, text.as_bytes());
            }
            _ => return Err(mistyped(field, "a text")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let One { field, out } = self;
        let item = match field.ty {
            Type::Texts => Field { number: 1, ty: Type::Text, ..field },
            Type::SchemaOrArray(id) => Field { number: 2, ty: Type::Message(id), ..field },
            Type::SchemaOrTexts(_) => Field { number: 2, ty: Type::Text, ..field },
            Type::Json | Type::Raw => {
                let mut items: Vec<Box<RawValue>> = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                let text = serde_json::to_string(&items).map_err(A::Error::custom)?;
                out.wrapped(field.number, 1, text.as_bytes());
                return Ok(());
            }
            _ => return Err(mistyped(field, "a list")),
        };
        let at = out.open(field.number);
        while access.next_element_seed(Element { field: item, out: &mut *out })?.is_some() {}
        out.close(at);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let One { field, out } = self;
        let at = out.open(field.number);
        match field.ty {
            Type::Message(id) => Message { id, out: &mut *out }.visit_map(access)?,
            Type::SchemaOrArray(id) | Type::SchemaOrTexts(id) | Type::SchemaOrBool(id) => {
                let is_bool = matches!(field.ty, Type::SchemaOrBool(_));
                if is_bool {
                    out.number(1, 1);
                }
                let schema = out.open(if is_bool { 2 } else { 1 });
                Message { id, out: &mut *out }.visit_map(access)?;
                out.close(schema);
            }
            Type::Json | Type::Raw => {
                let mut members: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some(member) = access.next_entry()? {
                    members.push(member);
                }
                let text = out.open(1);
                out.json_object(&members).map_err(A::Error::custom)?;
                out.close(text);
            }
            _ => return Err(mistyped(field, "an object")),
        }
        out.close(at);
        Ok(())
    }
}
