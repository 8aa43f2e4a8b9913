//! Requests from outside for Ingresses, on a node that an administrator has chosen for that.
//!
//! ```text
//! Ingresses, Services, endpoints ─► table (pure) ◄─ certificates of Secrets
//!                                     │ newest
//! caller ─► port 80 or 443 ─► proxy ──┴─► an endpoint, wherever it runs
//! ```
//! Owns the two ports, for as long as the leader says that this node takes requests. A change replaces the table and
//! nothing else: connections stay, requests under way end with the table that they began with. Connections at once are
//! bounded; more wait. When the agent ends, requests under way have [`DRAIN_MAX`].

mod certificates;
mod http2;
mod proxy;
mod table;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use k8s_openapi::api::networking::v1::Ingress;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::certificates::{Certificates, Chooser};
use self::proxy::{Caller, Proxy};
use self::table::Table;
use crate::network::cluster::{ClusterNetwork, Ingresses};
use crate::objects::Objects;

/// Connections of callers at once.
const CONNECTIONS_MAX: usize = 4096;
/// How long a caller may take with the head of a request, and with the beginning of TLS.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way have when the ports are given up.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long changes are gathered before they count.
const GATHER: Duration = Duration::from_millis(10);
/// How often a port that was taken is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The ports at which a node takes requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) https: u16,
}

/// See the module.
pub(crate) struct Entrance {
    ports: Ports,
    cluster: Arc<ClusterNetwork>,
    objects: Arc<Objects>,
    wanted: watch::Sender<bool>,
}

impl Entrance {
    pub(crate) fn new(ports: Ports, cluster: Arc<ClusterNetwork>, objects: Arc<Objects>) -> Self {
        Self { ports, cluster, objects, wanted: watch::Sender::new(false) }
    }

    /// The leader says whether this node takes requests.
    pub(crate) fn want(&self, takes: bool) {
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, takes) != takes);
    }

    /// Takes requests whenever it is to, until cancelled.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut wanted = self.wanted.subscribe();
        loop {
            if *wanted.borrow_and_update() {
                let stop = shutdown.child_token();
                tokio::select! {
                    () = self.take(&stop) => return,
                    () = until_unwanted(&mut wanted) => stop.cancel(),
                }
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes requests until stopped.
    async fn take(&self, stop: &CancellationToken) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (table, newest) = watch::channel(Arc::<Table>::default());
        let tls = match tls(&provider, newest.clone()) {
            Ok(tls) => tls,
            Err(error) => {
                tracing::error!(%error, "requests for Ingresses are not taken on this node");
                return stop.cancelled().await;
            }
        };
        let doors = Arc::new(Doors::new(newest, tls, stop.clone()));
        tokio::join!(
            self.follow(&table, &provider, stop),
            doors.keep_open(self.ports.http, false),
            doors.keep_open(self.ports.https, true),
        );
        doors.tracker.close();
        if tokio::time::timeout(DRAIN_MAX, doors.tracker.wait()).await.is_err() {
            tracing::info!("requests that took long were broken off");
        }
    }

    /// Keeps the table as the cluster wants it.
    async fn follow(
        &self,
        table: &watch::Sender<Arc<Table>>,
        provider: &CryptoProvider,
        stop: &CancellationToken,
    ) {
        let (mut network, mut objects) = (self.cluster.subscribe(), self.objects.subscribe());
        let mut told = Vec::new();
        // Most changes are of endpoints: what hangs on Ingresses and Secrets alone is read when those change.
        let mut rules: Option<Rules> = None;
        loop {
            network.mark_unchanged();
            // Half of what there is would send callers to the wrong place.
            if self.cluster.is_complete() {
                let all = self.cluster.ingresses();
                rules.take_if(|known| !Arc::ptr_eq(&known.of, &all));
                let rules = rules.get_or_insert_with(|| {
                    let served = all.served();
                    let (certificates, problems) = Certificates::read(&served, &self.objects, provider);
                    if problems != told {
                        for problem in &problems {
                            tracing::warn!(problem, "a certificate of an Ingress cannot be used");
                        }
                        told = problems;
                    }
                    Rules { of: all, served, certificates: Arc::new(certificates) }
                });
                let lookup = |namespace: &str, name: &str| self.cluster.get(namespace, name);
                let certificates = Arc::clone(&rules.certificates);
                table.send_replace(Arc::new(Table::compile(&rules.served, &lookup, certificates)));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = network.changed() => {}
                _ = objects.changed() => rules = None,
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// What hangs on Ingresses and Secrets alone.
struct Rules {
    of: Arc<Ingresses>,
    served: Vec<Arc<Ingress>>,
    certificates: Arc<Certificates>,
}

async fn until_unwanted(wanted: &mut watch::Receiver<bool>) {
    if wanted.wait_for(|wanted| !wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn tls(
    provider: &Arc<CryptoProvider>,
    table: watch::Receiver<Arc<Table>>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Chooser(table)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The open ports, and who came through them.
struct Doors {
    proxy: Proxy,
    tls: TlsAcceptor,
    places: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Doors {
    fn new(table: watch::Receiver<Arc<Table>>, tls: ServerConfig, stop: CancellationToken) -> Self {
        Self {
            proxy: Proxy::new(table),
            tls: TlsAcceptor::from(Arc::new(tls)),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tracker: TaskTracker::new(),
            stop,
        }
    }

    /// Accepts callers at a port until stopped; tries on while somebody else has it.
    async fn keep_open(self: &Arc<Self>, port: u16, is_secure: bool) {
        let mut told = String::new();
        loop {
            let Err(error) = tokio::select! {
                () = self.stop.cancelled() => return,
                end = self.listen(port, is_secure) => end,
            };
            let words = error.to_string();
            if words != told {
                tracing::error!(
                    port,
                    error = words,
                    "requests for Ingresses are not taken at this port; trying on"
                );
                told = words;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    async fn listen(self: &Arc<Self>, port: u16, is_secure: bool) -> io::Result<Infallible> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
        tracing::info!(port, "taking requests for Ingresses");
        self.accept(listener, is_secure).await
    }

    async fn accept(self: &Arc<Self>, listener: TcpListener, is_secure: bool) -> io::Result<Infallible> {
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                // That connection is gone, or there are no files left for now.
                Err(error) => {
                    tracing::debug!(%error, "a caller was not let in");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let doors = Arc::clone(self);
            self.tracker.spawn(async move {
                let _place = place;
                doors.welcome(stream, Caller { address, is_secure }).await;
            });
        }
    }

    async fn welcome(self: Arc<Self>, stream: TcpStream, caller: Caller) {
        let _slower = stream.set_nodelay(true);
        if !caller.is_secure {
            return self.serve(stream, caller).await;
        }
        match tokio::time::timeout(HEAD_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream, caller).await,
            Ok(Err(error)) => tracing::debug!(caller = %caller.address, %error, "no TLS with a caller"),
            Err(_) => {}
        }
    }

    async fn serve(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        caller: Caller,
    ) {
        let stop = self.stop.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let doors = Arc::clone(&self);
            async move { Ok::<_, Infallible>(doors.proxy.answer(request, caller).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(128);
        let mut connection =
            std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), answer));
        // Callers may hang up as they like.
        tokio::select! {
            _ended = connection.as_mut() => return,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ended = connection.await;
    }
}

#[cfg(test)]
mod tests;
