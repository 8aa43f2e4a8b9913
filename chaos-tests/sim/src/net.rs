//! gRPC over the simulated network: the transport's own code on turmoil's streams.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use chaos_tests::client;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use turmoil::net::{TcpListener, TcpStream};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);

fn endpoint(address: &str) -> Endpoint {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).expect("members' addresses are hosts and ports");
    endpoint.connect_timeout(CONNECT_TIMEOUT)
}

fn lazily(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await.map(TokioIo::new)
    }))
}

/// From member to member, as `raft-store` connects.
pub(crate) fn peer_channel(address: &str) -> Channel {
    let endpoint = endpoint(address)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    lazily(&endpoint)
}

/// From client to member, as the workloads connect.
pub(crate) fn client_channel(address: SocketAddr) -> Channel {
    lazily(&endpoint(&address.to_string()))
}

/// From client to master, for the Kubernetes API.
pub(crate) fn api_stream(address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn client::Stream>>> {
    async move {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
        let stream: Box<dyn client::Stream> = Box::new(connecting.await??);
        Ok(stream)
    }
    .boxed()
}

/// Whether the host answers that nobody listens there.
pub(crate) fn refuses(address: &str) -> BoxFuture<'static, bool> {
    let address = address.to_owned();
    async move {
        let connected = TcpStream::connect(address).await;
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
    .boxed()
}

/// Connections as they come.
pub(crate) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> {
    stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    })
}

/// A stream that a server can take.
pub(crate) struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
