//! Joining: a node token is exchanged for a client certificate, once.
//!
//! The control plane is known before the token is sent: the token carries the SHA-256 digest of the
//! cluster's CA certificate, the server must present that certificate in its chain, and its own certificate
//! must verify against it under the name that all replicas carry. The key never leaves this machine.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use proto::control::JoinNodeRequest;
use proto::control::cluster_client::ClusterClient;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::session::CONTROL_NAME;
use crate::{Config, Error, TlsFiles};

const TOKEN_PREFIX: &str = "barque-node";
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is not one.
    #[error("the join token is not valid: {0}; make a new one with `barque token`")]
    Token(&'static str),
    /// A key or signing request could not be made.
    #[error("cannot make a key for the node: {0}")]
    Key(#[from] rcgen::Error),
    /// The replica refused; trying again does not help.
    #[error("the control plane at {address} refused to let this node join: {message}")]
    Refused {
        /// Which replica.
        address: SocketAddr,
        /// Its words.
        message: String,
    },
    /// The answer is not a certificate of the token's cluster.
    #[error(
        "the control plane at {address} answered with another cluster's CA certificate than the token names"
    )]
    WrongCa {
        /// Which replica.
        address: SocketAddr,
    },
}

/// Joins if the certificate files are not there yet. Tries every replica in turn until one answers.
pub(crate) async fn ensure_identity(config: &Config) -> Result<TlsFiles, Error> {
    let files = config.tls_files();
    let missing = [&files.ca, &files.certificate, &files.key].into_iter().find(|path| !path.exists());
    let Some(missing) = missing else { return Ok(files) };
    let Some(token) = &config.join_token else {
        return Err(Error::io("read", missing)(std::io::ErrorKind::NotFound.into()));
    };
    let ca_digest = ca_digest(token)?;
    let key = KeyPair::generate().map_err(JoinError::Key)?;
    let request = JoinNodeRequest {
        token: token.trim().to_owned(),
        node_name: config.node_name.clone(),
        csr_pem: signing_request(&config.node_name, &key)?,
    };
    for address in config.control_addresses.iter().cycle() {
        match join(*address, ca_digest, request.clone()).await {
            Ok((certificate, ca)) => {
                write_private(&files.key, key.serialize_pem().as_bytes())?;
                write_private(&files.ca, ca.as_bytes())?;
                write_private(&files.certificate, certificate.as_bytes())?;
                tracing::info!(replica = %address, "this node has joined");
                return Ok(files);
            }
            Err(Attempt::Final(error)) => return Err(error.into()),
            Err(Attempt::Again(problem)) => {
                tracing::warn!(replica = %address, %problem, "cannot join yet; trying the next replica");
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }
    Err(crate::ConfigError::Value { key: "controlAddresses", problem: "is empty".into() }.into())
}

enum Attempt {
    Again(String),
    Final(JoinError),
}

fn ca_digest(token: &str) -> Result<[u8; 32], JoinError> {
    let mut parts = token.trim().split('.');
    if parts.next() != Some(TOKEN_PREFIX) {
        return Err(JoinError::Token("it does not begin with barque-node"));
    }
    let digest = parts.next().and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok());
    let digest = digest.and_then(|bytes| bytes.try_into().ok());
    let digest = digest.ok_or(JoinError::Token("its first part is not the digest of a CA certificate"))?;
    if parts.count() != 3 {
        return Err(JoinError::Token("it is not complete"));
    }
    Ok(digest)
}

fn signing_request(node_name: &str, key: &KeyPair) -> Result<String, JoinError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{node_name}"));
    params.distinguished_name = subject;
    Ok(params.serialize_request(key)?.pem()?)
}

async fn join(
    address: SocketAddr,
    ca_digest: [u8; 32],
    request: JoinNodeRequest,
) -> Result<(String, String), Attempt> {
    let again = |problem: String| Attempt::Again(problem);
    let tls = pinned_tls(ca_digest);
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from(CONTROL_NAME).expect("the name is a DNS name");
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| again(e.to_string()))?;
    let endpoint = endpoint.timeout(DIAL_TIMEOUT).connect_timeout(DIAL_TIMEOUT);
    let channel = endpoint.connect_with_connector(connector).await.map_err(|e| again(describe(&e)))?;
    let answer = ClusterClient::new(channel).join_node(request).await.map_err(|status| {
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::InvalidArgument
            | tonic::Code::PermissionDenied
            | tonic::Code::Unauthenticated
            | tonic::Code::AlreadyExists
            | tonic::Code::FailedPrecondition => Attempt::Final(JoinError::Refused { address, message }),
            _ => again(message),
        }
    })?;
    let answer = answer.into_inner();
    let is_ca = |der: CertificateDer<'_>| digest_of(&der) == ca_digest;
    use rustls_pki_types::pem::PemObject as _;
    if !CertificateDer::from_pem_slice(answer.ca_pem.as_bytes()).is_ok_and(is_ca) {
        return Err(Attempt::Final(JoinError::WrongCa { address }));
    }
    Ok((answer.certificate_pem, answer.ca_pem))
}

fn describe(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn pinned_tls(ca_digest: [u8; 32]) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedCa { ca_digest, provider: Arc::clone(&provider) });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Trusts the one CA whose digest the token carries, and that CA only.
#[derive(Debug)]
struct PinnedCa {
    ca_digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|der| digest_of(der) == self.ca_digest);
        let ca = ca.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Writes a file that only this user may read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(Error::io("create", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("replace", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_and_refused() {
        let digest = URL_SAFE_NO_PAD.encode([7; 32]);
        assert_eq!(ca_digest(&format!("barque-node.{digest}.id.1.mac\n")).unwrap(), [7; 32]);
        for token in ["", "barque-control.x", "barque-node.x.a.1.b", &format!("barque-node.{digest}.id")] {
            assert!(ca_digest(token).is_err(), "{token}");
        }
    }

    #[test]
    fn requests_name_the_node() {
        let key = KeyPair::generate().unwrap();
        let pem = signing_request("node1", &key).unwrap();
        assert!(pem.contains("CERTIFICATE REQUEST"));
    }
}
