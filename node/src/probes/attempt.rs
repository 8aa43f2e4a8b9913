//! One attempt of a probe, and its failure in the kubelet's words.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is read of an answer: the status line is all that counts.
const ANSWER_BYTES_MAX: usize = 4096;

/// Asks once. The error is what the Unhealthy event says after "probe failed: ".
pub(super) async fn attempt(
    probe: &Probe,
    container: &Container,
    pod_ip: IpAddr,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(action) = &probe.http_get {
        return http(action, container, pod_ip, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|h| !h.is_empty());
        let address = address(host, &action.port, container, pod_ip)?;
        return connect(address, timeout).await.map(drop);
    }
    Err("the probe has no handler that this node agent supports".into())
}

async fn http(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: IpAddr,
    timeout: Duration,
) -> Result<(), String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty());
    let address = address(host, &action.port, container, pod_ip)?;
    let tls = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{}://{address}{path}", if tls { "https" } else { "http" });
    let failed = |problem: String| format!("Get \"{url}\": {problem}");
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let exchange = async {
        let tcp = connect(address, timeout).await?;
        let request = request(action, &address.to_string(), &path);
        if tls {
            let name = ServerName::from(address.ip());
            let stream = tokio_rustls::TlsConnector::from(any_server()).connect(name, tcp).await;
            status(stream.map_err(|e| e.to_string())?, &request).await
        } else {
            status(tcp, &request).await
        }
    };
    let code = match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer.map_err(failed)?,
        Err(_) => return Err(failed(late.to_owned())),
    };
    if (200..400).contains(&code) { Ok(()) } else { Err(http_failure(code)) }
}

/// The books' words; a kubelet of today says "HTTP probe failed with statuscode: 503".
fn http_failure(code: u16) -> String {
    format!("HTTP probe failed with code {code}")
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

async fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", words(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        _ => error.to_string(),
    }
}

fn address(
    host: Option<&str>,
    port: &IntOrString,
    container: &Container,
    pod_ip: IpAddr,
) -> Result<SocketAddr, String> {
    let ip = match host {
        None => pod_ip,
        Some("localhost") => IpAddr::from([127, 0, 0, 1]),
        Some(host) => host.parse().map_err(|_| format!("host {host:?} is not an address"))?,
    };
    let port = match port {
        IntOrString::Int(port) => Some(*port),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    let port =
        port.and_then(|p| u16::try_from(p).ok()).ok_or_else(|| "the probe's port is not known".to_owned())?;
    Ok(SocketAddr::new(ip, port))
}

/// Probes ask whether something answers, not who it is: certificates are not verified.
fn any_server() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 512];
                drop(stream.read(&mut buffer).await);
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        port
    }

    async fn ask(probe: serde_json::Value) -> Result<(), String> {
        let probe: Probe = serde_json::from_value(probe).unwrap();
        let ip = IpAddr::from([127, 0, 0, 1]);
        attempt(&probe, &Container::default(), ip, Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn http_statuses_decide() {
        let port = serve("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(ask(serde_json::json!({"httpGet": {"port": port, "path": "/x"}})).await, Ok(()));
        let port = serve("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let error = ask(serde_json::json!({"httpGet": {"port": port}})).await.unwrap_err();
        assert_eq!(error, "HTTP probe failed with code 503");
    }

    #[tokio::test]
    async fn refused_connections_are_told_as_go_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(ask(serde_json::json!({"tcpSocket": {"port": port}})).await, Ok(()));
        drop(listener);
        let error = ask(serde_json::json!({"tcpSocket": {"port": port}})).await.unwrap_err();
        assert_eq!(error, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
        let error = ask(serde_json::json!({"httpGet": {"port": port}})).await.unwrap_err();
        assert!(error.starts_with(&format!("Get \"http://127.0.0.1:{port}/\": dial tcp")), "{error}");
    }
}
