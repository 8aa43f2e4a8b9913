//! A small HTTP/1.1 client over TLS: one connection per request, nothing hidden.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::pki::{ALPN_HTTP1, Authority, Credentials, client_config};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::server::TestServer;

/// No test waits longer for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, code: u16) -> Value {
        assert_eq!(self.code.as_u16(), code, "{}", self.text());
        self.json()
    }

    /// An error's code, reason and message.
    pub(crate) fn status(&self) -> (u16, String, String) {
        let status = self.json();
        assert_eq!(status["kind"], "Status", "{status}");
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (self.code.as_u16(), text("reason"), text("message"))
    }
}

pub(crate) struct Client {
    address: std::net::SocketAddr,
    connector: TlsConnector,
}

impl Client {
    /// An operator's client.
    pub(crate) fn admin(server: &TestServer) -> Self {
        Self::new(server, Some(&server.admin()))
    }

    pub(crate) fn new(server: &TestServer, credentials: Option<&Credentials>) -> Self {
        Self::to(server.address, &server.authority, credentials)
    }

    /// A client of whoever listens there.
    pub(crate) fn to(
        address: std::net::SocketAddr,
        authority: &Authority,
        credentials: Option<&Credentials>,
    ) -> Self {
        let config = client_config(authority.certificate_pem(), credentials, &[ALPN_HTTP1]).unwrap();
        Self { address, connector: TlsConnector::from(Arc::new(config)) }
    }

    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("barque-control").unwrap();
        self.connector.connect(name, stream).await.unwrap()
    }

    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let stream = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let answer = async {
            let response = self.open(request).await;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer { code: parts.status, headers: parts.headers, body }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.expect("an answer in time")
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.send(request(method, path, &[("content-type", "application/json")], body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &Value::Null).await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send(request(Method::GET, path, &[("accept", accept)], Bytes::new())).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::DELETE, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, media_type: &str, body: &Value) -> Answer {
        let headers = [("content-type", media_type)];
        self.send(request(Method::PATCH, path, &headers, Bytes::from(body.to_string()))).await
    }

    /// Merges a patch into an object (RFC 7386).
    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Answer {
        self.patch(path, "application/merge-patch+json", patch).await
    }

    pub(crate) async fn watch(&self, path: &str) -> Events {
        self.watch_as(path, "application/json").await
    }

    pub(crate) async fn watch_as(&self, path: &str, accept: &str) -> Events {
        let response = self.open(request(Method::GET, path, &[("accept", accept)], Bytes::new())).await;
        let code = response.status();
        let mut events = Events { body: response.into_body(), buffer: Vec::new() };
        if code != StatusCode::OK {
            panic!("{code}: {:?}", events.next().await);
        }
        events
    }
}

/// A watch's lines.
pub(crate) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None`: the stream ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let next = async {
            loop {
                if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.buffer.drain(..=end).collect();
                    return Some(serde_json::from_slice(&line).unwrap());
                }
                let frame = self.body.frame().await?.ok()?;
                self.buffer.extend_from_slice(frame.data_ref()?);
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, next).await.expect("an event in time")
    }

    /// The next event as type and object name.
    pub(crate) async fn change(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(path).header("host", "barque-control");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(body)).unwrap()
}

pub(crate) fn pod(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "barque/hello:1.0"}]},
    })
}

pub(crate) fn config_map(name: &str, value: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": name}},
        "data": {"key": value},
    })
}

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
