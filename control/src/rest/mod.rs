//! The Kubernetes REST API.
//!
//! Owns everything between an HTTP request and a call of the registry: which thing a path names, who may,
//! in which form bodies come and go, discovery, probes. Promises that every request is answered (a panic is
//! a 500, a slow one a 504), that bodies, time and the number of requests at once are bounded, and that
//! errors are Kubernetes `Status` objects. Does not change objects itself: that is the registry's.
//!
//! ```text
//!   request ─► path ─► auth ─► verb ─► [registry] ─► respond (whole | table | metadata; JSON | YAML | protobuf)
//! ```

mod apply;
mod audit;
mod body;
mod bounds;
mod documents;
mod fairness;
mod head;
mod impersonation;
mod issuer;
mod logs;
mod metrics;
mod negotiate;
mod node_reads;
mod node_restriction;
mod path;
mod probes;
mod proxy;
mod query;
mod resource_metrics;
mod respond;
mod review;
mod scale;
mod security;
mod streams;
mod token;
mod verbs;
mod watch;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Status;
use bytes::Bytes;
use exposition::{Exposition, MEDIA_TYPE};
use futures_util::FutureExt;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use raft_store::chance;
use rand::Rng;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use self::body::BODY_BYTES_MAX;
pub use self::fairness::REQUESTS_MAX;
use self::fairness::{Fairness, STREAMS_MAX};
use self::head::Head;
pub use self::logs::LogRequest;
use self::metrics::Metrics;
use self::negotiate::{Form, Offer};
pub use self::node_reads::{Measurements, NodeBytes, NodeBytesFuture, NodeReads};
use self::path::{Document, Probe, Resource, Route};
use self::query::Query;
use self::respond::Style;
pub use self::respond::{Body, BoxError};
pub use self::security::{PeerAddress, Security};
pub use self::streams::{
    ClientFrame, Handover, NodeFrame, NodeStream, OpenStream, PodStreams, StreamEnds, StreamFailure,
    StreamFuture, StreamRequest, StreamTarget,
};
use self::verbs::{Call, Verb};
pub(crate) use self::watch::INITIAL_EVENTS_END;
use crate::audit::Audit;
use crate::auth::service_account::ServiceAccounts;
use crate::auth::tokens::Tokens;
use crate::auth::{self, Access, Attributes, Identity, ResourceName};
use crate::flow_control::FlowControl;
use crate::registry::Registry;
use crate::usage::Usage;

/// How long a request other than a watch or a log may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// After how many seconds a client that met a full replica should try again.
const RETRY_AFTER_S: u32 = 1;
/// Longest request id taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// What the REST API is made of.
pub struct Parts {
    /// Reads and writes objects.
    pub registry: Registry,
    /// Decides who may.
    pub access: Access,
    /// Where container logs and the numbers of nodes come from.
    pub reads: Arc<dyn NodeReads>,
    /// Where interactive streams come from.
    pub pod_streams: Arc<dyn PodStreams>,
    /// Makes and checks the tokens of service accounts.
    pub accounts: ServiceAccounts,
    /// What nodes and pods use.
    pub usage: Usage,
    /// Which requests matter more than others.
    pub flow_control: FlowControl,
    /// This replica's `host:port` as clients know it.
    pub advertised: String,
    /// Who gets in beside those whom the cluster knows.
    pub security: Security,
    /// What `/metrics` tells beside what the API counts itself.
    pub expose: Expose,
    /// Cancelled when the replica begins to stop: streams end.
    pub stop: CancellationToken,
}

/// Adds numbers to the text of `/metrics`.
pub type Expose = Arc<dyn Fn(&mut Exposition) + Send + Sync>;

/// The REST API of one replica.
pub struct Rest {
    registry: Registry,
    access: Access,
    reads: Arc<dyn NodeReads>,
    pod_streams: Arc<dyn PodStreams>,
    accounts: ServiceAccounts,
    usage: Usage,
    tokens: Tokens,
    allows_anonymous: bool,
    audit: Option<Arc<Audit>>,
    advertised: String,
    expose: Expose,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    fairness: Fairness,
    streams: Arc<Semaphore>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Rest").field("advertised", &self.advertised).finish_non_exhaustive()
    }
}

