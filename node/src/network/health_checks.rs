//! Answers at the `healthCheckNodePort` of Services whose outside callers are led to this node's endpoints only: a balancer
//! outside asks there whether this node has any.
//!
//! Owns the listening sockets: one for each such Service, for as long as it is one. The answer is 200 with at least one ready
//! endpoint of this node and 503 without, and says which Service it is about and how many endpoints there are, as
//! kube-proxy's does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cluster::{ClusterNetwork, Known, ServiceName};
use super::services::{NodeFacts, local_endpoints};

/// How often a port that was taken is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Connections to one port at once; further ones wait.
const CONNECTIONS_MAX: usize = 32;
/// How long a caller may take with its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers until cancelled.
pub(crate) async fn run(cluster: Arc<ClusterNetwork>, facts: NodeFacts, shutdown: CancellationToken) {
    let facts = Arc::new(facts);
    let mut changes = cluster.subscribe();
    let mut open: BTreeMap<u16, (ServiceName, DropGuard)> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let wanted: BTreeMap<u16, ServiceName> = cluster.checked().into_iter().collect();
        open.retain(|port, (service, _)| wanted.get(port) == Some(service));
        for (port, service) in wanted {
            if open.contains_key(&port) {
                continue;
            }
            match TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await {
                Ok(listener) => {
                    let stop = shutdown.child_token();
                    let answering = Answering {
                        cluster: Arc::clone(&cluster),
                        facts: Arc::clone(&facts),
                        service: service.clone(),
                    };
                    tokio::spawn(answering.serve(listener, stop.clone()));
                    open.insert(port, (service, stop.drop_guard()));
                }
                Err(error) => {
                    tracing::warn!(%service, port, %error, "nobody answers for the Service's health here")
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = changes.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

struct Answering {
    cluster: Arc<ClusterNetwork>,
    facts: Arc<NodeFacts>,
    service: ServiceName,
}

impl Answering {
    async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let (answering, places) = (Arc::new(self), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (answering, stop) = (Arc::clone(&answering), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(move |_: Request<Incoming>| {
                    let answer = answering.answer();
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                // Whoever asked may hang up as it likes.
                drop(stop.run_until_cancelled(connection).await);
            });
        }
    }

    fn answer(&self) -> Response<Full<Bytes>> {
        let known: Known = self.cluster.get(&self.service.namespace, &self.service.name).unwrap_or_default();
        let endpoints = local_endpoints(&known, &self.facts);
        let text = serde_json::json!({
            "service": {"namespace": self.service.namespace, "name": self.service.name},
            "localEndpoints": endpoints,
        });
        let mut response = Response::new(Full::new(Bytes::from(text.to_string())));
        *response.status_mut() = if endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        response
            .headers_mut()
            .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        response
    }
}
