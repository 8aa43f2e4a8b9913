//! An object as it lies in the store, decoded only when somebody looks inside.
//!
//! Owns the splice that puts `resourceVersion` into the stored JSON, so that lists and watches copy bytes
//! instead of decoding and encoding. Promises that an object is decoded at most once however many consumers
//! share it. Stored bytes are always JSON that the registry wrote.

use std::sync::{Arc, OnceLock};

use api::crd::CustomKind;
use api::{Kind, Status};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::keys;
use crate::object_store::StoredObject;

/// An object with its version.
#[derive(Debug)]
pub struct Object {
    kind: &'static Kind,
    stored: StoredObject,
    decoded: OnceLock<Value>,
    custom: Option<Arc<CustomKind>>,
    /// The stored text in the version that is shown, where a webhook stands between the two.
    converted: Option<Bytes>,
    /// The stored text as this version of the kind shows it, if that differs.
    shown: OnceLock<Option<Bytes>>,
}

impl Object {
    /// An object read from the store.
    pub fn new(kind: &'static Kind, stored: StoredObject) -> Self {
        let (decoded, shown) = (OnceLock::new(), OnceLock::new());
        Self { kind, stored, decoded, custom: None, converted: None, shown }
    }

    /// An object of a custom kind, which its definition says how to show.
    pub(super) fn custom(custom: Arc<CustomKind>, stored: StoredObject) -> Self {
        Self { custom: Some(custom.clone()), ..Self::new(custom.kind(), stored) }
    }

    /// The same object, whose text a webhook converted.
    pub(super) fn converted(self, text: Bytes) -> Self {
        Self { converted: Some(text), ..self }
    }

    /// The same object at another revision.
    pub(super) fn at(self, revision: u64) -> Self {
        let stored = StoredObject { mod_revision: revision, ..self.stored };
        Self { stored, decoded: OnceLock::new(), ..self }
    }

    /// The rules of the object's kind, if a definition made them.
    pub(crate) fn custom_kind(&self) -> Option<&Arc<CustomKind>> {
        self.custom.as_ref()
    }

    /// The JSON text without the resource version.
    fn text(&self) -> &Bytes {
        let own = self.converted.as_ref().unwrap_or(&self.stored.value);
        if self.custom.is_none() && self.kind.stored_as.is_none() {
            return own;
        }
        let shown = self.shown.get_or_init(|| {
            let mut value: Value = serde_json::from_slice(own).ok()?;
            match &self.custom {
                Some(custom) => custom.show(&mut value),
                None => api::versions::show(self.kind, &mut value),
            }
            let text = serde_json::to_vec(&value).ok()?;
            (text != *own).then(|| Bytes::from(text))
        });
        shown.as_ref().unwrap_or(own)
    }

    /// The object's kind.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The store key.
    pub fn key(&self) -> &Bytes {
        &self.stored.key
    }

    /// The namespace; empty outside namespaces.
    pub fn namespace(&self) -> &str {
        keys::split(self.kind, &self.stored.key).0
    }

    /// The name.
    pub fn name(&self) -> &str {
        keys::split(self.kind, &self.stored.key).1
    }

    /// The revision of the newest write: the resource version as a number.
    pub fn revision(&self) -> u64 {
        self.stored.mod_revision
    }

    /// The stored bytes, without resource version.
    pub fn stored(&self) -> &StoredObject {
        &self.stored
    }

    /// The object as JSON, resource version included. Decoded on first use and shared from then on.
    /// Bytes that are no JSON (which only a fault below the store can cause) read as null.
    pub fn value(&self) -> &Value {
        self.decoded.get_or_init(|| {
            let mut value = serde_json::from_slice(self.text()).unwrap_or_else(|error| {
                tracing::error!(key = ?self.stored.key, %error, "a stored object is no JSON");
                Value::Null
            });
            api::object::set_resource_version(&mut value, &self.stored.mod_revision.to_string());
            value
        })
    }

