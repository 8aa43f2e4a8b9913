//! A client of the Kubernetes API that says exactly what happened.
//!
//! One connection, opened on first use and again after a failure. It never sends a request twice: whether a
//! request that failed took effect is for the workload to think about.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// No request may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: ClusterEntry,
}

#[derive(Deserialize)]
struct ClusterEntry {
    server: String,
    #[serde(rename = "certificate-authority-data")]
    ca: String,
}

#[derive(Deserialize)]
struct NamedUser {
    user: UserEntry,
}

#[derive(Deserialize)]
struct UserEntry {
    #[serde(rename = "client-certificate-data")]
    certificate: String,
    #[serde(rename = "client-key-data")]
    key: String,
}

/// A connection to that address, of whatever kind.
pub type Dial = fn(SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

/// What a connection does.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How a server is reached.
#[derive(Clone)]
enum Way {
    Tls(Arc<ClientConfig>),
    Other(Dial),
}

/// See the module.
pub struct Client {
    server: SocketAddr,
    way: Way,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client for the cluster of a kubeconfig with embedded certificates.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub fn from_kubeconfig(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: Kubeconfig = serde_saphyr::from_str(&text)?;
        let cluster = &file.clusters.first().context("the kubeconfig names no cluster")?.cluster;
        let user = &file.users.first().context("the kubeconfig names no user")?.user;
        let server = cluster.server.strip_prefix("https://").context("the server is not https")?.parse()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&STANDARD.decode(&cluster.ca)?)?)?;
        let certificate = CertificateDer::from_pem_slice(&STANDARD.decode(&user.certificate)?)?;
        let key = PrivateKeyDer::from_pem_slice(&STANDARD.decode(&user.key)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { server, way: Way::Tls(Arc::new(tls)), connection: None })
    }

    /// A client that is known by where it calls from: a simulation's.
    pub fn without_credentials(server: SocketAddr, dial: Dial) -> Self {
        Self { server, way: Way::Other(dial), connection: None }
    }

    /// Another client with the same credentials.
    pub fn another(&self) -> Self {
        self.at(self.server)
    }

    /// The same client for another server of the cluster.
    pub fn at(&self, server: SocketAddr) -> Self {
        Self { server, way: self.way.clone(), connection: None }
    }

    /// A connection on which nothing has been said yet.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn dial(&self) -> anyhow::Result<Box<dyn Stream>> {
        let tls = match &self.way {
            Way::Tls(tls) => Arc::clone(tls),
            Way::Other(dial) => return Ok(dial(self.server).await?),
        };
        let stream = TcpStream::connect(self.server).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.server.ip());
        Ok(Box::new(TlsConnector::from(tls).connect(name, stream).await?))
    }

    /// Sends one request and returns the answer, whatever its status; one that is not JSON, as a string. The body of a PATCH
    /// is a merge patch.
    ///
    /// # Errors
    /// When there was no answer: the request may or may not have been carried out.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(method, path, body)).await;
        let answer = answer.map_err(anyhow::Error::from).and_then(|answer| answer);
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    /// GET, expecting success.
    ///
    /// # Errors
    /// When there is no answer, or it is not a success.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let (status, value) = self.request(Method::GET, path, None).await?;
        if !status.is_success() {
            bail!("GET {path}: {status}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value)
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        if self.connection.as_ref().is_none_or(SendRequest::is_closed) {
            self.connection = Some(self.connect().await?);
        }
        let connection = self.connection.as_mut().context("just connected")?;
        connection.ready().await?;
        let content_type = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "barque")
            .header(http::header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let response = connection.send_request(request.body(Full::new(Bytes::from(bytes)))?).await?;
        let status = response.status();
        let content = response.into_body().collect().await?.to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&content).into_owned());
        Ok((status, serde_json::from_slice(&content).unwrap_or_else(|_| text())))
    }

    /// Opens a connection of its own for an answer that goes on, line by line.
    ///
    /// # Errors
    /// When it does not begin with success.
    pub async fn lines(&self, path: &str) -> anyhow::Result<Lines> {
        let mut connection = self.connect().await?;
        let request = Request::builder()
            .uri(path)
            .header(http::header::HOST, "barque")
            .header(http::header::ACCEPT, "application/json")
            .body(Full::new(Bytes::new()))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        if !status.is_success() {
            let content = response.into_body().collect().await?.to_bytes();
            bail!("GET {path}: {status}: {}", String::from_utf8_lossy(&content));
        }
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), _connection: connection })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let (sender, connection) = handshake(TokioIo::new(self.dial().await?)).await?;
        tokio::spawn(async move {
            // Its end shows in the sender.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// The lines of an answer, as they come.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// The connection lives as long as this.
    _connection: SendRequest<Full<Bytes>>,
}

impl Lines {
    /// The next line; none at the end of the answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}
