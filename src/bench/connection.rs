//! One HTTP/2 connection to a member, as cheap as it can be: no reconnecting, no buffer task, no balancing.
//!
//! A broken connection fails its calls; that is an error to count, not one to hide.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;

/// Flow-control windows: large enough that a range of thousands of keys never waits for them.
pub(crate) const WINDOW_BYTES: u32 = 8 << 20;

/// A connection that generated clients can be put on.
#[derive(Clone)]
pub(crate) struct Connection {
    send: SendRequest<Body>,
}

impl Connection {
    /// Connects to `host:port`. The connection is driven by the runtime that this is called in.
    pub(crate) async fn open(endpoint: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(endpoint).await.with_context(|| format!("cannot connect to {endpoint}"))?;
        stream.set_nodelay(true)?;
        let (send, driver) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("{endpoint} does not speak HTTP/2"))?;
        tokio::spawn(driver);
        Ok(Self { send })
    }
}

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.send.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.send.send_request(request))
    }
}

/// The origin that requests on a connection name.
pub(crate) fn origin(endpoint: &str) -> anyhow::Result<http::Uri> {
    format!("http://{endpoint}").parse().with_context(|| format!("{endpoint} is not host:port"))
}
