//! One request to what stands behind a proxy, and its answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::select;
use http::header::HOST;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Body as HttpBody;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use streams::hops;
use tokio::io::copy_bidirectional;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::rewrite::{self, Location};
use super::target::Target;
use crate::backends::{self, Connection};
use crate::pki;
use crate::rest::Rest;
use crate::rest::respond::{Body, BoxError};

/// How long a connection to a backend may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an agreed upgrade may take to happen.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);

/// A request on its way.
pub(super) struct Exchange<'a> {
    pub(super) target: &'a Target,
    /// The path up to the word `proxy`.
    pub(super) prefix: &'a str,
    /// The path that the backend sees.
    pub(super) inner: &'a str,
}

impl Exchange<'_> {
    /// Sends the request and gives the answer, whose body comes as the client reads.
    pub(super) async fn perform<B>(
        &self,
        rest: &Rest,
        mut request: Request<B>,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(rest)).await {
            Ok(connection) => connection?,
            Err(_) => return Err(self.unreachable(&io::Error::from(io::ErrorKind::TimedOut))),
        };
        let client = hops::upgrade(request.headers()).is_some().then(|| hyper::upgrade::on(&mut request));
        let asked = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let asked = asked.to_owned();
        let request = self.outgoing(request)?;
        let broken = |error: hyper::Error| self.unreachable(&io::Error::other(error));
        let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await.map_err(broken)?;
        // Ends with the request's body, the answer's body, or the upgraded connection.
        let stop = Box::pin(rest.stop.clone().cancelled_owned());
        tokio::spawn(select(driver.with_upgrades(), stop).map(drop));
        let mut response = sender.send_request(request).await.map_err(broken)?;
        let location = Location { prefix: self.prefix, host: &self.target.host, asked: &asked };
        let headers = rewrite::response_headers(response.status(), response.headers(), &location);
        let code = response.status();
        if code == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = client else {
                return Err(self.unreachable(&io::Error::other("it changed the protocol unasked")));
            };
            let backend = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel(client, backend, rest.stop.clone()));
            return Ok(answer(code, headers, Empty::new().map_err(|never| match never {}).boxed_unsync()));
        }
        Ok(answer(code, headers, response.into_body().map_err(Into::into).boxed_unsync()))
    }

    fn outgoing<B>(&self, request: Request<B>) -> Result<Request<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let uri = match parts.uri.query() {
            Some(query) => format!("{}?{query}", self.inner),
            None => self.inner.to_owned(),
        };
        let mut outgoing = Request::new(body.map_err(Into::into).boxed_unsync());
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = uri
            .parse()
            .map_err(|error| Status::bad_request(format!("the path cannot be passed on: {error}")))?;
        *outgoing.version_mut() = Version::HTTP_11;
        *outgoing.headers_mut() =
            rewrite::request_headers(&parts.headers, self.prefix, self.inner, &self.target.host);
        Ok(outgoing)
    }

    async fn connect(&self, rest: &Rest) -> Result<Box<dyn Connection>, Status> {
        let plain = backends::connect(&self.target.place, rest.pod_streams.as_ref()).await;
        let plain = plain.map_err(|error| self.unreachable(&error))?;
        if !self.target.tls {
            return Ok(plain);
        }
        let config = pki::unverified_client_config()
            .map_err(|error| Status::internal(&format!("no TLS to backends: {error}")))?;
        let host = self.target.host.rsplit_once(':').map_or(self.target.host.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|error| self.unreachable(&io::Error::other(error)))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, plain).await;
        Ok(Box::new(stream.map_err(|error| self.unreachable(&error))?))
    }

    /// The backend cannot be spoken to.
    fn unreachable(&self, error: &io::Error) -> Status {
        let scheme = if self.target.tls { "https" } else { "http" };
        let Target { host, .. } = self.target;
        Status::service_unavailable(format!("error trying to reach service: {scheme}://{host}: {error}"))
    }
}

fn answer(code: StatusCode, headers: http::HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    *response.headers_mut() = headers;
    response
}

/// Carries what both sides say once they have agreed on another protocol.
async fn tunnel(client: OnUpgrade, backend: OnUpgrade, stop: CancellationToken) {
    let both = async { tokio::try_join!(client, backend) };
    let (client, backend) = match tokio::time::timeout(UPGRADE_TIMEOUT, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return tracing::debug!(%error, "a proxied connection was not upgraded"),
        Err(_) => return tracing::debug!("a proxied connection was not upgraded in time"),
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    let _ended = stop.run_until_cancelled(copy_bidirectional(&mut client, &mut backend)).await;
}