impl Rest {
    /// Puts the API together.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            registry,
            access,
            reads,
            pod_streams,
            accounts,
            usage,
            flow_control,
            advertised,
            security,
            expose,
            stop,
        } = parts;
        registry.reach_pods_through(&pod_streams);
        let tokens = Tokens::new(registry.clone(), accounts.clone(), security.static_tokens.clone());
        Self {
            tokens,
            allows_anonymous: security.allows_anonymous,
            audit: security.audit,
            registry,
            access,
            reads,
            pod_streams,
            accounts,
            usage,
            advertised,
            expose,
            stop,
            metrics: Arc::default(),
            fairness: Fairness::new(security.requests_max, flow_control),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// Answers a request. Who asks stands in its extensions as an [`Identity`]; without one, nobody known.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let began = Instant::now();
        let asker = self.identity(&request).await;
        let (identity, refused) = match impersonation::apply(&self.access, &asker, request.headers()) {
            Ok(other) => (other.unwrap_or_else(|| asker.clone()), None),
            Err(status) => (asker.clone(), Some(status)),
        };
        let head = Head {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            route: self.route(&identity, request.uri().path()).await,
            query: Query::parse(request.uri().query()),
            headers: request.headers().clone(),
            identity,
        };
        let (verb, resource) = head.labels();
        let id = request_id(&head.headers);
        let trail = audit::Trail::begin(self.audit.as_ref(), &head, (&id, &asker), &request);
        let request = trail.tee(request);
        let answer = async {
            match refused {
                Some(status) if !head.identity.is_anonymous() => respond::failure(&status),
                _ => self.answer(&head, request).await,
            }
        };
        let answer = AssertUnwindSafe(answer).catch_unwind().await;
        let panicked = answer.is_err();
        let response = answer.unwrap_or_else(|_| {
            self.metrics.panicked();
            tracing::error!(method = %head.method, path = head.path, "the handling of a request panicked");
            respond::failure(&Status::internal("the handling of the request failed; see this replica's log"))
        });
        let mut response = trail.end(response, panicked).await;
        if head.method == Method::HEAD {
            let empty = Empty::new().map_err(|never: std::convert::Infallible| match never {});
            *response.body_mut() = empty.boxed_unsync();
        }
        respond::set_header(&mut response, "audit-id", &id);
        respond::set_header(&mut response, "x-request-id", &id);
        respond::set_header(&mut response, "cache-control", "no-cache, private");
        let (code, time) = (response.status().as_u16(), began.elapsed());
        self.metrics.answered(verb, resource, code, time);
        tracing::debug!(
            id, user = head.identity.user, method = %head.method, path = head.path, code, ?time, "answered"
        );
        response
    }

    async fn answer<B>(&self, head: &Head, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Credentials that do not count are not the same as none.
        let is_heard = self.allows_anonymous && !head.headers.contains_key(AUTHORIZATION);
        if head.identity.is_anonymous() && !head.is_public() && !is_heard {
            return respond::failure(&Status::unauthorized());
        }
        match &head.route {
            Route::Resource(resource) => self.answer_resource(head, resource, request).await,
            Route::Probe(..) | Route::Document(_) | Route::Unknown => {
                if let Err(status) = self.authorize_path(head) {
                    return respond::failure(&status);
                }
                match &head.route {
                    Route::Document(document @ (Document::Issuer | Document::IssuerKeys))
                        if matches!(head.method, Method::GET | Method::HEAD) =>
                    {
                        self.issuer_document(document).await
                    }
                    _ => self.answer_path(head),
                }
            }
        }
    }

    /// Who asks: whom the client certificate names, else whom the token names, else nobody. A token that does
    /// not count makes nobody, to whom only public paths are open.
    async fn identity<B>(&self, request: &Request<B>) -> Identity {
        let known = request.extensions().get().cloned().unwrap_or_else(Identity::anonymous);
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = header.filter(|_| known.is_anonymous()).and_then(|h| h.split_once(' '))
        else {
            return known;
        };
        match scheme.eq_ignore_ascii_case("bearer") {
            true => self.tokens.authenticate(token.trim()).await.unwrap_or(known),
            false => known,
        }
    }

    /// What a path names. A custom resource that this replica does not know yet is looked up first.
    async fn route(&self, identity: &Identity, path: &str) -> Route {
        let kinds = self.registry.kinds();
        let route = Route::parse(path, &kinds.current());
        if route != Route::Unknown || identity.is_anonymous() {
            return route;
        }
        match path::custom_resource(path) {
            Some((group, plural)) if kinds.learn(group, plural).await => Route::parse(path, &kinds.current()),
            _ => route,
        }
    }

    fn authorize_path(&self, head: &Head) -> Result<(), Status> {
        let verb = head.method.as_str().to_ascii_lowercase();
        let attributes = Attributes { verb: &verb, path: &head.path, ..Attributes::default() };
        if head.is_public() || self.access.allows(&head.identity, &attributes) {
            return Ok(());
        }
        Err(auth::refusal(&head.identity, &attributes))
    }

    fn answer_path(&self, head: &Head) -> Response<Body> {
        if head.route == Route::Unknown {
            return respond::not_found();
        }
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return respond::method_not_allowed("GET");
        }
        match &head.route {
            Route::Probe(Probe::Metrics, _) => {
                let mut out = Exposition::default();
                self.metrics.expose(&mut out, self.fairness.executing());
                self.fairness.expose(&mut out);
                if let Some(audit) = &self.audit {
                    audit.expose(&mut out);
                }
                (self.expose)(&mut out);
                let mut response = respond::text(http::StatusCode::OK, out.finish());
                respond::set_header(&mut response, "content-type", MEDIA_TYPE);
                response
            }
            Route::Probe(probe, check) => {
                let stopping = self.stop.is_cancelled();
                probes::respond(probe, check.as_deref(), &head.query, self.registry.store(), stopping)
            }
            Route::Document(document) => {
                let style = match Form::of(&head.headers, Offer::Text) {
                    Ok(form) => Style { form: form.whole(), pretty: head.pretty(), ..Style::JSON },
                    // Some documents have media types of their own.
                    Err(_) if documents::is_acceptable(document, &head.headers) => Style::JSON,
                    Err(status) => return respond::failure(&status),
                };
                let kinds = self.registry.kinds().current();
                documents::respond(document, &head.headers, &style, &self.advertised, &kinds)
                    .unwrap_or_else(respond::not_found)
            }
            Route::Resource(_) | Route::Unknown => respond::not_found(),
        }
    }

    async fn answer_resource<B>(
        &self,
        head: &Head,
        resource: &Resource,
        request: Request<B>,
    ) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Some(verb) = Verb::of(&head.method, resource, &head.query) else {
            return respond::method_not_allowed(allowed(resource));
        };
        let attributes = attributes(resource, verb, &head.query);
        if !self.access.allows(&head.identity, &attributes) {
            return respond::failure(&auth::refusal(&head.identity, &attributes));
        }
        let mut response = self.answer_allowed(head, (resource, verb), &attributes, request).await;
        self.fairness.classify(&head.identity, &attributes).mark(&mut response);
        response
    }

    /// Answers a request for a resource that its asker may make.
    async fn answer_allowed<B>(
        &self,
        head: &Head,
        (resource, verb): (&Resource, Verb),
        attributes: &Attributes<'_>,
        request: Request<B>,
    ) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if resource.subresource.as_deref() == Some("proxy") {
            let answer = self.stream(head, self.proxy(head, resource, request)).await;
            return answer.unwrap_or_else(|status| respond::failure(&status));
        }
        let style = match head.style(verb, resource) {
            Ok(style) => style,
            Err(status) => return respond::failure(&status),
        };
        if let Some(subresource) = resource.subresource.as_deref().filter(|name| is_interactive(name)) {
            let (namespace, pod) = (attributes.namespace, attributes.name);
            tracing::info!(user = head.identity.user, subresource, namespace, pod, "a stream is asked for");
        }
        let user_agent = head.user_agent();
        let call = Call { resource, verb, query: &head.query, style, identity: &head.identity, user_agent };
        let work = self.perform(&call, request);
        let result = match verb == Verb::Watch || resource.subresource.as_deref() == Some("log") {
            true => self.stream(head, work).await,
            false => self.bounded(head, attributes, work).await,
        };
        result.unwrap_or_else(|status| style.failure(&status))
    }
}

