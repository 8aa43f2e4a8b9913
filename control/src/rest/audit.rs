//! What the audit log is told of a request: who, what, and, where the policy wants it, both bodies.
//!
//! Bodies are copied while they pass, never read in advance, so a request costs no more memory than the copy of
//! what was read of it anyway. A request that the policy does not want costs one look at the policy.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::{Value, json};

use super::body::{self, BODY_BYTES_MAX};
use super::negotiate::PROTOBUF;
use super::path::Route;
use super::respond::Body;
use super::verbs::Verb;
use super::{Head, PeerAddress, is_interactive};
use crate::audit::{Answer, Audit, Decision, Event, Level, Stage, Subject};
use crate::auth::Identity;

/// Largest answer that is noted.
const ANSWER_BYTES_MAX: u64 = BODY_BYTES_MAX as u64;

type Copied = Arc<Mutex<Vec<u8>>>;

/// A request on its way, as far as the audit log follows it. Most are not followed.
pub(super) struct Trail {
    followed: Option<Followed>,
}

struct Followed {
    audit: Arc<Audit>,
    decision: Decision,
    event: Event,
    headers: HeaderMap,
    copied: Option<Copied>,
    is_stream: bool,
}

impl Trail {
    /// Begins to follow a request, if the policy wants that.
    pub(super) fn begin<B>(
        audit: Option<&Arc<Audit>>,
        head: &Head,
        (id, asker): (&str, &Identity),
        request: &Request<B>,
    ) -> Self {
        let followed = audit.and_then(|audit| {
            let (verb, is_stream) = verb(head);
            let decision = audit.decide(&subject(head, asker, &verb));
            if decision.level == Level::None {
                return None;
            }
            let event = event(head, (id, asker), decision.level, (&verb, request));
            if decision.wants(Stage::RequestReceived) {
                audit.write(&event);
            }
            let copied = (decision.level >= Level::Request).then(Copied::default);
            let headers = head.headers.clone();
            Some(Followed { audit: audit.clone(), decision, event, headers, copied, is_stream })
        });
        Self { followed }
    }

    /// The request, its body copied as it is read.
    pub(super) fn tee<B>(&self, request: Request<B>) -> Request<Tee<B>> {
        let copied = self.followed.as_ref().and_then(|followed| followed.copied.clone());
        request.map(|inner| Tee { inner: Box::pin(inner), copied })
    }

    /// Notes the answer; a stream's end is noted when it ends.
    pub(super) async fn end(self, response: Response<Body>, panicked: bool) -> Response<Body> {
        let Some(followed) = self.followed else { return response };
        followed.end(response, panicked).await
    }
}

impl Followed {
    async fn end(mut self, response: Response<Body>, panicked: bool) -> Response<Body> {
        if let Some(body) = self.copied.take() {
            let body = std::mem::take(&mut *body.lock().unwrap_or_else(PoisonError::into_inner));
            let object = self.object(&body::media_type(&self.headers), &body);
            self.event = self.event.with("requestObject", object);
        }
        let code = response.status().as_u16();
        let is_error = code >= 400;
        let wants_body = self.decision.level == Level::RequestResponse && !self.is_stream;
        let is_small = response.body().size_hint().upper().is_some_and(|bytes| bytes <= ANSWER_BYTES_MAX);
        let (response, value) = match (wants_body || is_error) && is_small {
            true => self.read(response).await,
            false => (response, None),
        };
        let status = value.as_ref().filter(|value| is_error && value["kind"] == "Status").cloned();
        let answer = Answer { code, status, object: value.filter(|_| wants_body) };
        self.event = self.event.answered(answer);
        if panicked && self.decision.wants(Stage::Panic) {
            self.audit.write(&self.event.clone().at(Stage::Panic));
        }
        if !self.is_stream || is_error {
            self.note(Stage::ResponseComplete);
            return response;
        }
        self.note(Stage::ResponseStarted);
        let end = End { followed: self };
        response.map(|body| {
            body.map_frame(move |frame| {
                let _held = &end;
                frame
            })
            .boxed_unsync()
        })
    }

    fn note(&self, stage: Stage) {
        if self.decision.wants(stage) {
            self.audit.write(&self.event.clone().at(stage));
        }
    }

