//! The container runtime interface (CRI), served: the node's runtime, image store and network behind the gRPC
//! services that a kubelet or crictl speaks, on a unix socket.
//!
//! ```text
//! kubelet, crictl ── unix socket ──► service ──► core ──► runtime, image store, network
//!                 ── loopback HTTP ─► streams ─► shims
//! ```
//! Owns its socket and everything below its data and run directories, which it shares with no agent. Promises:
//! containers go on when the server stops, and are found again; calls may be repeated after any failure; what
//! cannot be had is refused. Does not: restart containers, remove unused images or rotate logs; that is the
//! client's business.

mod config;
mod containers;
mod images;
mod records;
mod sandboxes;
mod service;
mod state;
mod stats;
mod streams;
mod translate;
mod views;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use proto::cri::image_service_server::ImageServiceServer;
use proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

pub use config::CriConfig;

use self::state::Core;
use crate::{Error, images as store};

/// Longest request taken; kubelets' are of a few KiB.
const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Only the server's user may ask.
const SOCKET_MODE: u32 = 0o600;

/// Serves the container runtime interface until `shutdown` is cancelled. Containers go on when it returns.
pub async fn run(config: CriConfig, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate()?;
    fs::create_dir_all(&config.data_dir).map_err(Error::io("create", &config.data_dir))?;
    let path = config.data_dir.join("lock");
    let file = fs::File::create(&path).map_err(Error::io("create", &path))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| Error::Locked { path, source: errno.into() })?;
    let opened = config.clone();
    let core = tokio::task::spawn_blocking(move || {
        let core = Core::open(opened)?;
        import(&core)?;
        Ok::<_, Error>(core)
    });
    let core = Arc::new(core.await.expect("opening the state does not panic")?);
    for record in core.container_records.all().iter().filter(|r| r.launched && r.ended.is_none()) {
        core.watch(record.id.clone());
    }
    let address = config.streaming_address;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(Error::io("listen on", address.to_string()))?;
    let address = listener.local_addr().map_err(Error::io("listen on", address.to_string()))?;
    let streams = Arc::new(streams::Streams::new(Arc::clone(&core.containers), address));
    tokio::spawn(Arc::clone(&streams).serve(listener, shutdown.clone()));
    let incoming = UnixListenerStream::new(listen(&config.socket)?);
    tracing::info!(socket = %config.socket.display(), streaming = %address, "serving the container runtime interface");
    let service = service::Service { core: Arc::clone(&core), streams };
    let images = images::Images(Arc::clone(&core));
    let served = tonic::transport::Server::builder()
        .add_service(RuntimeServiceServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(ImageServiceServer::new(images).max_decoding_message_size(REQUEST_BYTES_MAX))
        .serve_with_incoming(incoming);
    // Streams of events never end by themselves: calls under way are dropped; each may be repeated.
    tokio::select! {
        served = served => {
            served.map_err(|error| Error::io("serve on", &config.socket)(std::io::Error::other(error)))?;
        }
        () = shutdown.cancelled() => {}
    }
    drop(fs::remove_file(&config.socket));
    core.close().await;
    tracing::info!("the CRI server stopped; containers go on");
    Ok(())
}

/// The socket; one that a server before this one left is replaced.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("replace", path)(error));
        }
        _ => {}
    }
    // Made under another name, so that nobody can connect before the mode is set.
    let hidden = path.with_extension(format!("{}.new", std::process::id()));
    drop(fs::remove_file(&hidden));
    let listener = UnixListener::bind(&hidden).map_err(Error::io("listen on", &hidden))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(Error::io("protect", &hidden))?;
    fs::rename(&hidden, path).map_err(Error::io("listen on", path))?;
    Ok(listener)
}

fn import(core: &Core) -> Result<(), Error> {
    let config = &core.config;
    if config.builtin_image {
        let binary = config.builtin_binary.as_deref().unwrap_or(Path::new("/proc/self/exe"));
        store::import_builtin(&core.images, binary, store::BUILTIN_IMAGE)?;
    }
    for archive in &config.image_archives {
        let imported = store::import(&core.images, archive, None)?;
        tracing::info!(archive = %archive.display(), images = imported.len(), "imported");
    }
    Ok(())
}
