//! Requests to endpoints that speak HTTP/2 without TLS from the first byte on (RFC 9113 section 3.3): one connection to
//! each, which all requests share.
//!
//! A Service says so of a port by `appProtocol: kubernetes.io/h2c`. Unlike with HTTP/1.1 the host is part of the target, so that
//! connections are kept by endpoint here and not by what is asked for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::proxy::{CONNECT_TIMEOUT, Lent};

/// What a Service's port says that is spoken to so.
pub(super) const APP_PROTOCOL: &str = "kubernetes.io/h2c";

/// A connection on which nothing happens is asked after so long whether it is alive…
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// …and given up without an answer within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are kept.
const CONNECTIONS_MAX: usize = 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nothing of the request was sent.
    #[error("cannot be connected to")]
    NoConnection,
    #[error("broke off: {0}")]
    BrokeOff(hyper::Error),
}

/// Connections by endpoint.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<HashMap<SocketAddr, SendRequest<Lent>>>);

impl Connections {
    /// Sends a request on the endpoint's connection.
    pub(super) async fn send(
        &self,
        endpoint: SocketAddr,
        request: Request<Lent>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut sender = self.to(endpoint).await?;
        let answered = sender.send_request(request).await;
        answered.map_err(|error| match error.is_canceled() {
            // The connection ended before the request was on it.
            true => Failure::NoConnection,
            false => Failure::BrokeOff(error),
        })
    }

    /// The connection that is there and takes requests, or a new one.
    async fn to(&self, endpoint: SocketAddr) -> Result<SendRequest<Lent>, Failure> {
        let known = self.lock().get(&endpoint).cloned();
        if let Some(mut sender) = known
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint)).await;
        let stream = connecting.ok().and_then(Result::ok).ok_or(Failure::NoConnection)?;
        let _slower = stream.set_nodelay(true);
        let mut builder = Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
        let begun = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = begun.map_err(|_| Failure::NoConnection)?;
        // Its end shows in the sender.
        tokio::spawn(async move { drop(connection.await) });
        let mut all = self.lock();
        all.retain(|_, known| !known.is_closed());
        if all.len() < CONNECTIONS_MAX {
            all.insert(endpoint, sender.clone());
        }
        Ok(sender)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, SendRequest<Lent>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
