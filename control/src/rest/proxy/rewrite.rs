//! Headers on their way through a proxy: which go on, and where redirects lead.

use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, StatusCode};
use streams::hops;

/// Headers of answers that are about this replica's own origin.
const OWN_ORIGIN_PREFIX: &str = "access-control-";

/// The headers of a request as the pod sees them. Credentials are for this replica only.
pub(super) fn request_headers(headers: &HeaderMap, prefix: &str, inner: &str, host: &str) -> HeaderMap {
    let mut kept = without_hops(headers);
    kept.remove(AUTHORIZATION);
    let impersonation: Vec<HeaderName> =
        kept.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        kept.remove(name);
    }
    let asked = headers.get(HOST).cloned().or_else(|| HeaderValue::from_str(host).ok());
    if let Some(asked) = asked {
        kept.insert(HOST, asked);
    }
    if let Ok(uri) = HeaderValue::from_str(&format!("{prefix}{inner}")) {
        kept.insert("x-forwarded-uri", uri);
    }
    if let Some(protocol) = hops::upgrade(headers) {
        hops::set_upgrade(&mut kept, protocol.clone());
    }
    kept
}

/// The headers of a pod's answer as the client sees them.
pub(super) fn response_headers(code: StatusCode, headers: &HeaderMap, location: &Location<'_>) -> HeaderMap {
    let mut kept = without_hops(headers);
    let origins: Vec<HeaderName> =
        kept.keys().filter(|name| name.as_str().starts_with(OWN_ORIGIN_PREFIX)).cloned().collect();
    for name in origins {
        kept.remove(name);
    }
    let to = kept.get(http::header::LOCATION).and_then(|to| location.rewritten(to.to_str().ok()?));
    if let Some(to) = to.and_then(|to| HeaderValue::from_str(&to).ok()) {
        kept.insert(http::header::LOCATION, to);
    }
    if let Some(protocol) = headers.get(UPGRADE).filter(|_| code == StatusCode::SWITCHING_PROTOCOLS) {
        hops::set_upgrade(&mut kept, protocol.clone());
    }
    kept
}

fn without_hops(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    hops::strip(&mut kept);
    kept
}

/// What redirects are judged by.
pub(super) struct Location<'a> {
    /// The path up to the word `proxy`.
    pub(super) prefix: &'a str,
    /// The pod as addresses are written.
    pub(super) host: &'a str,
    /// The host that the client named.
    pub(super) asked: &'a str,
}

impl Location<'_> {
    /// Where a redirect leads for the client; `None`: where it says. Elsewhere and relative ones stay; a path of
    /// the pod's own is one behind the proxy.
    fn rewritten(&self, to: &str) -> Option<String> {
        let path = match to.split_once("://") {
            Some((scheme, rest)) if matches!(scheme, "http" | "https") => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let host = &rest[..end];
                if host != self.host && host != self.asked && !is_default_port(self.host, host, scheme) {
                    return None;
                }
                let path = &rest[end..];
                if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
            }
            _ if to.starts_with('/') && !to.starts_with("//") => to.to_owned(),
            _ => return None,
        };
        match path.strip_prefix(self.prefix) {
            Some(rest) if rest.is_empty() || rest.starts_with(['/', '?', '#']) => Some(path),
            _ => Some(format!("{}{path}", self.prefix)),
        }
    }
}

/// Whether a host without a port is the one with the scheme's port.
fn is_default_port(host: &str, named: &str, scheme: &str) -> bool {
    let port = if scheme == "https" { ":443" } else { ":80" };
    host.strip_suffix(port) == Some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_behind_the_proxy() {
        let prefix = "/api/v1/namespaces/a/pods/b/proxy";
        let location = Location { prefix, host: "10.0.0.1:80", asked: "api:6443" };
        for (to, expected) in [
            ("/login?x=1#y", Some("/api/v1/namespaces/a/pods/b/proxy/login?x=1#y")),
            ("http://10.0.0.1:80/login/", Some("/api/v1/namespaces/a/pods/b/proxy/login/")),
            ("http://10.0.0.1/login", Some("/api/v1/namespaces/a/pods/b/proxy/login")),
            ("http://10.0.0.1", Some("/api/v1/namespaces/a/pods/b/proxy/")),
            ("https://api:6443/login", Some("/api/v1/namespaces/a/pods/b/proxy/login")),
            // It knows where it is.
            ("/api/v1/namespaces/a/pods/b/proxy/login", Some("/api/v1/namespaces/a/pods/b/proxy/login")),
            (
                "/api/v1/namespaces/a/pods/b/proxyx",
                Some("/api/v1/namespaces/a/pods/b/proxy/api/v1/namespaces/a/pods/b/proxyx"),
            ),
            ("login", None),
            ("//elsewhere/login", None),
            ("https://example.com/login", None),
            ("http://10.0.0.11/login", None),
        ] {
            assert_eq!(location.rewritten(to).as_deref(), expected, "{to}");
        }
    }

    #[test]
    fn credentials_and_hops_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "x"),
            ("connection", "close, x-own"),
            ("x-own", "1"),
            ("cookie", "a=b"),
            ("host", "api:6443"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let kept = request_headers(&headers, "/prefix/proxy", "/a", "10.0.0.1:80");
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "host", "x-forwarded-uri"]);
        assert_eq!(kept["host"], "api:6443");
        assert_eq!(kept["x-forwarded-uri"], "/prefix/proxy/a");
        headers.insert("connection", "keep-alive, Upgrade".parse().unwrap());
        headers.insert("upgrade", "websocket".parse().unwrap());
        let kept = request_headers(&headers, "", "/a", "");
        assert_eq!(
            (kept["connection"].as_bytes(), kept["upgrade"].as_bytes()),
            (&b"Upgrade"[..], &b"websocket"[..])
        );
    }
}
