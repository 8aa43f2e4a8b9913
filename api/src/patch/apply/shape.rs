//! What may be merged into what: the shape of values by the types of their kind.
//!
//! Built-in kinds have the types of the protobuf table and the lists of [`super::lists`]. Of any other kind only
//! the values tell: objects are merged member by member, lists are one value.

use serde_json::Value;

use super::fields;
use super::lists::{self, ListType};
use crate::kinds::Kind;
use crate::protobuf::table::{self, Count, Field, MessageId, Type};

/// The shape of a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// One value, whatever is in it.
    Leaf,
    /// An object with the members of a type.
    Struct(MessageId),
    /// An object with any members, all of a type.
    Map(Type),
    /// A list of structs told apart by keys.
    Keyed(&'static [&'static str], Type),
    /// A list of scalars told apart by themselves.
    Set,
    /// As the value tells.
    Any,
}

/// A part of a value.
pub(super) struct Child<'a> {
    /// The step that leads to it.
    pub(super) step: String,
    pub(super) value: &'a Value,
    pub(super) shape: Shape,
    /// Whether it is always there in Kubernetes' types, if only as null, so that nobody sets it as such.
    pub(super) is_plain: bool,
}

impl Shape {
    /// The shape of a kind's objects.
    pub(super) fn of(kind: &Kind) -> Self {
        table::message(&kind.api_version(), kind.kind).map_or(Self::Any, Self::Struct)
    }

    fn of_type(ty: Type) -> Self {
        match ty {
            Type::Message(id) if !lists::is_atomic_struct(table::name(id)) => Self::Struct(id),
            _ => Self::Leaf,
        }
    }

    fn of_field(owner: MessageId, field: &Field) -> Self {
        let owner = table::name(owner);
        match field.count {
            Count::One => Self::of_type(field.ty),
            Count::Map if lists::is_atomic_map(owner, field.name) => Self::Leaf,
            Count::Map => Self::Map(field.ty),
            Count::Many => match lists::list_type(owner, field.name) {
                Some(ListType::Set) => Self::Set,
                Some(ListType::Keyed(keys)) => Self::Keyed(keys, field.ty),
                None => Self::Leaf,
            },
        }
    }

    /// The shape of an object's member; and whether it is always there.
    pub(super) fn member(self, name: &str) -> (Self, bool) {
        match self {
            Self::Struct(id) => match table::get(id).named(name) {
                Some(named) => {
                    let shape = Self::of_field(named.owner, &named.field);
                    let is_struct = matches!(shape, Self::Struct(_)) && !named.field.is_optional;
                    (shape, is_struct || named.field.is_required)
                }
                None => (Self::Leaf, false),
            },
            Self::Map(ty) => (Self::of_type(ty), false),
            Self::Any => (Self::Any, false),
            Self::Leaf | Self::Keyed(..) | Self::Set => (Self::Leaf, false),
        }
    }

    /// Whether the member is declared by the type, rather than chosen by whoever writes.
    pub(super) fn is_declared(self, name: &str) -> bool {
        matches!(self, Self::Struct(id) if table::get(id).named(name).is_some())
    }

    /// The step to an item of a list.
    pub(super) fn item_step(self, item: &Value) -> String {
        match self {
            Self::Keyed(keys, _) => {
                let keys = keys.iter().filter_map(|key| {
                    let value = item.get(*key).filter(|value| !value.is_null()).cloned();
                    Some(((*key).to_owned(), value.or_else(|| lists::key_default(key).map(Value::from))?))
                });
                format!("k:{}", Value::Object(keys.collect()))
            }
            _ => format!("v:{item}"),
        }
    }

    /// The shape of a list's items.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Keyed(_, ty) => Self::of_type(ty),
            _ => Self::Leaf,
        }
    }

    /// Whether a value of this shape has parts that are looked at one by one.
    pub(super) fn is_branch(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Struct(_) | Self::Map(_) | Self::Any, Value::Object(members)) => !members.is_empty(),
            (Self::Keyed(..) | Self::Set, Value::Array(items)) => !items.is_empty(),
            _ => false,
        }
    }

    /// The parts of a value that is a branch.
    pub(super) fn children(self, value: &Value) -> Vec<Child<'_>> {
        match value {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| {
                    let (shape, is_plain) = self.member(name);
                    Child { step: fields::member(name), value, shape, is_plain }
                })
                .collect(),
            Value::Array(items) => items
                .iter()
                .map(|value| Child {
                    step: self.item_step(value),
                    value,
                    shape: self.item(),
                    is_plain: false,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}
