//! The subresource `proxy` of pods, services and nodes: HTTP to what runs inside, through this replica.
//!
//! ```text
//! client ─► .../pods/[SCHEME:]NAME[:PORT]/proxy/PATH ─► target ─► the pod's node opens a connection ─► HTTP/1.1
//! ```
//!
//! Owns which pod and port are meant, what of a request goes on and what of an answer comes back. Method, path,
//! query and body are passed on as they are; the asker's credentials are not. An upgrade (WebSocket) makes the
//! connection the client's. Promises that a client which goes away ends the connection to the pod, and that
//! addresses which no pod has are reached only if they are no address of this machine. Does not change pages:
//! links inside HTML stay as they are.

mod exchange;
mod node;
mod rewrite;
mod target;

use api::Status;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Body as HttpBody;

use self::exchange::Exchange;
use super::path::Resource;
use super::respond::{self, Body, BoxError};
use super::{Head, Rest};

impl Rest {
    /// Answers a request for what stands behind a resource.
    pub(super) async fn proxy<B>(
        &self,
        head: &Head,
        resource: &Resource,
        request: Request<B>,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (prefix, inner) = split(&head.path, resource.namespace.is_some());
        if inner.is_empty() && matches!(head.method, Method::GET | Method::HEAD) {
            return Ok(to_directory(&request));
        }
        if resource.kind.kind == "Node" {
            return self.node_proxy(head, resource.name.as_deref().unwrap_or_default(), inner).await;
        }
        let target = self.proxy_target(resource).await?;
        let inner = if inner.is_empty() { "/" } else { inner };
        Exchange { target: &target, prefix, inner }.perform(self, request).await
    }
}

/// The path up to the word `proxy`, and what follows.
fn split(path: &str, is_namespaced: bool) -> (&str, &str) {
    // "/api/v1/namespaces/NS/pods/NAME/proxy", "/api/v1/nodes/NAME/proxy"
    let segments = if is_namespaced { 7 } else { 5 };
    let mut slashes = path.char_indices().filter(|(_, letter)| *letter == '/').map(|(index, _)| index);
    match slashes.nth(segments) {
        Some(end) => path.split_at(end),
        None => (path, ""),
    }
}

/// Relative links of a page count from the last slash, so there must be one.
fn to_directory<B>(request: &Request<B>) -> Response<Body> {
    let mut location = format!("{}/", request.uri().path());
    if let Some(query) = request.uri().query() {
        location.push('?');
        location.push_str(query);
    }
    let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, Bytes::new());
    respond::set_header(&mut response, "location", &location);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_word_proxy_is_the_pods_path() {
        for (path, is_namespaced, expected) in [
            ("/api/v1/namespaces/a/pods/b:80/proxy", true, ("/api/v1/namespaces/a/pods/b:80/proxy", "")),
            ("/api/v1/namespaces/a/pods/b/proxy/", true, ("/api/v1/namespaces/a/pods/b/proxy", "/")),
            (
                "/api/v1/namespaces/a/services/proxy/proxy//x%2Fy/proxy/",
                true,
                ("/api/v1/namespaces/a/services/proxy/proxy", "//x%2Fy/proxy/"),
            ),
            ("/api/v1/nodes/n/proxy/pods", false, ("/api/v1/nodes/n/proxy", "/pods")),
        ] {
            assert_eq!(split(path, is_namespaced), expected);
        }
    }
}