    /// As [`Object::value`], for the last holder.
    pub fn into_value(mut self) -> Value {
        self.value();
        self.decoded.take().unwrap_or_default()
    }

    /// The object as a `k8s-openapi` type (or any other), straight from the stored bytes.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Status> {
        serde_json::from_slice(&self.json()).map_err(|error| {
            Status::internal(&format!(
                "stored {} {:?} cannot be decoded: {error}",
                self.kind.kind,
                self.name()
            ))
        })
    }

    /// The JSON text of one member, as `["metadata", "uid"]`, found by skipping what lies before it. `None`: there is
    /// none. The resource version is no member here.
    pub(crate) fn member(&self, path: &[&str]) -> Option<&[u8]> {
        member(self.text(), path)
    }

    /// One member, decoded alone. `None`: there is none, or it is of another form.
    pub(crate) fn decode_member<T: DeserializeOwned>(&self, path: &[&str]) -> Option<T> {
        serde_json::from_slice(self.member(path)?).ok()
    }

    /// The object's JSON text, resource version included.
    pub fn json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.json_bytes_max());
        self.write_json(&mut out);
        Bytes::from(out)
    }

    /// Appends the object's JSON text, resource version included.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let stored = self.text();
        let Some(splice) = Splice::find(stored) else {
            out.extend_from_slice(stored);
            return;
        };
        out.extend_from_slice(&stored[..splice.at]);
        if splice.comma_before {
            out.push(b',');
        }
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(self.stored.mod_revision.to_string().as_bytes());
        out.push(b'"');
        if splice.comma_after {
            out.push(b',');
        }
        out.extend_from_slice(&stored[splice.at..]);
    }

    /// The object as a Kubernetes protobuf body; `None` if its kind has no message there.
    pub fn protobuf(&self) -> Option<Vec<u8>> {
        let encoder = api::protobuf::Encoder::new(&self.kind.api_version(), self.kind.kind)?;
        let written = encoder.object(&self.json());
        written.inspect_err(|error| tracing::error!(key = ?self.stored.key, %error, "no protobuf of it")).ok()
    }

    /// How many bytes [`Object::write_json`] appends at most.
    pub fn json_bytes_max(&self) -> usize {
        self.text().len() + SPLICE_BYTES_MAX
    }

    /// The labels, without decoding the rest.
    pub fn labels(&self) -> std::collections::BTreeMap<String, String> {
        if let Some(value) = self.decoded.get() {
            return api::object::labels(value);
        }
        // They are the same in every version.
        let labels = member(self.converted.as_ref().unwrap_or(&self.stored.value), &["metadata", "labels"]);
        labels.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }
}

/// `"resourceVersion":"18446744073709551615",`
const SPLICE_BYTES_MAX: usize = 44;

/// Where in compact JSON, written with sorted keys, the resource version belongs.
struct Splice {
    at: usize,
    comma_before: bool,
    comma_after: bool,
}

impl Splice {
    fn find(json: &[u8]) -> Option<Self> {
        let metadata = member_values(json, 0).find(|(key, _)| *key == b"metadata").map(|(_, at)| at)?;
        if json.get(metadata) != Some(&b'{') {
            return None;
        }
        let mut end = metadata + 1;
        for (key, value) in member_values(json, metadata) {
            if key > b"resourceVersion".as_slice() {
                // Back over `"key":` to the quote that opens the key.
                return Some(Self { at: value - key.len() - 3, comma_before: false, comma_after: true });
            }
            end = skip_value(json, value)?;
        }
        Some(Self { at: end, comma_before: end != metadata + 1, comma_after: false })
    }
}

/// The text of the member with that path in compact JSON, written with sorted keys.
fn member<'a>(json: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    let mut at = 0;
    for name in path {
        let mut members = member_values(json, at);
        at = members.find(|(key, _)| *key >= name.as_bytes()).filter(|(key, _)| *key == name.as_bytes())?.1;
    }
    Some(&json[at..skip_value(json, at)?])
}