fn attributes<'a>(resource: &'a Resource, verb: Verb, query: &'a Query) -> Attributes<'a> {
    let namespace = resource.namespace.as_deref().unwrap_or_default();
    let name = resource.name.as_deref().unwrap_or_default();
    // A namespace is inside itself, as Kubernetes sees it.
    let namespace = if resource.kind.kind == "Namespace" { name } else { namespace };
    let selects = matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
    let fields = query.get("fieldSelector").filter(|_| selects).unwrap_or_default();
    let mut attributes = Attributes {
        verb: verb.as_str(),
        resource: Some(ResourceName::of(resource.kind)),
        subresource: resource.subresource.as_deref().unwrap_or_default(),
        namespace,
        name,
        path: "",
        fields,
    };
    // Who lists one object by its name asks for that object.
    if let Some(name) = attributes.selected("metadata.name").filter(|_| name.is_empty()) {
        attributes.name = name;
    }
    attributes
}

fn allowed(resource: &Resource) -> &'static str {
    match (&resource.subresource, &resource.name) {
        (Some(subresource), _) if subresource == "log" => "GET",
        (Some(subresource), _) if is_interactive(subresource) => "GET, POST",
        (Some(subresource), _) if subresource == "finalize" => "PUT",
        (Some(subresource), _) if matches!(subresource.as_str(), "binding" | "eviction") => "POST",
        (Some(_), _) => "GET, PATCH, PUT",
        (None, Some(_)) => "DELETE, GET, PATCH, PUT",
        (None, None) if resource.kind.namespaced && resource.namespace.is_none() => "GET",
        (None, None) => "DELETE, GET, POST",
    }
}

/// Whether a subresource is a connection rather than an object.
fn is_interactive(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward")
}

fn too_many() -> Status {
    Status::too_many_requests("too many requests, please try again later", RETRY_AFTER_S)
}

/// The client's own id for the request, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = ["audit-id", "x-request-id"].iter().find_map(|name| headers.get(*name)?.to_str().ok());
    match given.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", chance::rng().random::<u128>()),
    }
}
