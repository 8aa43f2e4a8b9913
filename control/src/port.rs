//! The one TLS port: REST over HTTP/1.1 and HTTP/2, and gRPC, told apart by content type.
//!
//! Owns the sockets. Promises that connections are bounded in number; that a client which does not finish its
//! handshake or its headers in time is cut off; that every request carries the [`Identity`] of the verified
//! client certificate (or of nobody) in its extensions; and that stopping lets open requests finish within a
//! deadline. What a request means is the business of the services behind it.
//!
//! ```text
//!   accept ─► TLS (ALPN h2, http/1.1) ─► identity ─► application/grpc* ─► gate ─► tonic
//!                                                └─► everything else  ─► REST
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::ServiceExt;

use crate::auth::Identity;
use crate::pki;
use crate::rest::{Body, PeerAddress, Rest};

/// How long an address may be in use when this process starts…
const IN_USE_MAX: Duration = Duration::from_secs(2);
/// …and how often it is tried meanwhile.
const IN_USE_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take to finish its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may go without its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an HTTP/1.1 client may take to send its headers, or stay idle between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP/2 connections are probed this often…
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// …and closed when the answer takes longer than this.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 1000;
/// Headers of one request.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Buffer of one HTTP/1.1 connection; bounds its headers too.
const CONNECTION_BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Flow-control windows of HTTP/2: large enough for log replication at full speed.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long gRPC calls may go on when the port stops. Many never end by themselves (replication, node
/// sessions), and their callers know how to go elsewhere.
const GRPC_DRAIN: Duration = Duration::from_millis(500);
/// Pause after a failed accept, for example when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is served behind the port.
#[derive(Clone)]
pub struct Services {
    /// Everything that is no gRPC.
    pub rest: Arc<Rest>,
    /// gRPC services.
    pub grpc: Routes,
    /// Who may call which gRPC method.
    pub gate: fn(&Identity, &str) -> Result<(), tonic::Status>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Services").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// The port, bound but not serving yet.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    connections: Arc<Semaphore>,
    drain_timeout: Duration,
}

impl Port {
    /// Binds the port. `tls` may change while serving: new connections use the newest settings.
    pub async fn bind(
        address: SocketAddr,
        tls: watch::Receiver<Arc<ServerConfig>>,
        connections_max: usize,
        drain_timeout: Duration,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let listener = loop {
            match TcpListener::bind(address).await {
                // Whoever was killed and started again may find its former life still at its last breath.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < IN_USE_MAX => {
                    tokio::time::sleep(IN_USE_PAUSE).await;
                }
                bound => break bound?,
            }
        };
        Ok(Self { listener, tls, connections: Arc::new(Semaphore::new(connections_max)), drain_timeout })
    }

    /// The address bound.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled, then lets open requests finish, but not longer than the deadline.
    pub async fn serve(self, services: Services, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        // Cancelled when the deadline has passed: what is still open is dropped.
        let abort = CancellationToken::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let connection = Connection {
                        services: services.clone(),
                        stop: stop.clone(),
                        tls: self.tls.borrow().clone(),
                    };
                    let abort = abort.clone();
                    tasks.spawn(async move {
                        let _ = abort.run_until_cancelled(connection.run(stream)).await;
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
        if tokio::time::timeout(self.drain_timeout, tasks.wait()).await.is_err() {
            tracing::info!(open = tasks.len(), "dropping the connections that did not finish in time");
            abort.cancel();
            tasks.wait().await;
        }
    }

    async fn accept(&self) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let permit = self.connections.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, permit))
    }
}

struct Connection {
    services: Services,
    stop: CancellationToken,
    tls: Arc<ServerConfig>,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let peer = stream.peer_addr().ok().map(PeerAddress);
        let handshake = TlsAcceptor::from(self.tls).accept(stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => return tracing::debug!("a TLS handshake took too long"),
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let identity = match certificates.and_then(<[_]>::first).map(pki::Identity::from_verified) {
            None => Identity::anonymous(),
            Some(Ok(certificate)) => Identity::from_certificate(certificate),
            Some(Err(error)) => return tracing::debug!(%error, "a client certificate names nobody"),
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(pki::ALPN_H2);
        converse(stream, Caller { identity, peer, http2 }, self.services, self.stop).await;
    }
}

/// Who is at the other end of a connection, and how they speak.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub identity: Identity,
    /// Where, if that is known.
    pub peer: Option<PeerAddress>,
    /// HTTP/2, else HTTP/1.1.
    pub http2: bool,
}

/// Answers on a connection whose other end is known, until it ends, or `stop` has been cancelled and what was asked is
/// answered.
pub async fn converse<S>(stream: S, caller: Caller, services: Services, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Caller { identity, peer, http2 } = caller;
    let used = Arc::new(AtomicBool::new(false));
    let used_for_grpc = Arc::new(AtomicBool::new(false));
    let (first_use, first_grpc) = (used.clone(), used_for_grpc.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        first_use.store(true, Ordering::Relaxed);
        if is_grpc(&request) {
            first_grpc.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(identity.clone());
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let services = services.clone();
        async move { Ok::<_, Infallible>(services.call(request).await) }
    });
    // The protocol is what ALPN agreed on: guessing it would wait for the first bytes without a bound.
    let builder = if http2 { builder().http2_only() } else { builder().http1_only() };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let unused = async {
        tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        if used.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = unused => return tracing::debug!("a connection was not used"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let limit = async {
                tokio::time::sleep(GRPC_DRAIN).await;
                if !used_for_grpc.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = limit => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

impl Services {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        if !is_grpc(&request) {
            return self.rest.handle(request).await;
        }
        let identity = request.extensions().get().cloned().unwrap_or_else(Identity::anonymous);
        let response = match (self.gate)(&identity, request.uri().path()) {
            Ok(()) => match self.grpc.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(status) => status.into_http(),
        };
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    content_type.is_some_and(|content_type| content_type.as_bytes().starts_with(b"application/grpc"))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(CONNECTION_BUFFER_BYTES_MAX);
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
