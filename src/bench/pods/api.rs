//! The Kubernetes API over one connection for requests and one for each watch.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use control::pki::{self, ALPN_HTTP1};
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client;
use crate::kubeconfig::Access;

/// Events that may wait to be looked at.
const EVENTS_MAX: usize = 4096;

/// A client of one server.
pub(crate) struct Api {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What a watch saw, and when.
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// `ADDED`, `MODIFIED`, `DELETED`…
    pub(crate) kind: String,
    pub(crate) object: Value,
}

impl Api {
    pub(crate) fn new(access: &Access) -> anyhow::Result<Self> {
        let credentials = &access.credentials;
        let config = pki::client_config(&credentials.ca_pem, Some(credentials), &[ALPN_HTTP1])?;
        Ok(Self { address: access.server, config: Arc::new(config), connection: None })
    }

    /// Sends a request; anything but success is an error.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(serde_json::to_vec(body)?) };
        let answer = self.exchange(self.request(method, path, body)?).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Merges a patch into an object.
    pub(crate) async fn patch(&mut self, path: &str, patch: &Value) -> anyhow::Result<()> {
        let mut request = self.request(Method::PATCH, path, Bytes::from(serde_json::to_vec(patch)?))?;
        let media_type = HeaderValue::from_static("application/merge-patch+json");
        request.headers_mut().insert(http::header::CONTENT_TYPE, media_type);
        self.exchange(request).await.map(drop)
    }

    /// Reads without looking at what came; gives its size.
    pub(crate) async fn read(&mut self, path: &str) -> anyhow::Result<usize> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        Ok(self.exchange(request).await?.len())
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Bytes> {
        // The server ends connections that nobody uses.
        let mut known = self.connection.take();
        let is_usable = match &mut known {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        let mut connection = match known.filter(|_| is_usable) {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let path = request.uri().path().to_owned();
        let response = connection.send_request(request).await.with_context(|| path.clone())?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        self.connection = Some(connection);
        ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Watches a list from its state of now on. A watch that the server ends, as it does with slow readers, goes on
    /// from where it was; one that cannot says so with a last event of kind `ERROR`.
    pub(crate) async fn watch(&self, path: &str) -> anyhow::Result<mpsc::Receiver<Seen>> {
        let own = Self { address: self.address, config: Arc::clone(&self.config), connection: None };
        let (tx, rx) = mpsc::channel(EVENTS_MAX);
        let mut path = format!("{path}?watch=true");
        // A connection ends with its handle.
        let (mut _connection, mut body) = own.stream(&path).await?;
        tokio::spawn(async move {
            while let Some(version) = read_events(body, &tx).await {
                let base = path.split("&resourceVersion=").next().unwrap_or_default().to_owned();
                path = format!("{base}&resourceVersion={version}");
                (_connection, body) = match own.stream(&path).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        let object = Value::from(format!("{error:#}"));
                        let last = Seen { at: Instant::now(), kind: "ERROR".to_owned(), object };
                        return drop(tx.send(last).await);
                    }
                };
            }
        });
        Ok(rx)
    }

    async fn stream(&self, path: &str) -> anyhow::Result<(SendRequest<Full<Bytes>>, Incoming)> {
        let mut connection = self.connect().await?;
        let response = connection.send_request(self.request(Method::GET, path, Bytes::new())?).await?;
        ensure!(response.status().is_success(), "watching {path}: {}", response.status());
        Ok((connection, response.into_body()))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = client::connect(self.address, Arc::clone(&self.config)).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, self.address.to_string())
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json");
        Ok(request.body(Full::new(body))?)
    }
}

/// One JSON document a line, until there are no more: then the version of the last object. `None` once nobody listens.
async fn read_events(mut body: Incoming, tx: &mpsc::Sender<Seen>) -> Option<String> {
    let mut text = BytesMut::new();
    let mut version = None;
    while let Some(Ok(frame)) = body.frame().await {
        let at = Instant::now();
        let Ok(data) = frame.into_data() else { continue };
        text.extend_from_slice(&data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line = text.split_to(end);
            text.advance(1);
            let Ok(mut event) = serde_json::from_slice::<Value>(&line) else { continue };
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            let object = event["object"].take();
            version = object["metadata"]["resourceVersion"].as_str().map(str::to_owned).or(version);
            tx.send(Seen { at, kind, object }).await.ok()?;
        }
    }
    version
}
