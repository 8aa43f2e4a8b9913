//! Calls to masters: HTTPS for the Kubernetes API, gRPC for the cluster's own questions.
//!
//! Owns one short-lived connection per call. Every call has a deadline, verifies the server by the name
//! `barque-control`, and reaches it by address, so that nothing needs DNS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use control::pki::{self, ALPN_H2, ALPN_HTTP1, Credentials};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use proto::control::cluster_client::ClusterClient;
use proto::control::{ExplainPodRequest, ExplainPodResponse, StatusRequest, StatusResponse};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

/// How long one call may take, from connecting to the last byte.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer read; a list of nodes is far below it.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How to reach masters: whom to trust and who we are.
#[derive(Clone)]
pub(crate) struct Client {
    http: Arc<ClientConfig>,
    grpc: Arc<ClientConfig>,
}

impl Client {
    /// A client that trusts `credentials.ca_pem` and presents the certificate.
    pub(crate) fn new(credentials: &Credentials) -> Result<Self, pki::Error> {
        let config = |alpn| pki::client_config(&credentials.ca_pem, Some(credentials), &[alpn]).map(Arc::new);
        Ok(Self { http: config(ALPN_HTTP1)?, grpc: config(ALPN_H2)? })
    }

    /// `GET path` at the master with that address: the HTTP status and the body.
    pub(crate) async fn get(&self, address: SocketAddr, path: &str) -> anyhow::Result<(u16, Bytes)> {
        self.send(address, http::Request::get(path), Bytes::new()).await
    }

    /// Merges a patch into the object at `path` (RFC 7386).
    pub(crate) async fn patch(
        &self,
        address: SocketAddr,
        path: &str,
        patch: &serde_json::Value,
    ) -> anyhow::Result<(u16, Bytes)> {
        self.send_patch(address, path, "application/merge-patch+json", patch).await
    }

    /// Makes the object at `path`, or changes it, so that it is as it is given here (server-side apply).
    pub(crate) async fn apply(
        &self,
        address: SocketAddr,
        path: &str,
        object: &serde_json::Value,
    ) -> anyhow::Result<(u16, Bytes)> {
        // JSON is YAML.
        self.send_patch(address, path, "application/apply-patch+yaml", object).await
    }

    async fn send_patch(
        &self,
        address: SocketAddr,
        path: &str,
        content_type: &str,
        patch: &serde_json::Value,
    ) -> anyhow::Result<(u16, Bytes)> {
        let request = http::Request::patch(path).header(http::header::CONTENT_TYPE, content_type);
        self.send(address, request, Bytes::from(serde_json::to_vec(patch)?)).await
    }

    async fn send(
        &self,
        address: SocketAddr,
        request: http::request::Builder,
        body: Bytes,
    ) -> anyhow::Result<(u16, Bytes)> {
        tokio::time::timeout(CALL_TIMEOUT, self.send_within_timeout(address, request, body))
            .await
            .map_err(|_| anyhow::anyhow!("{address} did not answer within {} s", CALL_TIMEOUT.as_secs()))?
    }

    async fn send_within_timeout(
        &self,
        address: SocketAddr,
        request: http::request::Builder,
        body: Bytes,
    ) -> anyhow::Result<(u16, Bytes)> {
        let stream = connect(address, Arc::clone(&self.http)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = request
            .header(http::header::HOST, address.to_string())
            .header(http::header::ACCEPT, "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("reading the answer of {address}: {error}"))?;
        driver.abort();
        Ok((status, body.to_bytes()))
    }

    /// The view that the master with that address has of the cluster.
    pub(crate) async fn status(&self, address: SocketAddr) -> anyhow::Result<StatusResponse> {
        tokio::time::timeout(CALL_TIMEOUT, self.status_within_timeout(address))
            .await
            .map_err(|_| anyhow::anyhow!("{address} did not answer within {} s", CALL_TIMEOUT.as_secs()))?
    }

    async fn status_within_timeout(&self, address: SocketAddr) -> anyhow::Result<StatusResponse> {
        Ok(self.cluster(address).await?.status(StatusRequest {}).await?.into_inner())
    }

    /// Why a pod is where it is, if the master with that address knows; else what it said.
    pub(crate) async fn explain_pod(
        &self,
        address: SocketAddr,
        request: ExplainPodRequest,
    ) -> anyhow::Result<Result<ExplainPodResponse, tonic::Status>> {
        let ask = async {
            let answer = self.cluster(address).await?.explain_pod(request).await;
            anyhow::Ok(answer.map(tonic::Response::into_inner))
        };
        tokio::time::timeout(CALL_TIMEOUT, ask)
            .await
            .map_err(|_| anyhow::anyhow!("{address} did not answer within {} s", CALL_TIMEOUT.as_secs()))?
    }

    async fn cluster(&self, address: SocketAddr) -> anyhow::Result<ClusterClient<Channel>> {
        let config = Arc::clone(&self.grpc);
        let connector = tower::service_fn(move |_: http::Uri| {
            let config = Arc::clone(&config);
            async move { connect(address, config).await.map(TokioIo::new).map_err(std::io::Error::other) }
        });
        // TLS is the connector's business; the scheme here only names the authority of requests.
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("cannot reach the master at {address}"))?;
        Ok(ClusterClient::new(channel))
    }
}

/// Opens a TLS connection to a master.
pub(crate) async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(pki::SERVER_NAME).context("the name of masters is a DNS name")?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .with_context(|| format!("cannot set up TLS with {address}"))
}
