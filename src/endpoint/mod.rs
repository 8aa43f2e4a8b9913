//! One local TCP address for all masters.
//!
//! Owns the listening socket that a kubeconfig names, so that one server address survives the death of any
//! master. Each connection goes, whole and still encrypted, to one master that is ready when the connection
//! begins; when that master dies, is cut off, or stays unready while another is ready, its connections are
//! cut, so that clients come back at once and reach another. It holds no key and reads no byte of what
//! passes through.
//!
//! ```text
//! client ──► 127.0.0.1:6443 ──► choose ──► master-1   ◄── GET /readyz every 200 ms, one connection kept
//!                                     └──► master-2   ◄── …
//! ```

mod backend;
mod health;
mod proxy;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use control::pki;
use rustls::ClientConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use backend::Backends;

/// Serves until `shutdown`, on `listen`, in front of `masters`, which `ca_file` vouches for.
pub(crate) async fn serve(
    listen: SocketAddr,
    ca_file: &Path,
    masters: &[SocketAddr],
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let ca_pem =
        std::fs::read_to_string(ca_file).with_context(|| format!("cannot read {}", ca_file.display()))?;
    let tls: Arc<ClientConfig> = Arc::new(pki::client_config(&ca_pem, None, &[pki::ALPN_HTTP1])?);
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; if another process uses the port, choose another with --listen")
    })?;
    let backends = Backends::new(masters);
    let tasks = TaskTracker::new();
    for backend in backends.all() {
        tasks.spawn(health::watch(backend.clone(), backends.clone(), Arc::clone(&tls), shutdown.clone()));
    }
    tracing::info!(%listen, masters = masters.len(), "endpoint serving");
    proxy::accept(listener, backends, &tasks, &shutdown).await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}
