//! Documents about the API: discovery, version, OpenAPI.
//!
//! They follow from the table of kinds alone, so they carry an `ETag` and answer `If-None-Match`.

use std::sync::OnceLock;

use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response, StatusCode};
use prost::Message;
use serde_json::{Value, json};

use super::negotiate;
use super::path::Document;
use super::respond::{self, Body, Style};

/// What `/version` says: the Kubernetes version whose API this is, and ours as build metadata.
const KUBERNETES_VERSION: (&str, &str, &str) = ("1", "33", "0");

/// What `/` lists.
const PATHS: [&str; 14] = [
    "/api",
    "/api/v1",
    "/apis",
    "/apis/coordination.k8s.io",
    "/apis/coordination.k8s.io/v1",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/readyz",
    "/readyz/ping",
    "/readyz/raft",
    "/version",
];

/// Whether the client takes the document in a media type that only it has.
pub(super) fn is_acceptable(document: &Document, headers: &HeaderMap) -> bool {
    match document {
        Document::OpenApiV2 | Document::OpenApiV3(_) => true,
        Document::CoreVersions | Document::Groups => negotiate::aggregated_discovery(headers).is_some(),
        _ => false,
    }
}

/// Answers a document; `None`: there is no such one.
pub(super) fn respond(
    document: &Document,
    headers: &HeaderMap,
    style: &Style,
    advertised: &str,
) -> Option<Response<Body>> {
    if *document == Document::OpenApiV2 && negotiate::accepts(headers, OPENAPI_V2_PROTOBUF) {
        let body = OpenApiV2::current().encode_to_vec();
        return Some(respond::bytes(StatusCode::OK, OPENAPI_V2_PROTOBUF_GIVEN, body.into()));
    }
    let value = match document {
        Document::Paths => json!({"paths": PATHS}),
        Document::CoreVersions | Document::Groups => {
            let named = *document == Document::Groups;
            if let Some(version) = negotiate::aggregated_discovery(headers) {
                return Some(aggregated(named, version, headers));
            }
            match named {
                true => api::discovery::api_group_list(),
                false => api::discovery::api_versions(advertised),
            }
        }
        Document::Group(group) => api::discovery::api_group(group)?,
        Document::Resources { group, version } => api::discovery::api_resource_list(group, version)?,
        Document::Version => version(),
        Document::OpenApiV2 => openapi_v2(),
        Document::OpenApiV3Index => openapi_v3_index(),
        Document::OpenApiV3(path) => api::openapi::document(path, &git_version())?,
    };
    let mut response = match document {
        Document::Version | Document::Paths => {
            Style { pretty: true, ..Style::JSON }.value(StatusCode::OK, &value)
        }
        _ => style.value(StatusCode::OK, &value),
    };
    if matches!(document, Document::OpenApiV2 | Document::OpenApiV3(_)) {
        with_etag(&mut response, &value, headers);
    }
    Some(response)
}

fn aggregated(named: bool, version: &'static str, headers: &HeaderMap) -> Response<Body> {
    let value = api::discovery::aggregated(named, version);
    let mut response = Style::JSON.value(StatusCode::OK, &value);
    let media_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    with_etag(&mut response, &value, headers);
    response
}

fn etag(value: &Value) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, value.to_string().as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

fn with_etag(response: &mut Response<Body>, value: &Value, headers: &HeaderMap) {
    let tag = format!("\"{}\"", etag(value));
    let known = headers.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|known| known.trim() == tag)) {
        *response = respond::bytes(StatusCode::NOT_MODIFIED, "application/json", bytes::Bytes::new());
        response.headers_mut().remove(CONTENT_TYPE);
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
}

fn git_version() -> String {
    let (major, minor, patch) = KUBERNETES_VERSION;
    format!("v{major}.{minor}.{patch}+barque.{}", env!("CARGO_PKG_VERSION"))
}

/// What `/version` answers.
pub(super) fn version() -> Value {
    let (major, minor, _) = KUBERNETES_VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_architecture()),
    })
}

/// The machine's architecture as clients know it from Go.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The form in which `kubectl` before 1.28 insists on OpenAPI v2.
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// What Kubernetes names it in the answer: `@` is not allowed in a media type, and Go's parser refuses it.
const OPENAPI_V2_PROTOBUF_GIVEN: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// An OpenAPI v2 document without definitions (schemas are served as OpenAPI v3).
#[derive(Clone, PartialEq, prost::Message)]
struct OpenApiV2 {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<OpenApiInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OpenApiInfo {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

impl OpenApiV2 {
    fn current() -> Self {
        let (major, minor, patch) = KUBERNETES_VERSION;
        let info =
            OpenApiInfo { title: "Kubernetes".to_owned(), version: format!("v{major}.{minor}.{patch}") };
        Self { swagger: "2.0".to_owned(), info: Some(info) }
    }
}

fn openapi_v2() -> Value {
    let (major, minor, patch) = KUBERNETES_VERSION;
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": format!("v{major}.{minor}.{patch}")},
        "paths": {},
        "definitions": {},
    })
}

/// Where the OpenAPI v3 documents are. Their addresses hold their hashes, so it is made once and kept.
fn openapi_v3_index() -> Value {
    static INDEX: OnceLock<Value> = OnceLock::new();
    INDEX.get_or_init(|| api::openapi::index(&git_version())).clone()
}
