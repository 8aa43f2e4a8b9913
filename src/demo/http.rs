//! What the demo workloads share of HTTP: a listener for both families, and one connection served to its end.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a program answers.
pub(super) type Answer = Response<Full<Bytes>>;

/// One address, or all.
pub(super) async fn listen_at(address: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let Some(address) = address else { return listen(port).await };
    let listener = TcpListener::bind((address, port)).await;
    listener.with_context(|| {
        format!("cannot listen on port {port} of {address}; choose others with --port and --address")
    })
}

/// Both families where the kernel has IPv6 (callers over IPv4 then appear as `::ffff:a.b.c.d`), else IPv4.
pub(super) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let both = SocketAddr::from((IpAddr::from(Ipv6Addr::UNSPECIFIED), port));
    match TcpListener::bind(both).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind(SocketAddr::from((IpAddr::from(Ipv4Addr::UNSPECIFIED), port))).await,
    }
    .with_context(|| format!("cannot listen on port {port}; choose another with --port"))
}

/// The next caller; what fails on the way is tried again.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer.ip()),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves a connection until it ends; once `stop` is cancelled, until the answer under way is sent.
pub(super) async fn serve(
    stream: TcpStream,
    stop: CancellationToken,
    answer: impl Fn(http::Request<Incoming>) -> Answer,
) {
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // A caller that breaks off is no event here.
    tokio::select! {
        _outcome = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _outcome = connection.await;
}

/// The same for one request, after which the connection ends.
pub(super) async fn serve_once(stream: TcpStream, answer: impl Fn(http::Request<Incoming>) -> Answer) {
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let connection = server.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // A caller that breaks off is no event here.
    let _outcome = connection.await;
}

/// An answer of text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}
