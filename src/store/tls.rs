//! TLS of both ports, from etcd's certificate flags.
//!
//! Promises that peers are always asked for a certificate of the trusted authority; that clients are asked for
//! one when an authority is named, and refused without one when `--client-cert-auth` says so.
//!
//! The files are looked at again and again: what replaces them holds for new connections, within [`LOOK_PERIOD`],
//! if all of it fits together; until then the old ones hold.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use raft_store::PeerTls;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::settings::TlsFiles;

/// Whether callers must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callers {
    /// It is verified if it is shown.
    May,
    /// Nobody gets in without.
    Must,
}

/// Between two looks at the files.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// Settings of a listening port, as the files had them when they last fitted together.
#[derive(Clone)]
pub(crate) struct ServerTls(watch::Receiver<Arc<ServerConfig>>);

impl ServerTls {
    /// For a connection that is made now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.borrow()))
    }
}

/// Reads the files of a listening port, and follows their changes until `stop`.
pub(crate) fn serving(
    files: &TlsFiles,
    callers: Callers,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<ServerTls> {
    let watched = Watched::now(files);
    let (tx, rx) = watch::channel(server(files, callers)?);
    watched.follow(tasks, stop, move |files| {
        tx.send_replace(server(files, callers)?);
        Ok(())
    });
    Ok(ServerTls(rx))
}

/// Files whose changes are followed.
pub(crate) struct Watched {
    files: TlsFiles,
    /// What was in them; nothing where one cannot be read, which is a change like any other.
    seen: [Option<Vec<u8>>; 3],
}

impl Watched {
    /// Changes from now on: to be called before the files are first used.
    pub(crate) fn now(files: &TlsFiles) -> Self {
        Self { files: files.clone(), seen: contents(files) }
    }

    /// Calls `use_them` after each change, until `stop`.
    pub(crate) fn follow(
        mut self,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        use_them: impl Fn(&TlsFiles) -> anyhow::Result<()> + Send + 'static,
    ) {
        let stop = stop.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK_PERIOD) => {}
                }
                let now = contents(&self.files);
                if now == self.seen {
                    continue;
                }
                self.seen = now;
                let certificate = self.files.certificate.display();
                match use_them(&self.files) {
                    Ok(()) => tracing::info!(%certificate, "new connections use the new certificates"),
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::error!(%certificate, error, "the new certificates are of no use; the old ones stay");
                    }
                }
            }
        });
    }
}

fn contents(files: &TlsFiles) -> [Option<Vec<u8>>; 3] {
    let paths = [Some(&files.certificate), Some(&files.key), files.trusted_ca.as_ref()];
    paths.map(|path| path.and_then(|path| std::fs::read(path).ok()))
}

/// Settings of a listening port.
fn server(files: &TlsFiles, callers: Callers) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&files.certificate)?;
    let key_pem = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .with_context(|| format!("{} holds no private key in PEM", files.key.display()))?;
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &files.trusted_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match callers {
                Callers::Must => verifier,
                Callers::May => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).with_context(|| {
        format!("{} and {} do not belong together", files.certificate.display(), files.key.display())
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How this member calls the others: it verifies the host in their peer URL. Files that do not fit together are
/// refused.
pub(crate) fn peer(files: &TlsFiles) -> anyhow::Result<PeerTls> {
    let ca = files.trusted_ca.as_ref().context("--peer-trusted-ca-file is required")?;
    server(files, Callers::Must)?;
    Ok(PeerTls {
        ca_pem: read(ca)?,
        certificate_pem: read(&files.certificate)?,
        private_key_pem: read(&files.key)?,
        server_name: None,
    })
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = read(path)?;
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.with_context(|| format!("{} is not PEM", path.display()))?;
    anyhow::ensure!(!chain.is_empty(), "{} holds no certificate in PEM", path.display());
    Ok(chain)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
