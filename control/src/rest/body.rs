//! Request bodies: bounded reading, then JSON, YAML or Kubernetes protobuf.
//!
//! Promises that a body never takes more memory than a small multiple of [`BODY_BYTES_MAX`], whatever it
//! holds: size, nesting and YAML aliases are bounded. Fields that stand twice in an object are noticed, for
//! `fieldValidation`.

use std::fmt::{self, Write as _};

use super::negotiate::PROTOBUF;
use api::{Status, protobuf};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Largest request body.
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Duplicate fields named in one error or warning list.
const DUPLICATES_MAX: usize = 32;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";

/// A body as a value, with the duplicate fields found on the way.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) value: Value,
    /// `duplicate field "spec.x"`.
    pub(super) duplicates: Vec<String>,
}

/// Reads a whole body.
pub(super) async fn read<B>(request: Request<B>) -> Result<Bytes, Status>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let declared = request.headers().get(http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Status::bad_request(format!("the request body could not be read: {error}"))),
    }
}

fn too_large() -> Status {
    Status::request_entity_too_large(&format!("limit is {BODY_BYTES_MAX}"))
}

/// The media type of a body, without parameters; JSON if none is named.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or(JSON);
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type.is_empty() || media_type == "*/*" { JSON.to_owned() } else { media_type }
}

/// Reads an object from a body.
pub(super) fn object(media_type: &str, body: &[u8]) -> Result<Document, Status> {
    match media_type {
        JSON => json(body),
        YAML => yaml(body),
        PROTOBUF => kubernetes_protobuf(body),
        _ => Err(Status::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

/// Reads JSON.
pub(super) fn json(body: &[u8]) -> Result<Document, Status> {
    let refuse =
        |error: serde_json::Error| Status::bad_request(format!("the request body is no valid JSON: {error}"));
    let mut finder = Duplicates::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Node { finder: &mut finder }.deserialize(&mut deserializer).map_err(refuse)?;
    deserializer.end().map_err(refuse)?;
    Ok(Document { value, duplicates: finder.found })
}

/// Reads YAML, of which JSON is a part.
pub(super) fn yaml(body: &[u8]) -> Result<Document, Status> {
    let value = serde_saphyr::from_slice(body)
        .map_err(|error| Status::bad_request(format!("error converting YAML to JSON: yaml: {error}")))?;
    Ok(Document { value, duplicates: Vec::new() })
}

fn kubernetes_protobuf(body: &[u8]) -> Result<Document, Status> {
    match protobuf::decode(body) {
        Ok(value) => Ok(Document { value, duplicates: Vec::new() }),
        Err(
            protobuf::Error::NoKind | protobuf::Error::UnknownKind { .. } | protobuf::Error::Content { .. },
        ) => Err(Status::unsupported_media_type(&[JSON, YAML])),
        Err(protobuf::Error::TooLarge { .. }) => Err(too_large()),
        Err(error) => {
            Err(Status::bad_request(format!("the request body is no valid Kubernetes protobuf: {error}")))
        }
    }
}

#[derive(Default)]
struct Duplicates {
    path: String,
    found: Vec<String>,
}

/// Builds a [`Value`], noticing keys that stand twice in one object.
struct Node<'a> {
    finder: &'a mut Duplicates,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let length = self.finder.path.len();
        loop {
            let _ = write!(self.finder.path, "[{}]", items.len());
            let item = access.next_element_seed(Node { finder: self.finder })?;
            self.finder.path.truncate(length);
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        let length = self.finder.path.len();
        while let Some(key) = access.next_key::<String>()? {
            if length > 0 {
                self.finder.path.push('.');
            }
            self.finder.path.push_str(&key);
            if members.contains_key(&key) && self.finder.found.len() < DUPLICATES_MAX {
                self.finder.found.push(format!("duplicate field {:?}", self.finder.path));
            }
            if self.finder.path.len() > BODY_BYTES_MAX {
                return Err(A::Error::custom("field path is too long"));
            }
            let value = access.next_value_seed(Node { finder: self.finder })?;
            self.finder.path.truncate(length);
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_named_by_their_path_and_the_last_one_counts() {
        let text = br#"{"spec":{"containers":[{"name":"a"},{"name":"b","name":"c"}]},"spec":1}"#;
        let document = json(text).unwrap();
        assert_eq!(document.value, json!({"spec": 1}));
        assert_eq!(
            document.duplicates,
            ["duplicate field \"spec.containers[1].name\"", "duplicate field \"spec\""]
        );
    }

    #[test]
    fn hostile_bodies_are_refused() {
        let deep = "[".repeat(100_000);
        let aliases = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        for (media_type, body) in [
            (JSON, deep.as_str()),
            (JSON, "{\"a\":1} x"),
            (JSON, ""),
            (YAML, deep.as_str()),
            (YAML, aliases),
            (YAML, "a: 1\n---\nb: 2\n"),
        ] {
            assert_eq!(object(media_type, body.as_bytes()).unwrap_err().code(), 400, "{media_type}");
        }
        assert_eq!(object("text/html", b"<p>").unwrap_err().code(), 415);
        assert_eq!(object(PROTOBUF, b"{}").unwrap_err().code(), 400);
        assert_eq!(object(PROTOBUF, b"k8s\0\n\x09\n\x02v1\x12\x03Cow").unwrap_err().code(), 415);
    }

    #[test]
    fn yaml_is_read_like_json() {
        let text = b"apiVersion: v1\nkind: ConfigMap\ndata:\n  a: '1'\n  b: x\n";
        let document = object(YAML, text).unwrap();
        assert_eq!(
            document.value,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1", "b": "x"}})
        );
    }
}
