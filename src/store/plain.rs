//! What is served without gRPC: `/health`, `/livez`, `/readyz`, `/version`, `/metrics`, as etcd answers them.

use std::sync::Arc;

use bytes::Bytes;
use exposition::{Exposition, MEDIA_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use raft_store::state_machine::AlarmKind;
use raft_store::{Store, etcd};

use super::body::Body;
use super::metrics::GrpcMetrics;

/// See the module's head.
pub(crate) struct Plain {
    pub(crate) store: Store,
    pub(crate) grpc: Arc<GrpcMetrics>,
}

/// One thing that is looked at, and what is wrong with it.
struct Check {
    name: &'static str,
    wrong: Option<String>,
}

impl Plain {
    /// Answers one request.
    pub(crate) async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "Method Not Allowed\n");
        }
        let query = request.uri().query().unwrap_or("");
        match request.uri().path() {
            "/health" => self.health(query).await,
            "/livez" => checks(&self.live(), query),
            "/readyz" => checks(&self.ready().await, query),
            "/version" => respond(
                StatusCode::OK,
                "application/json",
                format!(
                    "{{\"etcdserver\":\"{}\",\"etcdcluster\":\"{}\"}}",
                    etcd::VERSION,
                    etcd::CLUSTER_VERSION
                ),
            ),
            "/metrics" => respond(StatusCode::OK, MEDIA_TYPE, self.metrics()),
            _ => respond(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n"),
        }
    }

    fn metrics(&self) -> String {
        let mut out = Exposition::default();
        self.store.expose_metrics(&mut out);
        self.grpc.expose(&mut out);
        out.process();
        out.finish()
    }

    async fn health(&self, query: &str) -> Response<Body> {
        let excluded: Vec<&str> = values(query, "exclude").collect();
        let mut reason = self.alarm(&excluded);
        if reason.is_none() && values(query, "serializable").next() != Some("true") {
            reason = match self.store.leadership().leader {
                None => Some("RAFT NO LEADER".to_owned()),
                Some(_) => self.read().await.map(|error| format!("QGET ERROR:{error}")),
            };
        }
        let (status, health) = match &reason {
            None => (StatusCode::OK, "true"),
            Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false"),
        };
        let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
        respond(status, "application/json", body.to_string())
    }

    fn alarm(&self, excluded: &[&str]) -> Option<String> {
        let names = self.store.alarms().into_iter().map(|alarm| match alarm.kind {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        });
        names.into_iter().find(|name| !excluded.contains(name)).map(|name| format!("ALARM {name}"))
    }

    async fn read(&self) -> Option<String> {
        self.store.linearize().await.err().map(|error| error.to_string())
    }

    fn live(&self) -> Vec<Check> {
        // A local read takes the state's lock, which a member that is stuck would not give.
        let _ = self.store.revision();
        vec![Check { name: "serializable_read", wrong: None }]
    }

    async fn ready(&self) -> Vec<Check> {
        let corrupt = self.store.alarms().iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
        let mut checks = self.live();
        checks.push(Check {
            name: "data_corruption",
            wrong: corrupt.then(|| "alarm activated: CORRUPT".into()),
        });
        checks.push(Check { name: "linearizable_read", wrong: self.read().await });
        checks
    }
}

/// `ok`, or what is wrong; with `?verbose` every check.
fn checks(checks: &[Check], query: &str) -> Response<Body> {
    let excluded: Vec<&str> = values(query, "exclude").collect();
    let failed = checks.iter().any(|check| check.wrong.is_some() && !excluded.contains(&check.name));
    let mut text = String::new();
    if failed || query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")) {
        for check in checks {
            text.push_str(&match &check.wrong {
                _ if excluded.contains(&check.name) => format!("[+]{} excluded: ok\n", check.name),
                None => format!("[+]{} ok\n", check.name),
                Some(reason) => format!("[-]{} failed: {reason}\n", check.name),
            });
        }
    }
    text.push_str(if failed { "failed\n" } else { "ok\n" });
    let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    respond(status, "text/plain; charset=utf-8", text)
}

fn values<'a>(query: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter_map(move |part| part.split_once('='))
        .filter(move |(k, _)| *k == key)
        .map(|(_, v)| v)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::boxed(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
