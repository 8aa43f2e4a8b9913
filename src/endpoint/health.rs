//! Asks each master whether it is ready, over one kept connection, so that a check costs one round trip and
//! the death of the process is seen when its connection closes, not at the next check.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::backend::{Backend, Backends, Health};
use crate::client;

/// Time between an answer and the next question, and between attempts to connect.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// A question not answered for this long counts as missed.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Connecting and the TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// After this many missed answers in a row the master is unreachable.
const MISSES_MAX: u32 = 3;
/// After this many answers "not ready" in a row, while another master is ready, connections are cut.
const UNREADY_ANSWERS_MAX: u32 = 5;

/// Keeps `backend`'s health up to date until `shutdown`.
pub(super) async fn watch(
    backend: Backend,
    backends: Backends,
    tls: Arc<ClientConfig>,
    shutdown: CancellationToken,
) {
    let checks = async {
        loop {
            let error = session(&backend, &backends, Arc::clone(&tls)).await;
            tracing::debug!(master = %backend.address, %error, "health check");
            backend.set_health(Health::Unreachable);
            sleep(CHECK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = checks => {}
        () = shutdown.cancelled() => {}
    }
}

/// Connects and asks until something fails; says what.
async fn session(backend: &Backend, backends: &Backends, tls: Arc<ClientConfig>) -> anyhow::Error {
    let connecting = timeout(CONNECT_TIMEOUT, client::connect(backend.address, tls));
    let stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return error,
        Err(_) => return anyhow::anyhow!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
    };
    let (sender, connection) = match handshake(TokioIo::new(stream)).await {
        Ok(parts) => parts,
        Err(error) => return error.into(),
    };
    tokio::select! {
        closed = connection => match closed {
            Ok(()) => anyhow::anyhow!("the master closed the connection"),
            Err(error) => error.into(),
        },
        error = ask_forever(sender, backend, backends) => error,
    }
}

async fn ask_forever(
    mut sender: SendRequest<Empty<Bytes>>,
    backend: &Backend,
    backends: &Backends,
) -> anyhow::Error {
    let mut misses = 0;
    let mut unready = 0;
    loop {
        match timeout(ANSWER_TIMEOUT, ask(&mut sender, backend.address)).await {
            Ok(Ok(true)) => {
                (misses, unready) = (0, 0);
                backend.set_health(Health::Ready);
            }
            Ok(Ok(false)) => {
                misses = 0;
                unready += 1;
                backend.set_health(Health::Unready);
                if unready == UNREADY_ANSWERS_MAX && backends.any_ready() {
                    tracing::info!(master = %backend.address, "cutting connections: not ready, while another is");
                    backend.cut();
                }
            }
            Ok(Err(error)) => return error,
            // The connection is in the middle of an exchange: a new one must be made to ask again.
            Err(_) if misses + 1 >= MISSES_MAX => return anyhow::anyhow!("no answer {MISSES_MAX} times"),
            Err(_) => {
                misses += 1;
                backend.set_health(Health::Suspect);
                if let Err(error) = sender.ready().await {
                    return error.into();
                }
            }
        }
        sleep(CHECK_INTERVAL).await;
    }
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>, address: SocketAddr) -> anyhow::Result<bool> {
    sender.ready().await?;
    let request = http::Request::get("/readyz")
        .header(http::header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let ready = response.status().is_success();
    // Read to its end, so that the connection can carry the next question.
    response.into_body().collect().await?;
    Ok(ready)
}
