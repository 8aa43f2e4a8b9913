//! The port itself: connection bounds, gRPC beside REST, stopping.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tokio::net::TcpStream;

use crate::client::{CONFIG_MAPS, Client, request};
use crate::server::TestServer;

#[tokio::test]
async fn grpc_is_told_apart_by_its_content_type() {
    let server = TestServer::start().await;
    let headers = [("content-type", "application/grpc")];
    let call = || request(Method::POST, "/barque.node.v1.NodeSessions/Session", &headers, Bytes::new());
    let refused = Client::new(&server, None).send(call()).await;
    assert_eq!(refused.headers["grpc-status"], "16");
    let unknown = Client::admin(&server).send(call()).await;
    assert_eq!(unknown.headers["grpc-status"], "12", "as gRPC says that nobody serves it");
}

#[tokio::test]
async fn calls_that_never_end_do_not_hold_up_the_stop() {
    let server = TestServer::start_with(64, Duration::from_secs(30)).await;
    let client = Client::admin(&server);
    let headers = [("content-type", "application/grpc")];
    let call = client.open(request(Method::POST, "/test.Stall/Stall", &headers, Bytes::new()));
    let mut call = Box::pin(call);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut call).await.is_err());
    let began = Instant::now();
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.served).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_free_place() {
    let server = TestServer::start_with(16, Duration::from_secs(1)).await;
    let mut idle = Vec::new();
    for _ in 0..16 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let client = Client::admin(&server);
    let mut waiting = Box::pin(client.get("/livez"));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    idle.clear();
    assert_eq!(waiting.await.text(), "ok");
}

#[tokio::test]
async fn stopping_ends_watches_and_then_the_port() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    let began = Instant::now();
    server.stop.cancel();
    assert_eq!(watch.next().await, None);
    tokio::time::timeout(Duration::from_secs(5), server.served).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(TcpStream::connect(server.address).await.is_err());
}
