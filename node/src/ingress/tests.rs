//! Real sockets on both sides of the proxy.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::network::cluster::Known;

/// A Service whose endpoints are these, each in a slice of its own; what its port says of itself beside.
fn known(endpoints: &[SocketAddr], app_protocol: Option<&str>) -> Known {
    let port = json!({"port": 80, "appProtocol": app_protocol});
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [port]}});
    let slice = |at: &SocketAddr| {
        let slice = json!({"addressType": "IPv4", "ports": [{"port": at.port()}],
            "endpoints": [{"addresses": [at.ip().to_string()]}]});
        (at.to_string(), Arc::new(serde_json::from_value(slice).unwrap()))
    };
    Known {
        service: Some(Arc::new(serde_json::from_value(service).unwrap())),
        slices: endpoints.iter().map(slice).collect(),
    }
}

/// A node's door, behind which every request goes to these endpoints; where it is.
async fn door(endpoints: &[SocketAddr], stop: &CancellationToken) -> SocketAddr {
    door_to(known(endpoints, None), stop).await
}

async fn door_to(known: Known, stop: &CancellationToken) -> SocketAddr {
    let ingress: Ingress = serde_json::from_value(json!({
        "metadata": {"name": "i", "namespace": "d"},
        "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}},
    }))
    .unwrap();
    let table = Table::compile(&[Arc::new(ingress)], &|_, _| Some(known.clone()), Arc::default());
    let (_sender, newest) = watch::channel(Arc::new(table));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let doors = Arc::new(Doors::new(newest.clone(), tls(&provider, newest).unwrap(), stop.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { doors.accept(listener, false).await.map(|never| match never {}) });
    address
}

/// An endpoint that handles its connections like that; where it is.
async fn endpoint<F>(handle: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    address
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Reads up to and with these words.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "ended too early: {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    text
}

/// Answers with the request itself, once its body was read up to "end".
async fn echo(mut stream: TcpStream) {
    let text = read_until(&mut stream, "end").await;
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
}

async fn ask(door: SocketAddr, request: &str, end: &str) -> String {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, end).await
}

#[tokio::test]
async fn a_request_arrives_as_it_came_with_who_asked() {
    let stop = CancellationToken::new();
    let door = door(&[endpoint(echo).await], &stop).await;
    let request = "POST /a?b=c HTTP/1.1\r\nHost: Shop.example:8080\r\nX-Own: 1\r\nX-Forwarded-For: 9.9.9.9\r\n\
        Connection: x-mine, keep-alive\r\nX-Mine: 2\r\nTE: trailers\r\nContent-Length: 3\r\n\r\nend";
    let seen = ask(door, request, "\r\n\r\nend").await.to_ascii_lowercase();
    for part in [
        "200 ok",
        "post /a?b=c http/1.1\r\n",
        "host: shop.example:8080\r\n",
        "x-own: 1\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-real-ip: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-host: shop.example:8080\r\n",
    ] {
        assert!(seen.contains(part), "{part:?} in {seen}");
    }
    for part in ["x-mine", "\r\nte:", "9.9.9.9"] {
        assert!(!seen.contains(part), "{part:?} in {seen}");
    }
    stop.cancel();
}

#[tokio::test]
async fn where_nobody_listens_the_next_endpoint_gets_the_whole_request() {
    let stop = CancellationToken::new();
    let (dead, live) = (nobody().await, endpoint(echo).await);
    let both = door(&[dead, live], &stop).await;
    let request = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 8\r\n\r\nbody-end";
    for _ in 0..4 {
        let seen = ask(both, request, "body-end").await;
        assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    }
    let only_dead = door(&[dead], &stop).await;
    let refused = ask(only_dead, request, "connected to").await;
    assert!(refused.starts_with("HTTP/1.1 502") && refused.contains(&format!("d/s:80: {dead}")), "{refused}");
    let nameless = ask(both, "GET / HTTP/1.0\r\n\r\n", "which host").await;
    assert!(nameless.starts_with("HTTP/1.0 400") || nameless.starts_with("HTTP/1.1 400"), "{nameless}");
    stop.cancel();
}

#[tokio::test]
async fn an_upgrade_becomes_a_stream() {
    let stop = CancellationToken::new();
    let upper = endpoint(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.contains("upgrade: shout") && head.contains("connection: upgrade"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: shout\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let word = read_until(&mut stream, "!").await.to_ascii_uppercase();
        stream.write_all(word.as_bytes()).await.unwrap();
    })
    .await;
    let mut stream = TcpStream::connect(door(&[upper], &stop).await).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
        .await
        .unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"hello!").await.unwrap();
    assert_eq!(read_until(&mut stream, "!").await, "HELLO!");
    stop.cancel();
}

/// Answers in HTTP/2 alone: with what it was asked for, and with the status of a remote call behind that.
async fn calls(stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let header = |name: &str| {
            parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned()
        };
        let words = format!(
            "{:?} {} te={} host={} by={}",
            parts.version,
            parts.uri,
            header("te"),
            header("host"),
            header("x-forwarded-host")
        );
        let said = body.collect().await?.to_bytes();
        let frames = [
            Ok::<_, hyper::Error>(Frame::data(Bytes::from(format!("{words} said={}", said.len())))),
            Ok(Frame::trailers(HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]))),
        ];
        Ok::<_, hyper::Error>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn remote_calls_go_to_endpoints_that_speak_http2_with_their_trailers() {
    let stop = CancellationToken::new();
    let (dead, live) = (nobody().await, endpoint(calls).await);
    let door = door_to(known(&[dead, live], Some("kubernetes.io/h2c")), &stop).await;
    let stream = TcpStream::connect(door).await.unwrap();
    let caller = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut caller, connection) = caller.await.unwrap();
    tokio::spawn(connection);
    for _ in 0..4 {
        let request = Request::post("http://shop.example/pkg.Service/Method").header("te", "trailers");
        let request = request.body(Full::new(Bytes::from_static(b"four"))).unwrap();
        let answer = caller.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        let words = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        let asked =
            "HTTP/2.0 http://shop.example/pkg.Service/Method te=trailers host=- by=shop.example said=4";
        assert_eq!(words, asked);
    }
    // A caller of the older kind is answered, too.
    let seen =
        ask(door, "GET /x HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n", "said=0").await;
    assert!(seen.contains("HTTP/2.0 http://shop.example/x"), "{seen}");
    // An endpoint that speaks HTTP/1.1 alone.
    let old = door_to(known(&[endpoint(echo).await], Some("kubernetes.io/h2c")), &stop).await;
    let refused = ask(old, "GET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "broke off").await;
    assert!(refused.starts_with("HTTP/1.1 502"), "{refused}");
    stop.cancel();
}
