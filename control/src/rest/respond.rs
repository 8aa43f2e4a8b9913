//! Answers: objects, lists, tables and errors as HTTP responses.
//!
//! Promises that a list in JSON is put together from the stored texts, without decoding anything, and that
//! protobuf is written from those texts in one pass.

use api::crd::CustomKind;
use api::protobuf::{Encoder, WriteError};
use api::table::IncludeObject;
use api::{Kind, Status};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WARNING};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;

use super::negotiate::{Encoding, Form, PROTOBUF, Shape};
use crate::registry::{Object, ObjectList};

/// Any error, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Longest warning that is sent; Kubernetes cuts there too.
const WARNING_BYTES_MAX: usize = 4096;

/// How one client wants objects.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) form: Form,
    pub(super) include: IncludeObject,
    pub(super) pretty: bool,
}

impl Style {
    /// Plain, compact JSON.
    pub(super) const JSON: Self = Self { form: Form::JSON, include: IncludeObject::Metadata, pretty: false };

    /// An answer holding one object.
    pub(super) fn object(&self, code: StatusCode, object: &Object) -> Response<Body> {
        match self.form.shape {
            Shape::Whole if self.form.encoding == Encoding::Json && !self.pretty => {
                bytes(code, self.form.media_type(), object.json())
            }
            Shape::Whole if self.form.encoding == Encoding::Protobuf => match object.protobuf() {
                Some(body) => binary(code, body),
                None => bytes(code, Form::JSON.media_type(), object.json()),
            },
            Shape::Whole => self.value(code, object.value()),
            Shape::Table(version) => {
                let meta = json!({"resourceVersion": object.revision().to_string()});
                let table =
                    self.table(object.kind(), object.custom_kind(), &[object.value().clone()], version, meta);
                self.value(code, &table)
            }
            Shape::Metadata(version) => self.value(code, &partial(object.value(), version)),
        }
    }

    /// An answer holding a list.
    pub(super) fn list(&self, list: ObjectList) -> Response<Body> {
        match self.form.shape {
            Shape::Whole if self.form.encoding == Encoding::Json && !self.pretty => {
                bytes(StatusCode::OK, self.form.media_type(), list_json(&list))
            }
            Shape::Whole if self.form.encoding == Encoding::Protobuf => match list_protobuf(&list) {
                Some(body) => binary(StatusCode::OK, body),
                None => bytes(StatusCode::OK, Form::JSON.media_type(), list_json(&list)),
            },
            Shape::Whole => {
                let items: Vec<Value> = list.items.iter().map(|object| object.value().clone()).collect();
                self.value(
                    StatusCode::OK,
                    &json!({
                        "kind": list.kind.list_kind(),
                        "apiVersion": list.kind.api_version(),
                        "metadata": list_meta(&list),
                        "items": items,
                    }),
                )
            }
            Shape::Table(version) => {
                let meta = list_meta(&list);
                let (kind, custom) = (list.kind, list.custom);
                let items: Vec<Value> = list.items.into_iter().map(into_value).collect();
                self.value(StatusCode::OK, &self.table(kind, custom.as_ref(), &items, version, meta))
            }
            Shape::Metadata(version) => {
                let meta = list_meta(&list);
                let items: Vec<Value> =
                    list.items.iter().map(|object| partial(object.value(), version)).collect();
                self.value(
                    StatusCode::OK,
                    &json!({
                        "kind": "PartialObjectMetadataList",
                        "apiVersion": format!("meta.k8s.io/{version}"),
                        "metadata": meta,
                        "items": items,
                    }),
                )
            }
        }
    }

