//! HTTP as registries need it: TLS by registry, time limits, redirects, bounded bodies, the registry's own words
//! for what went wrong. Knows nothing of images.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio_stream::StreamExt as _;

use super::super::{ImageError, ImagesConfig, ProxyConfig};
use super::RegistryError;
use super::proxy::{Dialler, credentials};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;
/// What is read of an answer that tells of an error.
const ERROR_BYTES_MAX: u64 = 16 << 10;
const SAID_CHARS_MAX: usize = 300;
/// Longest wait that a registry may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// An upload that is slower counts as stuck.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 16 << 10;
const UPLOAD_CHUNK_BYTES: usize = 256 << 10;
const IDLE_CONNECTIONS_MAX: usize = 4;
const USER_AGENT: &str = concat!("barque/", env!("CARGO_PKG_VERSION"));

type Body = BoxBody<Bytes, std::io::Error>;
type HttpClient = Client<HttpsConnector<Dialler>, Body>;

/// What a request carries; can be made again for another try.
#[derive(Debug, Clone, Default)]
pub(super) enum Content {
    #[default]
    None,
    Bytes(Bytes),
    File {
        path: PathBuf,
        size: u64,
    },
}

/// A request that can be sent more than once.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) what: String,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

impl Ask {
    pub(super) fn new(what: impl Into<String>, method: Method, uri: Uri) -> Self {
        Self { what: what.into(), method, uri, headers: HeaderMap::new(), content: Content::None }
    }

    pub(super) fn header(mut self, name: http::HeaderName, value: &str) -> Result<Self, RegistryError> {
        let value = HeaderValue::from_str(value).map_err(|e| self.broken(e.to_string()))?;
        self.headers.append(name, value);
        Ok(self)
    }

    pub(super) fn broken(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { what: self.what.clone(), problem: problem.into() }
    }

    pub(super) fn unavailable(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Unavailable { what: self.what.clone(), problem: problem.into() }
    }
}

/// Which certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Trust {
    System,
    SystemAnd(PathBuf),
    /// No TLS.
    Nobody,
}

/// The transport; shared by everybody who speaks to registries.
pub(super) struct Http {
    config: Arc<ImagesConfig>,
    clients: Mutex<HashMap<Trust, HttpClient>>,
}

impl Http {
    pub(super) fn new(config: Arc<ImagesConfig>) -> Self {
        Self { config, clients: Mutex::default() }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.config.request_timeout
    }

    /// Whether a registry is spoken to without TLS: as configured, else only where nobody can listen in.
    pub(super) fn is_plain(&self, authority: &str) -> bool {
        let configured = self.config.registries.get(authority).and_then(|r| r.insecure);
        configured.unwrap_or_else(|| is_loopback(authority))
    }

