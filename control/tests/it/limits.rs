//! What a hostile or careless client cannot do.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{CONFIG_MAPS, Client, PODS, config_map, request};
use crate::server::TestServer;

#[tokio::test]
async fn bodies_are_bounded() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let large = config_map("a", &"x".repeat(4 * 1024 * 1024));
    let (code, reason, message) = client.post(CONFIG_MAPS, &large).await.status();
    assert_eq!((code, reason.as_str()), (413, "RequestEntityTooLarge"));
    assert_eq!(message, "Request entity is too large: limit is 3145728");
    let deep = Bytes::from(format!("{}{}", "{\"a\":".repeat(50_000), "}".repeat(50_000)));
    assert_eq!(client.send(request(Method::POST, PODS, &[], deep)).await.status().0, 400);
    let operations: Vec<Value> =
        (0..10_001).map(|_| json!({"op": "test", "path": "/a", "value": 1})).collect();
    let path = format!("{CONFIG_MAPS}/a");
    let patch = client.patch(&path, "application/json-patch+json", &json!(operations)).await;
    assert_eq!(patch.status().0, 413);
}

#[tokio::test]
async fn odd_requests_get_an_answer() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    for path in [
        "/api/v1/namespaces/default/pods/%2e%2e",
        "/api/v1/namespaces/default/pods/a%2fb",
        "/api/v1/pods?limit=-5&continue=AAAA",
        "/api/v1/pods?watch=true&resourceVersion=99999999999999999999999",
        "/api/v1/pods?labelSelector=%ff%fe",
        "/openapi/v3/nonsense",
        "//api//v1//pods",
    ] {
        let answer = client.get(path).await;
        assert!(answer.code.is_client_error(), "{path}: {}", answer.code);
    }
    for body in [json!(null), json!("x"), json!({"metadata": 3}), json!({"metadata": {"labels": []}})] {
        let answer = client.send(request(Method::POST, PODS, &[], Bytes::from(body.to_string()))).await;
        assert!(answer.code.is_client_error(), "{body}: {} {}", answer.code, answer.text());
    }
    let metrics = client.get("/metrics").await.text();
    assert!(metrics.contains("barque_rest_panics_total 0"), "{metrics}");
}

#[tokio::test]
async fn a_request_that_is_no_http_is_cut_off() {
    let server = TestServer::start().await;
    let mut stream = Client::admin(&server).connect().await;
    stream.write_all(b"\x00\x01\x02nonsense\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 400"), "{answer:?}");
}