    /// An answer whose body is at hand, and what that says.
    async fn read(&self, response: Response<Body>) -> (Response<Body>, Option<Value>) {
        let (parts, body) = response.into_parts();
        let Ok(collected) = body.collect().await else {
            let broken = super::respond::failure(&api::Status::internal("the answer broke off"));
            return (broken, None);
        };
        let bytes = collected.to_bytes();
        let media_type =
            parts.headers.get(CONTENT_TYPE).and_then(|text| text.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let value = Some(self.object(media_type, &bytes)).filter(|value| !value.is_null());
        let body = Full::new(bytes).map_err(|never: std::convert::Infallible| match never {});
        (Response::from_parts(parts, body.boxed_unsync()), value)
    }

    /// A body as the log shows it: JSON, whatever it came in. Null if it is none.
    fn object(&self, media_type: &str, body: &[u8]) -> Value {
        if body.is_empty() {
            return Value::Null;
        }
        let read = match media_type {
            PROTOBUF | "application/yaml" | "application/apply-patch+yaml" => {
                let form = if media_type == PROTOBUF { PROTOBUF } else { "application/yaml" };
                body::object(form, body).map(|document| document.value).ok()
            }
            form if form.ends_with("json") => serde_json::from_slice(body).ok(),
            _ => None,
        };
        let mut value = read.unwrap_or_default();
        if self.decision.omit_managed_fields {
            let items = value.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take);
            let mut items = items.unwrap_or_default();
            for object in std::iter::once(&mut value).chain(&mut items) {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            }
            if let Some(list) = value.get_mut("items") {
                *list = Value::from(items);
            }
        }
        value
    }
}

/// Notes the end of a stream when the stream is dropped.
struct End {
    followed: Followed,
}

impl Drop for End {
    fn drop(&mut self) {
        self.followed.note(Stage::ResponseComplete);
    }
}

/// The verb as policies name it, and whether the answer is a stream.
fn verb(head: &Head) -> (String, bool) {
    let lower = || head.method.as_str().to_ascii_lowercase();
    let Route::Resource(resource) = &head.route else { return (lower(), false) };
    let verb = Verb::of(&head.method, resource, &head.query);
    let subresource = resource.subresource.as_deref().unwrap_or_default();
    let is_stream = verb == Some(Verb::Watch) || subresource == "log" || is_interactive(subresource);
    (verb.map_or_else(lower, |verb| verb.as_str().to_owned()), is_stream)
}

fn subject<'a>(head: &'a Head, asker: &'a Identity, verb: &'a str) -> Subject<'a> {
    let path = head.path.as_str();
    let Route::Resource(resource) = &head.route else {
        return Subject { identity: asker, verb, resource: None, namespace: "", name: "", path };
    };
    let subresource = resource.subresource.as_deref().unwrap_or_default();
    Subject {
        identity: asker,
        verb,
        resource: Some((resource.kind.group, resource.kind.plural, subresource)),
        namespace: resource.namespace.as_deref().unwrap_or_default(),
        name: resource.name.as_deref().unwrap_or_default(),
        path,
    }
}

fn event<B>(
    head: &Head,
    (id, asker): (&str, &Identity),
    level: Level,
    (verb, request): (&str, &Request<B>),
) -> Event {
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip().to_string());
    let uri = request.uri().path_and_query().map_or(head.path.as_str(), |uri| uri.as_str());
    Event::new(id, level, Stage::RequestReceived, asker)
        .with("requestURI", json!(uri))
        .with("verb", json!(verb))
        .impersonated((head.identity != *asker).then_some(&head.identity))
        .with("sourceIPs", json!(peer.into_iter().collect::<Vec<_>>()))
        .with("userAgent", json!(head.user_agent()))
        .with("objectRef", reference(head))
}

fn reference(head: &Head) -> Value {
    let Route::Resource(resource) = &head.route else { return Value::Null };
    let mut reference = json!({"resource": resource.kind.plural, "apiVersion": resource.kind.version});
    for (field, text) in [
        ("namespace", resource.namespace.as_deref()),
        ("name", resource.name.as_deref()),
        ("apiGroup", Some(resource.kind.group).filter(|group| !group.is_empty())),
        ("subresource", resource.subresource.as_deref()),
    ] {
        if let Some(text) = text {
            reference[field] = json!(text);
        }
    }
    reference
}

/// A body that is copied while it is read, as far as the largest that is read at all.
pub(super) struct Tee<B> {
    inner: Pin<Box<B>>,
    copied: Option<Copied>,
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Tee<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = self.inner.as_mut().poll_frame(context);
        if let (Some(copied), Poll::Ready(Some(Ok(frame)))) = (&self.copied, &polled)
            && let Some(data) = frame.data_ref()
        {
            let mut copied = copied.lock().unwrap_or_else(PoisonError::into_inner);
            if copied.len() + data.len() <= BODY_BYTES_MAX {
                copied.extend_from_slice(data);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
