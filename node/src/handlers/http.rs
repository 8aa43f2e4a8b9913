//! An HTTP request to a container, as probes and hooks make it: the status code is all that counts.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Target, connect, resolve};

/// What is read of an answer: the status line is all that counts.
const ANSWER_BYTES_MAX: usize = 4096;
/// What an answer says that came too late.
pub(super) const LATE: &str = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";

/// Asks once; returns the status code. An error says what was asked and what went wrong, as Go's client does.
pub(super) async fn get(action: &HTTPGetAction, target: &Target) -> Result<u16, String> {
    let url = Url::of(action, target)?;
    exchange(action, &url).await.map_err(|problem| failed(&url.text, &problem))
}

/// The failure of a request that got no answer in time.
pub(super) fn late(action: &HTTPGetAction, target: &Target) -> String {
    match Url::of(action, target) {
        Ok(url) => failed(&url.text, LATE),
        Err(problem) => problem,
    }
}

fn failed(url: &str, problem: &str) -> String {
    format!("Get \"{url}\": {problem}")
}

struct Url {
    tls: bool,
    host: String,
    port: u16,
    path: String,
    text: String,
}

impl Url {
    fn of(action: &HTTPGetAction, target: &Target) -> Result<Self, String> {
        let tls = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        let own = action.host.as_deref().filter(|h| !h.is_empty());
        let host = own.map_or_else(|| target.ip.to_string(), str::to_owned);
        let port = target.port(&action.port)?;
        let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let scheme = if tls { "https" } else { "http" };
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let text = format!("{scheme}://{authority}{path}");
        Ok(Self { tls, host, port, path, text })
    }
}

async fn exchange(action: &HTTPGetAction, url: &Url) -> Result<u16, String> {
    let address = resolve(&url.host, url.port).await?;
    let tcp = connect(address).await?;
    let host = url.text.split('/').nth(2).unwrap_or_default();
    let request = request(action, host, &url.path);
    if !url.tls {
        return status(tcp, &request).await;
    }
    let name = ServerName::try_from(url.host.clone()).unwrap_or(ServerName::from(address.ip()));
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&ANY_SERVER));
    let stream = connector.connect(name, tcp).await.map_err(|e| e.to_string())?;
    status(stream, &request).await
}

fn request(action: &HTTPGetAction, host: &str, path: &str) -> String {
    let own = |name: &str| action.http_headers.iter().flatten().any(|h| h.name.eq_ignore_ascii_case(name));
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in [("Host", host), ("User-Agent", "kube-probe/1.33"), ("Accept", "*/*")] {
        if !own(name) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for header in action.http_headers.iter().flatten() {
        text.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    text + "Connection: close\r\n\r\n"
}

async fn status(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<u16, String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::with_capacity(256);
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES_MAX {
        if stream.read_buf(&mut answer).await.map_err(|e| e.to_string())? == 0 {
            return Err("EOF".into());
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let code = line.split_ascii_whitespace().nth(1).filter(|_| line.starts_with("HTTP/1."));
    code.and_then(|c| c.parse().ok()).ok_or_else(|| "malformed HTTP response".to_owned())
}

/// Probes ask whether something answers, not who it is: certificates are not verified.
static ANY_SERVER: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    Arc::new(config)
});

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
