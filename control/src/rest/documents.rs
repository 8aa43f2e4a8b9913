//! Documents about the API: discovery, version, OpenAPI.
//!
//! They follow from the served kinds alone, so they carry an `ETag` and answer `If-None-Match`.

use api::crd::KindSet;
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
const PATHS: [&str; 16] = [
    "/.well-known/openid-configuration",
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
    "/openid/v1/jwks",
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
    kinds: &KindSet,
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
                return Some(aggregated(kinds, named, version, headers));
            }
            match named {
                true => api::discovery::api_group_list(kinds),
                false => api::discovery::api_versions(advertised),
            }
        }
        Document::Group(group) => api::discovery::api_group(kinds, group)?,
        Document::Resources { group, version } => api::discovery::api_resource_list(kinds, group, version)?,
        Document::Version => version(),
        // Whoever answers those asks the store.
        Document::Issuer | Document::IssuerKeys => return None,
        Document::OpenApiV2 => kinds.openapi_v2(&git_version()).clone(),
        Document::OpenApiV3Index => kinds.openapi_index(&git_version()).clone(),
        Document::OpenApiV3(path) => api::openapi::document(kinds, path, &git_version())?,
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

fn aggregated(kinds: &KindSet, named: bool, version: &'static str, headers: &HeaderMap) -> Response<Body> {
    let value = api::discovery::aggregated(kinds, named, version);
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

/// An OpenAPI v2 document without definitions: clients that read this form find schemas as OpenAPI v3, too.
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