    /// Sends a request and follows where it is sent on to. `authorization` goes to the first host only.
    pub(super) async fn send(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut uri = ask.uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let same_host = uri.authority() == ask.uri.authority() && uri.scheme() == ask.uri.scheme();
            let response = self.send_once(ask, &uri, authorization.filter(|_| same_host)).await?;
            let follows =
                [Method::GET, Method::HEAD].contains(&ask.method) && response.status().is_redirection();
            let Some(location) = response.headers().get(LOCATION).filter(|_| follows) else {
                return Ok(response);
            };
            let next = resolve(&uri, location).ok_or_else(|| ask.broken("it redirects to no address"))?;
            if uri.scheme() == Some(&Scheme::HTTPS) && next.scheme() != Some(&Scheme::HTTPS) {
                return Err(ask.broken(format!("it redirects from TLS to {}, without", host(&next))));
            }
            uri = next;
        }
        Err(ask.broken(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    async fn send_once(
        &self,
        ask: &Ask,
        uri: &Uri,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let client = self.client(uri)?;
        let (body, size) = body(&ask.content).await?;
        let mut request = Request::new(body);
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = ask.headers.clone();
        let headers = request.headers_mut();
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        // In a tunnel the proxy reads no request; it was told when it was asked for the tunnel.
        let proxy = self.config.proxy.of(uri).filter(|_| uri.scheme() == Some(&Scheme::HTTP));
        if let Some(value) = proxy.and_then(|proxy| HeaderValue::from_str(&credentials(&proxy)?).ok()) {
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        if let Some(size) = size {
            headers.insert(http::header::CONTENT_LENGTH, size.into());
        }
        let upload = Duration::from_secs(size.unwrap_or(0) / UPLOAD_BYTES_PER_SECOND_MIN);
        match tokio::time::timeout(self.timeout() + upload, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if is_tls(&error) => {
                let host = host(uri);
                Err(ask.broken(format!(
                    "{host}: {} (for a registry with an authority of its own set caFile, for one without TLS set \
                     insecure, at images.registries.{host} of the node's configuration)",
                    causes(&error)
                )))
            }
            Ok(Err(error)) => Err(ask.unavailable(format!("{}: {}", host(uri), causes(&error)))),
            Err(_) => Err(ask.unavailable(format!("{} does not answer", host(uri)))),
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(super) async fn next_piece(
        &self,
        what: &str,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, RegistryError> {
        let unavailable = |problem| RegistryError::Unavailable { what: what.to_owned(), problem };
        loop {
            let frame = tokio::time::timeout(self.timeout(), body.frame())
                .await
                .map_err(|_| unavailable("the registry fell silent".to_owned()))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(unavailable(format!("the connection broke: {}", causes(&error))));
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// A whole body, if it is not longer than `bytes_max`.
    pub(super) async fn read(
        &self,
        what: &str,
        mut body: Incoming,
        bytes_max: u64,
    ) -> Result<Bytes, RegistryError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next_piece(what, &mut body).await? {
            if (whole.len() + piece.len()) as u64 > bytes_max {
                let problem = format!("the answer is longer than {bytes_max} bytes");
                return Err(RegistryError::Protocol { what: what.to_owned(), problem });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// The error that an answer tells of.
    pub(super) async fn refusal(
        &self,
        ask: &Ask,
        response: Response<Incoming>,
        with_credentials: bool,
    ) -> RegistryError {
        let status = response.status();
        let text = self.read(&ask.what, response.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
        let (what, said) = (ask.what.clone(), said(&text));
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { what, said },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let said = if said.is_empty() { status.to_string() } else { said };
                RegistryError::Unauthorized { what, said, with_credentials }
            }
            status if is_passing(status) => {
                let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
                RegistryError::Unavailable { what, problem: format!("the registry answered {status}{said}") }
            }
            status => RegistryError::Refused { what, status: status.as_u16(), said },
        }
    }

    fn client(&self, uri: &Uri) -> Result<HttpClient, RegistryError> {
        let trust = match uri.scheme() == Some(&Scheme::HTTPS) {
            false => Trust::Nobody,
            true => match self.config.registries.get(host(uri)).and_then(|r| r.ca_file.clone()) {
                Some(file) => Trust::SystemAnd(file),
                None => Trust::System,
            },
        };
        let mut clients = self.clients.lock().expect("no holder of the clients panics");
        if let Some(client) = clients.get(&trust) {
            return Ok(client.clone());
        }
        let client = new_client(&trust, &self.config.proxy)?;
        clients.insert(trust, client.clone());
        Ok(client)
    }
}

/// Whether the same request may go better later.
pub(super) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
}

/// How long the answer asks to wait.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// An address that an answer names, absolute or not.
pub(super) fn resolve(base: &Uri, location: &HeaderValue) -> Option<Uri> {
    let text = location.to_str().ok()?;
    if let Some(rest) = text.strip_prefix("//") {
        return format!("{}://{rest}", base.scheme_str()?).parse().ok();
    }
    let named: Uri = text.parse().ok()?;
    if named.scheme().is_some() {
        let known = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&named.scheme());
        return named.authority().is_some().then_some(named).filter(|_| known);
    }
    if !text.starts_with('/') {
        return None;
    }
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(text.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

pub(super) fn host(uri: &Uri) -> &str {
    uri.authority().map_or("", Authority::as_str)
}

fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn new_client(trust: &Trust, proxies: &ProxyConfig) -> Result<HttpClient, RegistryError> {
    let mut roots = rustls::RootCertStore::empty();
    if *trust != Trust::Nobody {
        // What cannot be read is not trusted; a registry's certificate then says so.
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
    }
    if let Trust::SystemAnd(file) = trust {
        add_authorities(&mut roots, file)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Dialler { direct: tcp, proxies: Arc::new(proxies.clone()) });
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(IDLE_CONNECTIONS_MAX).build(connector))
}

fn add_authorities(roots: &mut rustls::RootCertStore, file: &Path) -> Result<(), RegistryError> {
    let refuse = |problem: String| ImageError::malformed(format!("caFile {}", file.display()), problem);
    let text = std::fs::read(file).map_err(ImageError::io("read", file))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|e| refuse(e.to_string()))?;
        roots.add(certificate).map_err(|e| refuse(e.to_string()))?;
    }
    Ok(())
}

async fn body(content: &Content) -> Result<(Body, Option<u64>), RegistryError> {
    let never = |never: std::convert::Infallible| match never {};
    Ok(match content {
        Content::None => (Empty::new().map_err(never).boxed(), None),
        Content::Bytes(bytes) => (Full::new(bytes.clone()).map_err(never).boxed(), Some(bytes.len() as u64)),
        Content::File { path, size } => {
            let file = tokio::fs::File::open(path).await.map_err(ImageError::io("open", path))?;
            let pieces = tokio_util::io::ReaderStream::with_capacity(file, UPLOAD_CHUNK_BYTES);
            (StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed(), Some(*size))
        }
    })
}

/// The registry's words: those of the protocol's error document, or the text itself.
fn said(text: &[u8]) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(text).ok();
    let errors = document.as_ref().and_then(|d| d["errors"].as_array()).map(|errors| {
        let word = |e: &serde_json::Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
        let one = |e: &serde_json::Value| [word(e, "code"), word(e, "message")].join(": ");
        errors.iter().map(one).collect::<Vec<_>>().join("; ")
    });
    // A token service's form.
    let details = || document.as_ref()?["details"].as_str().map(str::to_owned);
    let said = errors.or_else(details).unwrap_or_else(|| String::from_utf8_lossy(text).into_owned());
    if said.trim_start().starts_with('<') {
        return String::new();
    }
    let plain = said.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(SAID_CHARS_MAX).collect::<String>().trim().trim_end_matches(':').to_owned()
}

/// Whether the other side could not be believed, or does not speak TLS: no try will change that.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    // An io error that wraps another hides it from `source`.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|inner| is_tls(inner))
        || error.source().is_some_and(is_tls)
}

/// An error with everything that led to it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_words_are_found() {
        let document =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"},{"code":"DENIED"}]}"#;
        assert_eq!(said(document), "MANIFEST_UNKNOWN: manifest unknown; DENIED");
        assert_eq!(
            said(br#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(said(b"plain\x1b[31m words"), "plain [31m words");
        assert_eq!(said(b"<html>"), "");
        assert_eq!(said(b""), "");
    }

    #[test]
    fn addresses_are_resolved() {
        let base: Uri = "https://r.io:5000/v2/a/blobs/uploads/?x=1".parse().unwrap();
        let at =
            |text: &str| resolve(&base, &HeaderValue::from_str(text).unwrap()).map(|uri| uri.to_string());
        assert_eq!(at("/v2/up?state=2").as_deref(), Some("https://r.io:5000/v2/up?state=2"));
        assert_eq!(at("https://cdn.io/x").as_deref(), Some("https://cdn.io/x"));
        assert_eq!(at("//cdn.io/x").as_deref(), Some("https://cdn.io/x"));
        assert_eq!(at("file:///etc/passwd"), None);
        assert_eq!(at("x"), None);
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_tls_unasked() {
        let http = Http::new(Arc::default());
        assert!(
            http.is_plain("localhost:5000") && http.is_plain("127.0.0.1:5000") && http.is_plain("[::1]:5000")
        );
        assert!(!http.is_plain("registry.lab:5000") && !http.is_plain("localhost.evil.io"));
    }
}
