//! TLS settings from certificates.
//!
//! Promises that only the ring provider is used, named here and never taken from a process-wide default;
//! that servers ask for a client certificate without insisting on one (the caller is then anonymous), and
//! verify it against the cluster's authority when it is given; that clients trust that authority only.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::authority::Credentials;
use super::token::unix_seconds;
use super::{Authority, Error};

/// ALPN name of HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN name of HTTP/1.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Settings of a master's one port: HTTP/2 and HTTP/1.1, client certificate optional but verified.
///
/// The chain that is sent ends with the authority's certificate, so that a joining node, which knows its
/// hash only, can find it there.
pub fn server_config(credentials: &Credentials, authority: &Authority) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = client_verifier(authority.certificate(), &provider)?;
    let mut chain = certificates(&credentials.certificate_pem)?;
    chain.push(authority.certificate().clone());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private_key(&credentials.key_pem)?)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(config)
}

/// Settings for calling masters: trusts `ca_pem` only; presents `credentials` when given; offers `alpn`.
pub fn client_config(
    ca_pem: &str,
    credentials: Option<&Credentials>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match credentials {
        Some(own) => {
            builder.with_client_auth_cert(certificates(&own.certificate_pem)?, private_key(&own.key_pem)?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Whether `certificate` is a client certificate of the authority `ca` and valid at `now`.
pub(super) fn verify_client(
    ca: &CertificateDer<'static>,
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<(), Error> {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(unix_seconds(now)?));
    client_verifier(ca, &provider())?.verify_client_cert(certificate, &[], now)?;
    Ok(())
}

/// Certificate and key as rustls holds them; fails when they do not belong together.
pub(super) fn certified_key(credentials: &Credentials) -> Result<CertifiedKey, Error> {
    let chain = certificates(&credentials.certificate_pem)?;
    Ok(CertifiedKey::from_der(chain, private_key(&credentials.key_pem)?, &provider())?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_verifier(
    ca: &CertificateDer<'static>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()?)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = |reason: String| Error::Unreadable { what: "a certificate", reason };
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(error.to_string()))?;
    if chain.is_empty() { Err(unreadable("it holds no PEM certificate".to_owned())) } else { Ok(chain) }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Error::Unreadable { what: "a private key", reason: error.to_string() })
}