/// Keys and value positions of the object that opens at `open`.
fn member_values(json: &[u8], open: usize) -> impl Iterator<Item = (&[u8], usize)> {
    let mut at = (json.get(open) == Some(&b'{')).then_some(open + 1);
    std::iter::from_fn(move || {
        let start = at?;
        if json.get(start) != Some(&b'"') {
            return None;
        }
        let end = skip_value(json, start)?;
        let value = end + 1;
        let after = skip_value(json, value)?;
        at = (json.get(after) == Some(&b',')).then_some(after + 1);
        Some((&json[start + 1..end - 1], value))
    })
}

/// The position after the value that starts at `at`.
fn skip_value(json: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = at;
    loop {
        match json.get(at)? {
            b'"' => {
                at += 1;
                loop {
                    match json.get(at)? {
                        b'\\' => at += 2,
                        b'"' => break,
                        _ => at += 1,
                    }
                }
                at += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' => at += 1,
            _ => {
                while json.get(at).is_some_and(|byte| !matches!(byte, b',' | b'}' | b']')) {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> Object {
        let kind = api::kinds::by_kind("", "v1", "ConfigMap").unwrap();
        let stored = StoredObject {
            key: Bytes::from_static(b"/registry/core/configmaps/default/x"),
            value: Bytes::from(value.to_string()),
            create_revision: 7,
            mod_revision: 42,
        };
        Object::new(kind, stored)
    }

    #[test]
    fn the_resource_version_is_spliced_in_where_the_alphabet_wants_it() {
        for value in [
            json!({"apiVersion": "v1", "metadata": {"name": "x", "uid": "u"}}),
            json!({"apiVersion": "v1", "metadata": {"name": "x"}}),
            json!({"apiVersion": "v1", "metadata": {}, "z": 1}),
            json!({"data": {"metadata": "{\"metadata\":{\\", "k": "a\\"}, "metadata": {"labels": {"uid": "1"}, "uid": "u"}}),
            json!({"data": [{"metadata": {}}, null, 1.5, true], "metadata": {"annotations": {"z": "}"}}}),
        ] {
            let object = object(&value);
            let text = object.json();
            let mut expected = value.clone();
            expected["metadata"]["resourceVersion"] = json!("42");
            assert_eq!(text, expected.to_string(), "{value}");
            assert_eq!(object.value(), &expected);
        }
    }

    #[test]
    fn members_are_found_where_they_are() {
        let object = object(&json!({
            "data": {"metadata": "{\"uid\":\"no\"}"}, "metadata": {"labels": {"a": "\"}"}, "name": "x", "uid": "u"},
        }));
        assert_eq!(object.decode_member::<String>(&["metadata", "uid"]).as_deref(), Some("u"));
        assert_eq!(object.member(&["metadata", "labels"]), Some(br#"{"a":"\"}"}"#.as_slice()));
        assert_eq!(object.labels()["a"], "\"}");
        for path in [&["metadata", "generation"][..], &["metadata", "zone"], &["spec", "uid"], &["data", "x"]]
        {
            assert_eq!(object.member(path), None, "{path:?}");
        }
        assert_eq!(object.decode_member::<u64>(&["metadata", "uid"]), None, "of another form");
    }

    #[test]
    fn bytes_that_are_no_object_are_left_alone() {
        for text in ["", "3", "{", "{\"metadata\":3}", "{\"metadata\":{\"a\":\"", "[]"] {
            let stored = StoredObject { value: Bytes::from(text), ..object(&json!({})).stored };
            let kind = api::kinds::by_kind("", "v1", "ConfigMap").unwrap();
            let object = Object::new(kind, stored);
            assert_eq!(object.json(), text);
            assert_eq!(object.member(&["metadata", "uid"]), None);
        }
    }
}
