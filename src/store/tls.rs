//! TLS of both ports, from etcd's certificate flags.
//!
//! Promises that peers are always asked for a certificate of the trusted authority; that clients are asked for
//! one when an authority is named, and refused without one when `--client-cert-auth` says so.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use raft_store::PeerTls;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::settings::TlsFiles;

/// Whether callers must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callers {
    /// It is verified if it is shown.
    May,
    /// Nobody gets in without.
    Must,
}

/// Settings of a listening port.
pub(crate) fn server(files: &TlsFiles, callers: Callers) -> anyhow::Result<Arc<ServerConfig>> {
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

/// How this member calls the others: it verifies the host in their peer URL.
pub(crate) fn peer(files: &TlsFiles) -> anyhow::Result<PeerTls> {
    let ca = files.trusted_ca.as_ref().context("--peer-trusted-ca-file is required")?;
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
