//! One request: to whom it goes, and how it gets there.
//!
//! Requests go on as HTTP/1.1, or as HTTP/2 where the Service says so, with their host and path as they came; members
//! that are for one connection only (RFC 9110 section 7.6.1) stay behind, `X-Forwarded-*` say who asked for what,
//! replacing whatever the caller claimed. Where a connection cannot be had the next endpoint is asked, before anything
//! of the request is lost. Upgrades (WebSocket) become plain streams in both directions.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, LOCATION, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use streams::hops;
use tokio::sync::watch;

use super::http2::{Connections, Failure};
use super::table::{Backend, Table};

/// How long an endpoint may take to accept a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take from the request to the head of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How many endpoints are asked for a connection.
const ATTEMPTS_MAX: usize = 3;
/// Idle connections kept to one endpoint.
const IDLE_MAX: usize = 32;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What a caller is sent.
pub(super) type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Whence a request came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    pub(super) is_secure: bool,
}

/// Leads requests by the newest table.
#[derive(Debug)]
pub(super) struct Proxy {
    table: watch::Receiver<Arc<Table>>,
    client: Client<HttpConnector, Lent>,
    http2: Connections,
}

impl Proxy {
    pub(super) fn new(table: watch::Receiver<Arc<Table>>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Self { table, client, http2: Connections::default() }
    }

    /// Answers a request, somehow.
    pub(super) async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        let Some(authority) = authority(&request) else {
            return said(StatusCode::BAD_REQUEST, "the request does not say which host it is for");
        };
        let host = authority.host().to_ascii_lowercase();
        let path = request.uri().path().to_owned();
        let table = Arc::clone(&self.table.borrow());
        if !caller.is_secure && table.redirects(&host) {
            return redirect(&host, request.uri());
        }
        let Some(backend) = table.find(&host, &path).cloned() else {
            return said(
                StatusCode::NOT_FOUND,
                &format!("no Ingress has a rule for {host}{path}, and none a default backend"),
            );
        };
        // A table may be long in use: requests take their time.
        drop(table);
        self.forward(request, &authority, &backend, caller).await
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        authority: &Authority,
        backend: &Backend,
        caller: Caller,
    ) -> Answer {
        let candidates = match backend.candidates(ATTEMPTS_MAX) {
            Ok(candidates) => candidates,
            Err(absence) => {
                return said(StatusCode::SERVICE_UNAVAILABLE, &format!("{}: {absence}", backend.name));
            }
        };
        let may_upgrade = request.version() == Version::HTTP_11 && !backend.is_http2;
        let upgrade = hops::upgrade(request.headers()).filter(|_| may_upgrade);
        let upgrade = upgrade.cloned();
        let switching = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let takes_trailers = parts.headers.get(TE).is_some_and(|value| value == TRAILERS);
        hops::strip(&mut parts.headers);
        // Answered here already.
        parts.headers.remove(EXPECT);
        identify(&mut parts.headers, authority, caller, upgrade);
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let body = Lent(Arc::new(Mutex::new(body)));
        let mut last = String::new();
        for endpoint in candidates {
            let mut onward = Request::new(body.clone());
            *onward.method_mut() = parts.method.clone();
            *onward.headers_mut() = parts.headers.clone();
            // In HTTP/2 the host stands in the target.
            let named = onward.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
            let target = named.filter(|_| backend.is_http2).unwrap_or_else(|| endpoint.to_string());
            let Some(uri) = uri(&target, &path) else { continue };
            *onward.uri_mut() = uri;
            let answered =
                async {
                    if backend.is_http2 {
                        as_http2(&mut onward, takes_trailers);
                        return self.http2.send(endpoint, onward).await.map_err(|failure| {
                            (matches!(failure, Failure::NoConnection), failure.to_string())
                        });
                    }
                    let asked = self.client.request(onward).await;
                    asked.map_err(|error| (error.is_connect(), with_cause(&error)))
                };
            match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
                Err(_) => {
                    let words =
                        format!("{}: {endpoint} did not answer within {ANSWER_TIMEOUT:?}", backend.name);
                    return said(StatusCode::GATEWAY_TIMEOUT, &words);
                }
                Ok(Ok(mut response)) => {
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                        let Some(caller) = switching else {
                            return said(
                                StatusCode::BAD_GATEWAY,
                                &format!("{}: {endpoint} changed the protocol unasked", backend.name),
                            );
                        };
                        join(caller, hyper::upgrade::on(&mut response));
                    } else {
                        hops::strip(response.headers_mut());
                    }
                    return response.map(Either::Left);
                }
                Ok(Err((is_untouched, error))) => {
                    tracing::debug!(backend = backend.name, %endpoint, error, "an endpoint did not answer");
                    let what = if is_untouched { "cannot be connected to" } else { "broke off" };
                    last = format!("{endpoint} {what}");
                    if !is_untouched {
                        break;
                    }
                }
            }
        }
        said(StatusCode::BAD_GATEWAY, &format!("{}: {last}", backend.name))
    }
}

