//! Carries each client's connection to one master.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{Backends, Health};

/// Connections carried at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Buffer per direction of a connection.
const COPY_BUFFER_BYTES: usize = 8 * 1024;
/// How long a new connection waits for a ready master (an election may be going on) before it takes any.
const READY_WAIT: Duration = Duration::from_secs(2);
/// Connecting to one master.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `shutdown`.
pub(super) async fn accept(
    listener: TcpListener,
    backends: Backends,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &permits) => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((client, permit)) => {
                let backends = backends.clone();
                let shutdown = shutdown.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = carry(client, &backends) => {}
                        () = shutdown.cancelled() => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    Ok((listener.accept().await?.0, permit))
}

/// Carries one connection until either side ends it or the master's connections are cut.
async fn carry(mut client: TcpStream, backends: &Backends) {
    if !backends.any_ready() {
        let _ready_or_late = timeout(READY_WAIT, backends.until_ready()).await;
    }
    for backend in backends.by_preference() {
        let mut cuts = backend.cuts();
        let mut master = match timeout(CONNECT_TIMEOUT, TcpStream::connect(backend.address)).await {
            Ok(Ok(stream)) => stream,
            failed => {
                tracing::debug!(master = %backend.address, ?failed, "cannot connect");
                backend.set_health(Health::Unreachable);
                continue;
            }
        };
        // Latency only; the connection works without.
        let _no_delay = (client.set_nodelay(true), master.set_nodelay(true));
        let copy =
            copy_bidirectional_with_sizes(&mut client, &mut master, COPY_BUFFER_BYTES, COPY_BUFFER_BYTES);
        tokio::select! {
            ended = copy => tracing::trace!(master = %backend.address, ?ended, "connection ended"),
            _ = cuts.changed() => tracing::debug!(master = %backend.address, "connection cut"),
        }
        return;
    }
    tracing::warn!("no master can be reached; closing a connection");
}
