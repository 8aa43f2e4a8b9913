//! What REST answers, as messages.
//!
//! REST gives JSON; the metadata are read out of it, and the body is that text itself, or is written as Kubernetes
//! protobuf from it.

use std::collections::HashMap;

use api::object::parse_timestamp;
use api::protobuf::Encoder;
use bytes::Bytes;
use http::header::WARNING;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use proto::objects::{Encoding, Object, ObjectMeta, OwnerReference};
use serde::Deserialize;
use serde_json::value::RawValue;
use tonic::Status;

use crate::rest::Body;

/// An object as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: String,
    kind: String,
    metadata: Option<Meta>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<HashMap<String, String>>,
    annotations: Option<HashMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
    finalizers: Option<Vec<String>>,
    generate_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    controller: Option<bool>,
    block_owner_deletion: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListHead<'a> {
    metadata: ListMeta,
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    r#continue: String,
    remaining_item_count: i64,
}

/// A list, or one page of it.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) items: Vec<Object>,
    pub(super) resource_version: String,
    pub(super) continue_token: String,
    pub(super) remaining: i64,
}

/// The object that an answer holds.
pub(super) async fn object(response: Response<Body>, encoding: Encoding) -> Result<Object, Status> {
    of_json(whole(response).await?, encoding)
}

/// The list that an answer holds.
pub(super) async fn page(response: Response<Body>, encoding: Encoding) -> Result<Page, Status> {
    let body = whole(response).await?;
    let list: ListHead<'_> = serde_json::from_slice(&body).map_err(unreadable)?;
    let items = list.items.iter().map(|item| of_json(body.slice_ref(item.get().as_bytes()), encoding));
    Ok(Page {
        items: items.collect::<Result<_, _>>()?,
        resource_version: list.metadata.resource_version,
        continue_token: list.metadata.r#continue,
        remaining: list.metadata.remaining_item_count,
    })
}

/// An object in JSON, in the form that is wanted.
pub(super) fn of_json(json: Bytes, encoding: Encoding) -> Result<Object, Status> {
    let head: Head = serde_json::from_slice(&json).map_err(unreadable)?;
    let (encoding, body) = match encoding {
        Encoding::None => (Encoding::None, Bytes::new()),
        Encoding::Protobuf => match protobuf(&head, &json)? {
            Some(body) => (Encoding::Protobuf, body),
            None => (Encoding::Json, json),
        },
        Encoding::Unspecified | Encoding::Json | Encoding::Yaml => (Encoding::Json, json),
    };
    let metadata = Some(metadata(head.metadata.unwrap_or_default()));
    Ok(Object { metadata, api_version: head.api_version, kind: head.kind, encoding: encoding.into(), body })
}

fn protobuf(head: &Head, json: &[u8]) -> Result<Option<Bytes>, Status> {
    let Some(encoder) = Encoder::new(&head.api_version, &head.kind) else { return Ok(None) };
    let written = encoder.object(json).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Some(Bytes::from(written)))
}

fn metadata(meta: Meta) -> ObjectMeta {
    let owners = meta.owner_references.unwrap_or_default().into_iter().map(|owner| OwnerReference {
        api_version: owner.api_version,
        kind: owner.kind,
        name: owner.name,
        uid: owner.uid,
        controller: owner.controller.unwrap_or_default(),
        block_owner_deletion: owner.block_owner_deletion.unwrap_or_default(),
    });
    ObjectMeta {
        name: meta.name.unwrap_or_default(),
        namespace: meta.namespace.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        resource_version: meta.resource_version.unwrap_or_default(),
        generation: meta.generation.unwrap_or_default(),
        creation_timestamp: time(meta.creation_timestamp),
        deletion_timestamp: time(meta.deletion_timestamp),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
        owner_references: owners.collect(),
        finalizers: meta.finalizers.unwrap_or_default(),
        generate_name: meta.generate_name.unwrap_or_default(),
    }
}

fn time(text: Option<String>) -> Option<prost_types::Timestamp> {
    let time = parse_timestamp(&text?)?;
    Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

/// What an answer warns of, as it was before it became headers.
pub(super) fn warnings(headers: &HeaderMap) -> Vec<String> {
    let texts =
        headers.get_all(WARNING).iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok());
    texts.filter_map(unquoted).collect()
}

/// The text of `299 - "text"`.
fn unquoted(warning: &str) -> Option<String> {
    let quoted = warning.split_once('"')?.1.strip_suffix('"')?;
    let mut text = String::with_capacity(quoted.len());
    let mut letters = quoted.chars();
    while let Some(letter) = letters.next() {
        text.push(if letter == '\\' { letters.next()? } else { letter });
    }
    Some(text)
}

async fn whole(response: Response<Body>) -> Result<Bytes, Status> {
    let collected = response.into_body().collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| Status::internal(error.to_string()))
}

pub(super) fn unreadable(error: serde_json::Error) -> Status {
    Status::internal(format!("an answer is no object in JSON: {error}; see this replica's log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_stand_beside_the_body() {
        let json = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","labels":{"x":"y"},
            "creationTimestamp":"2024-01-02T03:04:05Z","ownerReferences":[{"kind":"Pod","name":"p","controller":true}]}}"#;
        let object = of_json(Bytes::from_static(json), Encoding::Json).unwrap();
        let meta = object.metadata.unwrap();
        assert_eq!((meta.name.as_str(), meta.labels["x"].as_str()), ("a", "y"));
        assert_eq!(meta.creation_timestamp.unwrap().seconds, 1_704_164_645);
        assert!(meta.owner_references[0].controller);
        assert_eq!(object.body.as_ref(), json);
        let object = of_json(Bytes::from_static(json), Encoding::Protobuf).unwrap();
        assert!(object.body.starts_with(b"k8s\0"));
        // A kind without messages.
        let json = br#"{"apiVersion":"example.com/v1","kind":"Cow","metadata":{}}"#;
        let object = of_json(Bytes::from_static(json), Encoding::Protobuf).unwrap();
        assert_eq!(object.encoding(), Encoding::Json);
        assert!(of_json(Bytes::from_static(json), Encoding::None).unwrap().body.is_empty());
    }

    #[test]
    fn warnings_lose_their_quotes() {
        assert_eq!(unquoted(r#"299 - "unknown field \"spec.x\"""#).unwrap(), r#"unknown field "spec.x""#);
        assert_eq!(unquoted("299 - x"), None);
    }
}
