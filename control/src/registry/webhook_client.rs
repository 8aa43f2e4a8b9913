//! Calls to webhooks, for admission and for conversion: one HTTPS request each, bounded in time and size, trusting
//! the authority that the configuration names and no other. A webhook is named by its address or by the Service
//! it stands behind, whose ready backends are then asked in any order.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use api::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use streams::{PodStreams, StreamFuture, StreamRequest};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::backends::{self, Asked, Connection};
use crate::object_store::{Consistency, SharedStore};
use crate::pki::{ALPN_HTTP1, client_config};

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Where a Service's webhook listens if it does not say.
const HTTPS_PORT: u16 = 443;
/// How long an answer is waited for if the webhook does not say.
const TIMEOUT_DEFAULT_S: u64 = 10;
/// And at most.
const TIMEOUT_MAX_S: u64 = 30;

/// Why a webhook gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The configuration cannot be followed.
    #[error("{0}")]
    Configuration(String),
    /// It could not be reached, or broke off.
    #[error("Post {url:?}: {reason}")]
    Connection {
        /// As configured.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// It did not answer in time.
    #[error("Post {url:?}: context deadline exceeded (no answer within {seconds} s)")]
    Timeout {
        /// As configured.
        url: String,
        /// How long was waited.
        seconds: u64,
    },
    /// It answered with something other than 200.
    #[error("the server answered {code}: {text}")]
    Answer {
        /// The status.
        code: StatusCode,
        /// The beginning of the body.
        text: String,
    },
}

/// Calls webhooks.
#[derive(Clone)]
pub(super) struct WebhookClient {
    store: SharedStore,
    /// Reaches pods; set once what carries streams is there. It uses the registry itself, so it is not kept here: the
    /// two would keep each other, and the store, for ever.
    streams: Arc<OnceLock<Weak<dyn PodStreams>>>,
}

impl std::fmt::Debug for WebhookClient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WebhookClient").finish_non_exhaustive()
    }
}

/// A webhook's address, as its `clientConfig` gives it.
struct Address {
    url: String,
    uri: Uri,
    /// The name that its certificate must carry.
    server_name: String,
    ca_pem: String,
    service: Option<Service>,
}

/// The Service that it stands behind.
struct Service {
    namespace: String,
    name: String,
    port: u16,
}

impl Address {
    fn of(config: &Value) -> Result<Self, Error> {
        let refuse = |why: &str| Error::Configuration(why.to_owned());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let named = &config["service"];
        let service = (!named.is_null()).then(|| Service {
            namespace: text(&named["namespace"]),
            name: text(&named["name"]),
            port: named["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(HTTPS_PORT),
        });
        let url = match &service {
            Some(Service { namespace, name, port }) => {
                let path = named["path"].as_str().unwrap_or_default().trim_start_matches('/');
                format!("https://{name}.{namespace}.svc:{port}/{path}")
            }
            None => text(&config["url"]),
        };
        let uri: Uri = url.parse().map_err(|_| refuse("clientConfig.url is no valid address"))?;
        if uri.scheme_str() != Some("https") {
            return Err(refuse("clientConfig.url must begin with https://"));
        }
        let ca = STANDARD.decode(text(&config["caBundle"])).ok();
        let ca_pem = ca.and_then(|pem| String::from_utf8(pem).ok()).unwrap_or_default();
        if ca_pem.is_empty() {
            return Err(refuse(
                "clientConfig.caBundle must hold the certificate that the webhook is trusted by",
            ));
        }
        let server_name = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Ok(Self { url, uri, server_name, ca_pem, service })
    }
}

impl WebhookClient {
    pub(super) fn new(store: SharedStore) -> Self {
        Self { store, streams: Arc::default() }
    }

    /// From now on, webhooks in pods are reached through these.
    pub(super) fn reach_pods_through(&self, streams: &Arc<dyn PodStreams>) {
        // The first ones stay.
        let _ = self.streams.set(Arc::downgrade(streams));
    }

    /// Sends a review to where a `clientConfig` says, and waits as long for the answer as the webhook says;
    /// gives the answer's body.
    pub(super) async fn call(
        &self,
        config: &Value,
        timeout_s: Option<u64>,
        body: String,
    ) -> Result<Bytes, Error> {
        let address = Address::of(config)?;
        let seconds = timeout_s.unwrap_or(TIMEOUT_DEFAULT_S).clamp(1, TIMEOUT_MAX_S);
        let exchange = async {
            let stream = self.connect(&address).await?;
            exchange(&address, stream, body).await
        };
        match tokio::time::timeout(Duration::from_secs(seconds), exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => Err(Error::Connection { url: address.url, reason }),
            Err(_) => Err(Error::Timeout { url: address.url, seconds }),
        }
    }

    async fn connect(&self, address: &Address) -> Result<Box<dyn Connection>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let Some(Service { namespace, name, port }) = &address.service else {
            let port = address.uri.port_u16().unwrap_or(HTTPS_PORT);
            let stream = TcpStream::connect((address.server_name.as_str(), port)).await;
            return Ok(Box::new(stream.map_err(|error| text(&error))?));
        };
        let asked = Asked { namespace, name, port: &port.to_string(), id: name };
        let backend = backends::of_service(&self.store, asked, Consistency::Serializable).await;
        let backend = backend.map_err(|status| status.message().to_owned())?;
        let streams = self.streams.get().and_then(Weak::upgrade);
        let streams = streams.unwrap_or_else(|| Arc::new(NoStreams));
        let connected = backends::connect(&backend.place, streams.as_ref()).await;
        connected.map_err(|error| format!("no way to {} behind service {name:?}: {error}", backend.host))
    }
}

/// Reaches nothing: what carries streams is not there yet, or not any more.
struct NoStreams;

impl PodStreams for NoStreams {
    fn open(&self, _: StreamRequest) -> StreamFuture<'_> {
        Box::pin(async { Err(Status::service_unavailable("this replica reaches no pods now")) })
    }
}

async fn exchange(
    address: &Address,
    stream: Box<dyn Connection>,
    body: String,
) -> Result<Result<Bytes, Error>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let Address { uri, server_name, ca_pem, .. } = address;
    let config = client_config(ca_pem, None, &[ALPN_HTTP1]).map_err(|error| text(&error))?;
    let name = ServerName::try_from(server_name.clone()).map_err(|error| text(&error))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = TokioIo::new(stream.map_err(|error| text(&error))?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| text(&error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| text(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| text(&error))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        if code == StatusCode::OK {
            return Ok(Ok(body));
        }
        let text = String::from_utf8_lossy(&body[..body.len().min(256)]).into_owned();
        Ok(Err(Error::Answer { code, text }))
    };
    tokio::pin!(answer);
    // The connection does the work; it ends with the answer.
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
