//! The table of messages: field numbers and types of Kubernetes' protobuf, and what they are in JSON.
//!
//! Owns the reading of `messages.txt`, which `examples/generate-messages.rs` writes. Promises that every
//! message that a field names is there; a test reads the whole table. Server-side apply knows the types of fields
//! from here.
//!
//! ```text
//!   [apps/v1]                                       the kinds and types of this apiVersion follow
//!   DeploymentSpec replicas=1:int32? template=3:v1/PodTemplateSpec! paused=7:bool …
//!   message        │        │ │    │            │ └ a message of another version ("meta": meta.k8s.io/v1)
//!                  name in JSON    │            └ !: JSON carries it though nobody set it (no omitempty)
//!                           number │ type; []: repeated, {}: a map from text
//!                                  └ ?: optional (a pointer in Go): its zero says something
//! ```
//!
//! A field without a name is inline: in JSON its message's fields stand among its parent's.

use std::collections::HashMap;
use std::sync::LazyLock;

/// How one value is encoded, and what it is in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    /// `metav1.Time`: RFC 3339 with whole seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six decimals.
    MicroTime,
    /// `resource.Quantity`: a text, in a message of its own.
    Quantity,
    IntOrString,
    /// Any JSON, as its text in a message of its own.
    Json,
    /// As [`Type::Json`], but what is inside may be an enveloped object instead.
    Raw,
    /// A list of texts in a message of its own, where lists cannot stand directly.
    Texts,
    /// A `JSONSchemaProps` or a list of those.
    SchemaOrArray(MessageId),
    /// A `JSONSchemaProps` or a bool.
    SchemaOrBool(MessageId),
    /// A `JSONSchemaProps` or a list of texts.
    SchemaOrTexts(MessageId),
    Message(MessageId),
}

/// How often a value may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    One,
    Many,
    /// A map from text.
    Map,
}

/// A message's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageId(u16);

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(super) number: u32,
    /// The name in JSON; empty if the field is inline.
    pub(crate) name: &'static str,
    pub(crate) ty: Type,
    pub(crate) count: Count,
    /// Whether an empty text, a zero and a `false` say something. Those of plain fields are written though
    /// nobody set them; those of optional ones (pointers in Kubernetes' types) only when somebody did.
    pub(crate) is_optional: bool,
    /// Whether JSON carries the field even when it is empty.
    pub(crate) is_required: bool,
}

/// A message.
#[derive(Debug, Default)]
pub(crate) struct Message {
    name: &'static str,
    by_number: Vec<Field>,
    by_name: Vec<Named>,
}

/// A member of the JSON object.
#[derive(Debug)]
pub(crate) struct Named {
    name: &'static str,
    pub(crate) field: Field,
    /// Numbers of the inline fields that lead to the field, the outermost first.
    pub(super) inside: Vec<u32>,
    /// The message that the field belongs to: not the object's own, if it is inline.
    pub(crate) owner: MessageId,
}

impl Message {
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        let index = self.by_number.binary_search_by_key(&number, |field| field.number).ok()?;
        self.by_number.get(index)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Named> {
        let index = self.by_name.binary_search_by_key(&name, |named| named.name).ok()?;
        self.by_name.get(index)
    }

    /// Every member that its JSON object may have: name, number and whether it lies in an inline field.
    #[cfg(test)]
    pub(super) fn members(&self) -> impl Iterator<Item = &Named> {
        self.by_name.iter()
    }
}

/// Written by `examples/generate-messages.rs`.
const GENERATED: &str = include_str!("messages.txt");

const META: &str = "meta.k8s.io/v1";

struct Table {
    messages: Vec<Message>,
    ids: HashMap<(&'static str, &'static str), MessageId>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| read().expect("a test reads the generated table"));

/// The message of a kind, or of any type of its version.
pub(crate) fn message(api_version: &str, kind: &str) -> Option<MessageId> {
    let version = match (api_version, kind) {
        // Clients send it in the version of whatever they delete.
        (_, "DeleteOptions") => META,
        ("v1", "List" | "Status" | "WatchEvent") | ("meta.k8s.io/v1beta1", _) => META,
        // The same in both versions.
        ("authentication.k8s.io/v1beta1", "SelfSubjectReview") => "authentication.k8s.io/v1",
        (own, _) => own,
    };
    TABLE.ids.get(&(version, kind)).copied()
}

pub(crate) fn get(id: MessageId) -> &'static Message {
    &TABLE.messages[usize::from(id.0)]
}

/// The name of a type, without its version.
pub(crate) fn name(id: MessageId) -> &'static str {
    get(id).name
}

/// Versions and names of all messages.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    TABLE.ids.keys()
}

/// A line of the table, not understood yet.
struct Line {
    version: &'static str,
    name: &'static str,
    fields: &'static str,
}

