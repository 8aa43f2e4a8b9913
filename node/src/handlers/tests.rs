//! Questions to small servers.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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

/// A container to ask, and the state of its runtime, which goes with it.
fn target() -> (Target, tempfile::TempDir) {
    let container = serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 1}]});
    let dir = tempfile::tempdir().unwrap();
    let config = runtime::RuntimeConfig {
        state_dir: dir.path().to_owned(),
        shim_command: vec!["/bin/false".into()],
        cgroup_root: "barque-handlers".into(),
        every_hierarchy: false,
    };
    let target = Target {
        runtime: Arc::new(runtime::Runtime::new(config).unwrap()),
        container: serde_json::from_value(container).unwrap(),
        id: "i".into(),
        ip: IpAddr::from([127, 0, 0, 1]),
    };
    (target, dir)
}

async fn ask(probe: serde_json::Value) -> Result<(), String> {
    let probe: Probe = serde_json::from_value(probe).unwrap();
    let (target, _dir) = target();
    super::probe(&probe, &target, Duration::from_secs(1)).await
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

#[tokio::test]
async fn ports_have_names_and_hosts_too() {
    let error = ask(serde_json::json!({"tcpSocket": {"port": "metrics"}})).await.unwrap_err();
    assert_eq!(error, "couldn't find port named \"metrics\" in container \"c\"");
    let error = ask(serde_json::json!({"tcpSocket": {"port": "web"}})).await.unwrap_err();
    assert_eq!(error, "dial tcp 127.0.0.1:1: connect: connection refused");
    let error = ask(serde_json::json!({"httpGet": {"port": 1, "host": "no.such.host.invalid"}})).await;
    let error = error.unwrap_err();
    assert!(error.starts_with("Get \"http://no.such.host.invalid:1/\": dial tcp: lookup"), "{error}");
}

/// KIA-PRB-002, KIA-HOOK-012: headers, and servers whose certificate nobody vouches for.
#[tokio::test]
async fn https_is_not_verified_and_headers_are_sent() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["example.com".into()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    });
    let probe = serde_json::json!({"httpGet": {"port": port, "path": "/ready", "scheme": "HTTPS",
        "httpHeaders": [{"name": "X-Who", "value": "me"}, {"name": "host", "value": "example.com"}]}});
    assert_eq!(ask(probe).await, Ok(()));
    let request = server.await.unwrap();
    assert!(request.starts_with("GET /ready HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("X-Who: me\r\n") && request.contains("host: example.com\r\n"), "{request}");
    assert!(request.contains("User-Agent: kube-probe/") && !request.contains("Host: "), "{request}");
}

struct Health(i32);

#[tonic::async_trait]
impl proto::health::health_server::Health for Health {
    async fn check(
        &self,
        request: tonic::Request<proto::health::HealthCheckRequest>,
    ) -> Result<tonic::Response<proto::health::HealthCheckResponse>, tonic::Status> {
        match request.into_inner().service.as_str() {
            "" => Ok(tonic::Response::new(proto::health::HealthCheckResponse { status: self.0 })),
            other => Err(tonic::Status::not_found(format!("no service {other}"))),
        }
    }
}

async fn serve_health(status: i32) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = proto::health::health_server::HealthServer::new(Health(status));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    port
}

#[tokio::test]
async fn grpc_servers_say_how_they_are() {
    let port = serve_health(1).await;
    assert_eq!(ask(serde_json::json!({"grpc": {"port": port}})).await, Ok(()));
    let error = ask(serde_json::json!({"grpc": {"port": port, "service": "x"}})).await.unwrap_err();
    assert_eq!(error, "error: health rpc probe failed: no service x");
    let port = serve_health(2).await;
    let error = ask(serde_json::json!({"grpc": {"port": port}})).await.unwrap_err();
    assert_eq!(error, "service unhealthy (responded with \"NOT_SERVING\")");
    let error = ask(serde_json::json!({"grpc": {"port": 1}})).await.unwrap_err();
    assert!(error.starts_with("error: failed to connect service at \"127.0.0.1:1\": "), "{error}");
    let port = serve("HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(ask(serde_json::json!({"grpc": {"port": port}})).await.is_err(), "another protocol");
}

/// KIA-HOOK-013, KIA-HOOK-014.
#[tokio::test]
async fn a_hook_needs_an_answer_and_no_more() {
    let port = serve("HTTP/1.1 404 Not Found\r\n\r\n").await;
    let run = |handler: serde_json::Value| async move {
        let (target, _dir) = target();
        hook(&serde_json::from_value(handler).unwrap(), &target).await
    };
    assert_eq!(run(serde_json::json!({"httpGet": {"port": port, "path": "/x"}})).await, Ok(()));
    let refused = run(serde_json::json!({"httpGet": {"port": "web", "path": "/x"}})).await.unwrap_err();
    assert_eq!(
        refused.error,
        "Get \"http://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
    assert_eq!(run(serde_json::json!({"sleep": {"seconds": 0}})).await, Ok(()));
}
