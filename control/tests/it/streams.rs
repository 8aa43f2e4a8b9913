//! Interactive streams: negotiation, refusals, and the frames of the WebSocket protocol, byte by byte.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{Client, PODS, pod};
use crate::server::TestServer;

async fn bound_pod(client: &Client) {
    client.post(PODS, &pod("a")).await.expect(201);
    let target = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/a/binding"), &target).await.expect(201);
}

/// Asks for an upgrade; returns the head of the answer and the connection.
async fn upgrade(
    client: &Client,
    path: &str,
    headers: &str,
) -> (String, impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + use<>) {
    let mut connection = client.connect().await;
    let request = format!("GET {PODS}/{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), connection)
}

const WEBSOCKET: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n";

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_before_the_upgrade() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("a")).await.expect(201);
    let said = |path: &str| {
        let path = format!("{PODS}/{path}");
        let client = &client;
        async move {
            let (code, _, message) = client.get(&path).await.status();
            (code, message)
        }
    };
    assert_eq!(said("ghost/exec?command=x&stdout=1").await, (404, "pods \"ghost\" not found".into()));
    let unbound = said("a/exec?command=x&stdout=1").await;
    assert_eq!(unbound, (400, "pod a does not have a host assigned".into()));
    let target = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/a/binding"), &target).await.expect(201);
    assert_eq!(
        said("a/exec?command=x&stdout=1&container=b").await,
        (400, "container b is not valid for pod a".into())
    );
    assert_eq!(
        said("a/exec?command=x").await,
        (400, "you must specify at least 1 of stdin, stdout, stderr".into())
    );
    assert_eq!(
        said("a/exec?stdout=1").await,
        (400, "you must specify at least one command for the container".into())
    );
    let (code, message) = said("a/exec?command=x&stdout=1").await;
    assert!(code == 400 && message.starts_with("Upgrade request required"), "{message}");
    assert_eq!(client.put(&format!("{PODS}/a/exec"), &json!({})).await.code.as_u16(), 405);
    // What the node refuses is said as a node says it.
    let (head, mut connection) = upgrade(&client, "a/exec?command=refuse&stdout=1", WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    let mut body = [0; "container not found (\"main\")".len()];
    connection.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"container not found (\"main\")");
}

/// A masked message of a channel, as clients send it.
fn message(channel: u8, text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | (1 + text.len()) as u8, 0, 0, 0, 0, channel];
    frame.extend_from_slice(text);
    frame
}

#[tokio::test]
async fn channels_carry_input_output_and_status() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    bound_pod(&client).await;
    let path = "a/exec?command=say&command=two%20words&stdin=1&stdout=1&stderr=1";
    let (head, mut connection) = upgrade(&client, path, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-protocol: v5.channel.k8s.io\r\n"), "{head}");
    for part in [message(0, b"abc"), message(0, b"defg"), message(255, &[0])] {
        connection.write_all(&part).await.unwrap();
    }
    let mut channels: std::collections::BTreeMap<u8, Vec<u8>> = Default::default();
    loop {
        let (kind, length) = (connection.read_u8().await.unwrap(), connection.read_u8().await.unwrap());
        let length = match length {
            126 => connection.read_u16().await.unwrap().into(),
            short => usize::from(short),
        };
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await.unwrap();
        match kind {
            // Closed, as normal.
            0x88 => {
                assert_eq!(body[..2], 1000_u16.to_be_bytes());
                break;
            }
            _ => channels.entry(body[0]).or_default().extend_from_slice(&body[1..]),
        }
    }
    assert_eq!(channels[&1], b"abcdefg");
    assert_eq!(channels[&2], b"main: say two words\n");
    let status: serde_json::Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
}

#[tokio::test]
async fn an_open_stream_does_not_hold_the_replicas_stop_up() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    bound_pod(&client).await;
    let (head, mut connection) = upgrade(&client, "a/exec?command=x&stdin=1&stdout=1", WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    server.stop.cancel();
    server.served.await.unwrap();
    let mut rest = Vec::new();
    // However it ends, it ends.
    let _end = connection.read_to_end(&mut rest).await;
}
