//! Custom objects in the version that is asked for, where a webhook converts between versions.
//!
//! Owns when the webhook is called: for stored objects of another version before anybody sees them, and for a new one
//! before it is stored. Promises that objects which are in the wanted version already, and kinds whose versions
//! differ in their name only, cost nothing; and that what a webhook gives is an object of the same identity, or an
//! error in the words of the Kubernetes API server.

use api::crd::{CustomKind, conversion};
use api::{Kind, Status, object};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::webhook_client::WebhookClient;
use super::{Object, Registry, Rules, create};
use crate::object_store::{StoredObject, WatchEvent};

/// Most objects in one review.
const REVIEW_OBJECTS_MAX: usize = 100;
/// And about how many bytes of them; a single larger object has a review of its own.
const REVIEW_BYTES_MAX: usize = 1024 * 1024;
/// How long a conversion may take, in seconds, as in Kubernetes.
const TIMEOUT_S: u64 = 30;

/// An object as it is stored, and as the writer's version shows it if that is another text.
pub(super) struct Encoded {
    pub(super) value: Bytes,
    pub(super) shown: Option<Bytes>,
}

/// Converts; clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Converter {
    client: WebhookClient,
}

impl Converter {
    pub(super) fn new(client: WebhookClient) -> Self {
        Self { client }
    }

    /// Stored objects as these rules show them.
    pub(super) async fn open(&self, rules: &Rules, stored: Vec<StoredObject>) -> Result<Vec<Object>, Status> {
        let Some(custom) = converted_by_webhook(rules) else {
            return Ok(stored.into_iter().map(|stored| rules.object(stored)).collect());
        };
        let texts = stored.iter().map(|stored| stored.value.clone()).collect();
        let converted = self.texts(custom, texts).await?;
        let objects = stored.into_iter().zip(converted);
        Ok(objects
            .map(|(stored, text)| match text {
                Some(text) => rules.object(stored).converted(text),
                None => rules.object(stored),
            })
            .collect())
    }

    /// One stored object as these rules show it.
    pub(super) async fn open_one(&self, rules: &Rules, stored: StoredObject) -> Result<Object, Status> {
        if converted_by_webhook(rules).is_none() {
            return Ok(rules.object(stored));
        }
        let mut opened = self.open(rules, vec![stored]).await?;
        opened.pop().ok_or_else(|| Status::internal("a conversion lost its object"))
    }

    /// Watch events whose objects are in the version of these rules.
    pub(super) async fn events(
        &self,
        rules: &Rules,
        mut events: Vec<WatchEvent>,
    ) -> Result<Vec<WatchEvent>, Status> {
        let Some(custom) = converted_by_webhook(rules) else { return Ok(events) };
        let texts = events.iter().flat_map(|event| {
            std::iter::once(event.object.value.clone())
                .chain(event.previous.as_ref().map(|object| object.value.clone()))
        });
        let mut converted = self.texts(custom, texts.collect()).await?.into_iter();
        for event in &mut events {
            for object in std::iter::once(&mut event.object).chain(event.previous.as_mut()) {
                if let Some(text) = converted.next().flatten() {
                    object.value = text;
                }
            }
        }
        Ok(events)
    }

    /// The bytes that are stored of an object that is in the version of these rules.
    pub(super) async fn encode(&self, rules: &Rules, object: &Value) -> Result<Encoded, Status> {
        let custom = converted_by_webhook(rules)
            .filter(|custom| custom.storage_api_version() != custom.kind().api_version());
        let Some(custom) = custom else {
            return Ok(Encoded { value: rules.encode(object), shown: None });
        };
        let desired = custom.storage_api_version();
        let converted = self.review(custom, desired, vec![object.clone()]).await?;
        let converted = converted.first().ok_or_else(|| Status::internal("a conversion lost its object"))?;
        Ok(Encoded { value: create::encode(converted), shown: Some(create::encode(object)) })
    }

    /// An object of one version of a kind in another one.
    pub(super) async fn convert(
        &self,
        rules: &Rules,
        to: &'static Kind,
        object: &Value,
    ) -> Result<Value, Status> {
        let Rules::Custom(custom) = rules else {
            return Ok(api::versions::convert(rules.kind(), to, object));
        };
        let desired = to.api_version();
        if converted_by_webhook(rules).is_none() {
            let mut object = object.clone();
            object["apiVersion"] = Value::from(desired);
            return Ok(object);
        }
        let mut converted = self.review(custom, &desired, vec![object.clone()]).await?;
        converted.pop().ok_or_else(|| Status::internal("a conversion lost its object"))
    }

    /// Texts in the version of the kind; nothing where the text is in it already.
    async fn texts(&self, custom: &CustomKind, texts: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, Status> {
        let desired = custom.kind().api_version();
        let mut converted: Vec<Option<Bytes>> = vec![None; texts.len()];
        let others = texts.iter().enumerate().filter(|(_, text)| api_version(text) != desired);
        let others: Vec<(usize, &Bytes)> = others.collect();
        let mut rest = others.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(REVIEW_OBJECTS_MAX).take_while(|(_, text)| {
                bytes += text.len();
                bytes <= REVIEW_BYTES_MAX
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let objects = now.iter().map(|(_, text)| serde_json::from_slice(text).unwrap_or_default());
            let given = self.review(custom, &desired, objects.collect()).await?;
            for ((index, _), object) in now.iter().zip(given) {
                converted[*index] = Some(create::encode(&object));
            }
        }
        Ok(converted)
    }

    /// Asks the webhook.
    async fn review(
        &self,
        custom: &CustomKind,
        desired: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, Status> {
        let client = custom.conversion_client().unwrap_or(&Value::Null);
        let from = objects.first().map(object::api_version).unwrap_or_default();
        let failed = |why: &str| {
            let kind = custom.kind().kind;
            Status::denied(500, format!("conversion webhook for {from}, Kind={kind} {why}"))
        };
        let uid = create::new_uid();
        let body = conversion::write(&uid, desired, &objects).to_string();
        let answer = self.client.call(client, Some(TIMEOUT_S), body).await;
        let answer = answer.map_err(|error| failed(&format!("failed: {error}")))?;
        conversion::read(&answer, &uid, desired, &objects).map_err(|why| failed(&why))
    }
}

/// The rules, if a webhook stands between the versions of their kind.
fn converted_by_webhook(rules: &Rules) -> Option<&CustomKind> {
    rules.custom().filter(|custom| custom.conversion_client().is_some()).map(AsRef::as_ref)
}

/// The `apiVersion` of a stored text, without decoding the rest.
fn api_version(text: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        api_version: String,
    }
    serde_json::from_slice::<Versioned>(text).map(|object| object.api_version).unwrap_or_default()
}

impl Registry {
    /// What converts custom objects.
    pub(super) fn converter(&self) -> &Converter {
        &self.inner.converter
    }
}