/// Which host a request is for: HTTP/2 says so in its target.
fn authority(request: &Request<Incoming>) -> Option<Authority> {
    let header = || request.headers().get(HOST)?.to_str().ok()?.parse().ok();
    request.uri().authority().cloned().or_else(header)
}

fn uri(authority: &str, path: &PathAndQuery) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = authority.parse().ok();
    parts.path_and_query = Some(path.clone());
    Uri::from_parts(parts).ok()
}

/// Whoever wants trailers has to say so on this connection, too.
fn as_http2(request: &mut Request<Lent>, takes_trailers: bool) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    if takes_trailers {
        request.headers_mut().insert(TE, TRAILERS);
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_cause(source)),
        None => error.to_string(),
    }
}

/// Says who asked for what.
fn identify(headers: &mut HeaderMap, authority: &Authority, caller: Caller, upgrade: Option<HeaderValue>) {
    let address = HeaderValue::from_str(&caller.address.ip().to_canonical().to_string());
    let address = address.unwrap_or(HeaderValue::from_static("unknown"));
    headers.insert(FORWARDED_FOR, address.clone());
    headers.insert(REAL_IP, address);
    headers
        .insert(FORWARDED_PROTO, HeaderValue::from_static(if caller.is_secure { "https" } else { "http" }));
    let port = authority.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    if let Ok(host) = HeaderValue::from_str(&format!("{}{port}", authority.host())) {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.insert(HOST, host);
    }
    if let Some(upgrade) = upgrade {
        hops::set_upgrade(headers, upgrade);
    }
}

/// Joins two streams once both sides have changed the protocol.
fn join(caller: hyper::upgrade::OnUpgrade, endpoint: hyper::upgrade::OnUpgrade) {
    tokio::spawn(async move {
        match tokio::try_join!(caller, endpoint) {
            Ok((caller, endpoint)) => {
                let (mut caller, mut endpoint) = (TokioIo::new(caller), TokioIo::new(endpoint));
                // Either side may end it as it likes.
                let _ended = tokio::io::copy_bidirectional(&mut caller, &mut endpoint).await;
            }
            Err(error) => tracing::debug!(%error, "the protocol was not changed after all"),
        }
    });
}

fn redirect(host: &str, uri: &Uri) -> Answer {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut answer = said(StatusCode::PERMANENT_REDIRECT, "this host is served by https");
    if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{path}")) {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}

fn said(status: StatusCode, words: &str) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(Bytes::from(format!("{words}\n")))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// The body of a request, which is still there when nobody began to read it.
#[derive(Debug, Clone)]
pub(super) struct Lent(Arc<Mutex<Incoming>>);

impl Lent {
    fn with<T>(&self, work: impl FnOnce(Pin<&mut Incoming>) -> T) -> T {
        work(Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.with(|body| body.poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}