fn read() -> Option<Table> {
    let mut version = "";
    let mut lines = Vec::new();
    for line in GENERATED.lines().filter(|line| !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            version = header.strip_suffix(']')?;
            continue;
        }
        let (name, fields) = line.split_once(' ').unwrap_or((line, ""));
        lines.push(Line { version, name, fields });
    }
    let id = |index: usize| u16::try_from(index).ok().map(MessageId);
    let ids = lines.iter().enumerate().map(|(index, line)| Some(((line.version, line.name), id(index)?)));
    let ids: HashMap<_, _> = ids.collect::<Option<_>>()?;
    let mut messages = Vec::with_capacity(lines.len());
    for line in &lines {
        let fields = line.fields.split(' ').filter(|field| !field.is_empty());
        let mut by_number: Vec<Field> =
            fields.map(|field| read_field(field, line.version, &ids)).collect::<Option<_>>()?;
        by_number.sort_by_key(|field| field.number);
        messages.push(Message { name: line.name, by_number, by_name: Vec::new() });
    }
    for index in 0..messages.len() {
        let mut names = Vec::new();
        collect_names(&messages, id(index)?, &[], &mut names);
        names.sort_by_key(|named| named.name);
        messages[index].by_name = names;
    }
    Some(Table { messages, ids })
}

fn read_field(
    text: &'static str,
    version: &'static str,
    ids: &HashMap<(&'static str, &'static str), MessageId>,
) -> Option<Field> {
    let (name, rest) = text.split_once('=')?;
    let (number, ty) = rest.split_once(':')?;
    let (ty, is_required) = ty.strip_suffix('!').map_or((ty, false), |ty| (ty, true));
    let (ty, is_optional) = ty.strip_suffix('?').map_or((ty, false), |ty| (ty, true));
    let (ty, count) = match (ty.strip_prefix("[]"), ty.strip_prefix("{}")) {
        (Some(ty), _) => (ty, Count::Many),
        (_, Some(ty)) => (ty, Count::Map),
        _ => (ty, Count::One),
    };
    let target = || {
        let (version, name) = match ty.rsplit_once('/') {
            Some(("meta", name)) => (META, name),
            Some(other) => other,
            None => (version, ty),
        };
        ids.get(&(version, name)).copied()
    };
    let schema = || ids.get(&(version, "JSONSchemaProps")).copied();
    let ty = match ty {
        "text" => Type::Text,
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "time" => Type::Time,
        "micro" => Type::MicroTime,
        "quantity" => Type::Quantity,
        "intstr" => Type::IntOrString,
        "json" => Type::Json,
        "raw" => Type::Raw,
        "texts" => Type::Texts,
        "JSONSchemaPropsOrArray" => Type::SchemaOrArray(schema()?),
        "JSONSchemaPropsOrBool" => Type::SchemaOrBool(schema()?),
        "JSONSchemaPropsOrStringArray" => Type::SchemaOrTexts(schema()?),
        _ => Type::Message(target()?),
    };
    Some(Field { number: number.parse().ok()?, name, ty, count, is_optional, is_required })
}

/// Adds the members of a message, with those of its inline fields.
fn collect_names(messages: &[Message], id: MessageId, inside: &[u32], out: &mut Vec<Named>) {
    for field in &messages[usize::from(id.0)].by_number {
        match field.ty {
            Type::Message(inner) if field.name.is_empty() => {
                let inside = [inside, &[field.number]].concat();
                collect_names(messages, inner, &inside, out);
            }
            _ => out.push(Named { name: field.name, field: *field, inside: inside.to_vec(), owner: id }),
        }
    }
}

#[cfg(test)]
pub(in crate::protobuf) mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let table = read().unwrap();
        assert!(table.messages.len() > 500, "{}", table.messages.len());
        for ((version, name), id) in &table.ids {
            let message = &table.messages[usize::from(id.0)];
            for pair in message.by_number.windows(2) {
                assert!(pair[0].number < pair[1].number, "{version} {name}");
            }
            for pair in message.by_name.windows(2) {
                assert!(pair[0].name < pair[1].name, "{version} {name}: {}", pair[0].name);
            }
        }
    }

    /// Definitions of kinds come as JSON or YAML, figures go as them.
    pub(in crate::protobuf) fn lacks(group: &str) -> bool {
        [crate::kinds::EXTENSIONS_GROUP, crate::kinds::METRICS_GROUP].contains(&group)
    }

    #[test]
    fn every_served_kind_is_there() {
        for kind in crate::kinds().iter().filter(|kind| !lacks(kind.group)) {
            assert!(message(&kind.api_version(), kind.kind).is_some(), "{}", kind.kind);
            if kind.has_verb("list") {
                assert!(message(&kind.api_version(), &kind.list_kind()).is_some(), "{}", kind.kind);
            }
            for sub in kind.subresources.iter().filter(|sub| !sub.version.is_empty()) {
                let version = format!("{}/{}", sub.group, sub.version);
                assert!(message(&version, sub.kind).is_some(), "{}", sub.kind);
            }
        }
        assert!(message("v1", "Nothing").is_none() && message("v2", "Pod").is_none());
    }

    #[test]
    fn facts_of_all_forms() {
        let message = |version: &str, name: &str| get(super::message(version, name).unwrap());
        let spec = message("apps/v1", "DeploymentSpec");
        let replicas = spec.field(1).unwrap();
        assert_eq!((replicas.name, replicas.ty, replicas.is_optional), ("replicas", Type::Int32, true));
        let template = spec.named("template").unwrap();
        assert!(template.field.is_required && template.inside.is_empty());
        let volume = message("v1", "Volume").named("hostPath").unwrap();
        assert_eq!((volume.inside.as_slice(), volume.field.number), (&[2][..], 1));
        let rule = message("admissionregistration.k8s.io/v1", "NamedRuleWithOperations");
        assert_eq!(rule.named("apiGroups").unwrap().inside, [2, 2]);
        assert_eq!(message("v1", "ResourceRequirements").field(1).unwrap().count, Count::Map);
    }
}
