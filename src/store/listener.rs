//! The ports of `barque store`: gRPC and plain HTTP on the same one, behind TLS or not, as etcd has them.
//!
//! Owns the sockets. Promises that connections are bounded in number, that a caller which does not finish its
//! handshake or its headers in time is cut off, and that a verified client certificate's common name stands in
//! the extensions of each request. What a request means is the business of the services behind.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use raft_store::etcd::{Method, Unary};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::bare_authority::BareAuthority;
use super::body::Body;
use super::metrics::GrpcMetrics;
use super::plain::Plain;
use super::tls::ServerTls;
use super::unary;
use super::url::Url;
use crate::gathered::Gathered;

/// Connections on one port.
const CONNECTIONS_MAX: usize = 50_000;
/// How long a caller may take to finish its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 caller may take to send its headers, or stay idle between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP/2 connections are probed this often…
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// …and closed when the answer takes longer than this.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests and watch streams at once on one connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 100_000;
const HEADER_BYTES_MAX: u32 = 64 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long open calls may go on when the port stops; watches never end by themselves.
const DRAIN: Duration = Duration::from_millis(500);
/// Pause after a failed accept, for example when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is served behind a port.
#[derive(Clone)]
pub(crate) struct Services {
    /// gRPC services; without them gRPC calls are answered as unimplemented.
    pub(crate) grpc: Option<Routes>,
    /// What of gRPC is answered on a shorter way.
    pub(crate) unary: Option<Arc<Unary>>,
    /// Everything else.
    pub(crate) plain: Option<Arc<Plain>>,
    /// Where gRPC calls are counted.
    pub(crate) metrics: Option<Arc<GrpcMetrics>>,
    /// The common name that a caller's certificate must carry.
    pub(crate) allowed_cn: Option<Arc<str>>,
}

/// A bound port.
pub(crate) struct Port {
    listener: TcpListener,
    tls: Option<ServerTls>,
}

impl Port {
    pub(crate) async fn bind(url: &Url, tls: Option<&ServerTls>) -> anyhow::Result<Self> {
        let tls = match (url.https, tls) {
            (true, Some(tls)) => Some(tls.clone()),
            (true, None) => anyhow::bail!("{url} needs a certificate and a key"),
            (false, _) => None,
        };
        let address = url.listen_address()?;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {url}; if another process uses the port, choose another")
        })?;
        Ok(Self { listener, tls })
    }

    /// Serves until `stop`, then lets open calls finish for a moment.
    pub(crate) async fn serve(self, services: Services, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accept = async {
                let permit = Arc::clone(&connections).acquire_owned().await.map_err(std::io::Error::other)?;
                let (stream, _) = self.listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>((stream, permit))
            };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = accept => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    // As its files are by now.
                    let tls = self.tls.as_ref().map(ServerTls::acceptor);
                    let (services, stop) = (services.clone(), stop.clone());
                    tasks.spawn(async move {
                        connection(stream, tls, services, stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    services: Services,
    stop: CancellationToken,
) {
    let Some(tls) = tls else { return serve_http(stream, None, services, stop).await };
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let common_name = certificate.and_then(|certificate| {
        control::pki::Identity::from_verified(certificate).ok().map(|identity| Arc::from(identity.user))
    });
    if let Some(allowed) = &services.allowed_cn
        && common_name.as_ref() != Some(allowed)
    {
        return tracing::warn!(?common_name, "refused a caller whose certificate carries another name");
    }
    serve_http(stream, common_name, services, stop).await;
}

async fn serve_http<S>(stream: S, common_name: Option<Arc<str>>, services: Services, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let services = Arc::new(services);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(common_name) = &common_name {
            identify(&mut request, common_name);
        }
        let services = Arc::clone(&services);
        // In a box, because the server moves it several times before it runs.
        Box::pin(async move { Ok::<_, Infallible>(services.call(request).await) })
    });
    let builder = builder();
    let stream = Gathered(BareAuthority::new(stream));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Says who sent a request.
fn identify(request: &mut Request<Incoming>, common_name: &Arc<str>) {
    let common_name = Some(common_name.to_string());
    request.extensions_mut().insert(raft_store::etcd::ClientIdentity { common_name });
}

impl Services {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let grpc = is_grpc(&request);
        match (&self.grpc, &self.plain) {
            (Some(routes), _) if grpc => {
                let Some(metrics) = &self.metrics else {
                    let Ok(response) = routes.clone().oneshot(request).await;
                    return response.map(Body::boxed);
                };
                let path = request.uri().path();
                let (call, method) = (metrics.begin(path), Method::of(path));
                let request = request.map(|body| call.count_request(body));
                if let (Some(unary), Some(method)) = (&self.unary, method) {
                    let answer = unary::answer(unary, method, request).await;
                    call.answered(&answer);
                    return unary::respond(answer);
                }
                let Ok(response) = routes.clone().oneshot(request).await;
                call.count_response(response)
            }
            (_, Some(plain)) if !grpc => plain.answer(&request).await,
            _ => {
                let response = tonic::Status::unimplemented("not served here").into_http();
                response.map(Body::boxed::<tonic::body::Body>)
            }
        }
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    content_type.is_some_and(|content_type| content_type.as_bytes().starts_with(b"application/grpc"))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
