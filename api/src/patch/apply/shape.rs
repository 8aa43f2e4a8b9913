//! What may be merged into what: the shape of values by the types of their kind.
//!
//! Built-in kinds have the types of the protobuf table and the lists of [`super::lists`]; custom ones what their
//! schema says, with the metadata that all objects have. Where neither says anything the values tell: objects
//! are merged member by member, lists are one value.

use serde_json::Value;

use super::Typed;
use super::fields;
use super::lists::{self, ListType};
use crate::crd;
use crate::protobuf::table::{self, Count, Field, MessageId, Type};

/// The shape of a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape<'a> {
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
    /// An object as a custom kind's schema describes it; and whether it is a whole one, with metadata.
    Custom(&'a crd::Schema, bool),
    /// A list of such objects told apart by keys.
    CustomKeyed(&'a [String], &'a crd::Schema),
    /// As the value tells.
    Any,
}

/// A part of a value.
pub(super) struct Child<'a> {
    /// The step that leads to it.
    pub(super) step: String,
    pub(super) value: &'a Value,
    pub(super) shape: Shape<'a>,
    /// Whether it is always there in Kubernetes' types, if only as null, so that nobody sets it as such.
    pub(super) is_plain: bool,
}

/// What every object says of itself.
const ENVELOPE: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl<'a> Shape<'a> {
    /// The shape of a kind's objects.
    pub(super) fn of(typed: Typed<'a>) -> Self {
        let Typed { kind, custom } = typed;
        let built_in = || table::message(&kind.api_version(), kind.kind).map_or(Self::Any, Self::Struct);
        custom.map_or_else(built_in, |custom| Self::Custom(custom.schema(), true))
    }

    fn of_schema(schema: &'a crd::Schema) -> Self {
        let says_nothing = schema.properties.is_empty() && schema.additional.is_none() && !schema.embedded;
        match schema.ty {
            crd::Type::Object if schema.is_atomic => Self::Leaf,
            crd::Type::Object if says_nothing => Self::Any,
            crd::Type::Object => Self::Custom(schema, schema.embedded),
            crd::Type::Array => match (&schema.list_type, &schema.items) {
                (crd::ListType::Set, _) => Self::Set,
                (crd::ListType::Map(keys), Some(items)) => Self::CustomKeyed(keys, items),
                _ => Self::Leaf,
            },
            crd::Type::Any => Self::Any,
            _ => Self::Leaf,
        }
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
            Self::Custom(_, true) if name == "metadata" => {
                (table::message("meta.k8s.io/v1", "ObjectMeta").map_or(Self::Any, Self::Struct), true)
            }
            Self::Custom(_, true) if ENVELOPE.contains(&name) => (Self::Leaf, false),
            Self::Custom(schema, _) => (schema.member(name).map_or(Self::Any, Self::of_schema), false),
            Self::Any => (Self::Any, false),
            Self::Leaf | Self::Keyed(..) | Self::CustomKeyed(..) | Self::Set => (Self::Leaf, false),
        }
    }

    /// Whether values are objects whose members are looked at one by one.
    pub(super) fn is_object(self) -> bool {
        matches!(self, Self::Struct(_) | Self::Map(_) | Self::Custom(..) | Self::Any)
    }

    /// Whether values are lists whose items are told apart.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Self::Keyed(..) | Self::CustomKeyed(..) | Self::Set)
    }

    /// Whether the member is declared by the type, rather than chosen by whoever writes.
    pub(super) fn is_declared(self, name: &str) -> bool {
        match self {
            Self::Struct(id) => table::get(id).named(name).is_some(),
            Self::Custom(schema, whole) => {
                schema.properties.contains_key(name) || (whole && ENVELOPE.contains(&name))
            }
            _ => false,
        }
    }

    /// The step to an item of a list.
    pub(super) fn item_step(self, item: &Value) -> String {
        let sent = |key: &str| item.get(key).filter(|value| !value.is_null()).cloned();
        let keys: serde_json::Map<String, Value> = match self {
            Self::Keyed(keys, _) => keys
                .iter()
                .filter_map(|key| {
                    let value = sent(key).or_else(|| lists::key_default(key).map(Value::from));
                    Some(((*key).to_owned(), value?))
                })
                .collect(),
            Self::CustomKeyed(keys, items) => keys
                .iter()
                .filter_map(|key| {
                    let default = || items.properties.get(key)?.default.clone();
                    Some((key.clone(), sent(key).or_else(default)?))
                })
                .collect(),
            _ => return format!("v:{item}"),
        };
        format!("k:{}", Value::Object(keys))
    }

    /// The shape of a list's items.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Keyed(_, ty) => Self::of_type(ty),
            Self::CustomKeyed(_, items) => Self::of_schema(items),
            _ => Self::Leaf,
        }
    }

    /// Whether a value of this shape has parts that are looked at one by one.
    pub(super) fn is_branch(self, value: &Value) -> bool {
        match value {
            Value::Object(members) => self.is_object() && !members.is_empty(),
            Value::Array(items) => self.is_list() && !items.is_empty(),
            _ => false,
        }
    }

    /// The parts of a value that is a branch.
    pub(super) fn children<'v>(self, value: &'v Value) -> Vec<Child<'v>>
    where
        'a: 'v,
    {
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