    /// An error as its `Status`.
    pub(super) fn failure(&self, status: &Status) -> Response<Body> {
        let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let form = match self.form.encoding {
            Encoding::Protobuf => self.form.whole(),
            _ => Form::JSON,
        };
        let mut response = Self { form, ..Self::JSON }.value(code, &status.to_value());
        if let Some(seconds) = status.retry_after_s() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// A `meta.k8s.io` table.
    pub(super) fn table(
        &self,
        kind: &Kind,
        custom: Option<&Arc<CustomKind>>,
        objects: &[Value],
        version: &str,
        meta: Value,
    ) -> Value {
        let mut table = match custom {
            None => api::table::table(kind, objects, Timestamp::now(), self.include, meta),
            Some(custom) => custom.table(objects, Timestamp::now(), self.include, meta),
        };
        if version != "v1" {
            table["apiVersion"] = Value::from(format!("meta.k8s.io/{version}"));
        }
        table
    }

    /// An answer holding any value.
    pub(super) fn value(&self, code: StatusCode, value: &Value) -> Response<Body> {
        let text = match (self.form.encoding, self.pretty) {
            (Encoding::Protobuf, _) => match protobuf(value) {
                Some(body) => return binary(code, body),
                None => return bytes(code, Form::JSON.media_type(), Bytes::from(value.to_string())),
            },
            (Encoding::Json, false) => value.to_string(),
            (Encoding::Json, true) => format!("{value:#}\n"),
            (Encoding::Yaml, _) => match serde_saphyr::to_string(value) {
                Ok(text) => text,
                Err(error) => {
                    return failure(&Status::internal(&format!("cannot be written as YAML: {error}")));
                }
            },
        };
        bytes(code, self.form.media_type(), Bytes::from(text))
    }
}

/// Any object as protobuf; `None` if its kind has no message.
pub(super) fn protobuf(object: &Value) -> Option<Vec<u8>> {
    let encoder = Encoder::new(api::object::api_version(object), api::object::kind(object))?;
    written(encoder.object(object.to_string().as_bytes()))
}

/// What the encoder gave. That it could not is a fault in what is stored; the object then goes as JSON.
fn written(result: Result<Vec<u8>, WriteError>) -> Option<Vec<u8>> {
    result.inspect_err(|error| tracing::error!(%error, "an object cannot be written as protobuf")).ok()
}

/// An answer in protobuf.
fn binary(code: StatusCode, body: Vec<u8>) -> Response<Body> {
    bytes(code, PROTOBUF, Bytes::from(body))
}

fn list_protobuf(list: &ObjectList) -> Option<Vec<u8>> {
    let encoder = Encoder::new(&list.kind.api_version(), list.kind.kind)?;
    let mut items = list.items.iter();
    written(encoder.list(&list_meta(list), |json| match items.next() {
        Some(object) => {
            object.write_json(json);
            true
        }
        None => false,
    }))
}

/// One object's `PartialObjectMetadata`.
pub(super) fn partial(object: &Value, version: &str) -> Value {
    let mut partial = api::table::partial_metadata(object);
    if version != "v1" {
        partial["apiVersion"] = Value::from(format!("meta.k8s.io/{version}"));
    }
    partial
}

fn into_value(object: Arc<Object>) -> Value {
    match Arc::try_unwrap(object) {
        Ok(object) => object.into_value(),
        Err(shared) => shared.value().clone(),
    }
}

pub(super) fn list_meta(list: &ObjectList) -> Value {
    let mut meta = json!({"resourceVersion": list.revision.to_string()});
    if let Some(token) = &list.continue_token {
        meta["continue"] = Value::from(token.as_str());
    }
    if let Some(remaining) = list.remaining {
        meta["remainingItemCount"] = Value::from(remaining);
    }
    meta
}

fn list_json(list: &ObjectList) -> Bytes {
    let size: usize = list.items.iter().map(|object| object.json_bytes_max() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        list.kind.list_kind(),
        list.kind.api_version(),
        list_meta(list)
    );
    out.extend_from_slice(head.as_bytes());
    for (index, object) in list.items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        object.write_json(&mut out);
    }
    out.extend_from_slice(b"]}");
    Bytes::from(out)
}

/// An answer with a body that is at hand.
pub(super) fn bytes(code: StatusCode, media_type: &'static str, body: Bytes) -> Response<Body> {
    let length = body.len();
    let mut response =
        Response::new(Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// A plain text.
pub(super) fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = bytes(code, "text/plain; charset=utf-8", body.into());
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// What Kubernetes says to a path that names nothing.
pub(super) fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// What it says to a method that the path does not take.
pub(super) fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    response.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// An error as its `Status`, in JSON.
pub(super) fn failure(status: &Status) -> Response<Body> {
    Style::JSON.failure(status)
}

/// Adds `Warning` headers (RFC 7234, code 299), as `kubectl` prints them.
pub(super) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    let mut left = WARNING_BYTES_MAX;
    for warning in warnings {
        let mut quoted = String::with_capacity(warning.len() + 8);
        quoted.push_str("299 - \"");
        for letter in warning.chars().filter(|letter| !letter.is_control()) {
            if matches!(letter, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(letter);
        }
        quoted.push('"');
        if quoted.len() > left {
            return;
        }
        left -= quoted.len();
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Sets a header from a text that may not be one.
pub(super) fn set_header(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
