//! Which thing a request path names.
//!
//! Pure: text in, [`Route`] out. A path that names nothing served is [`Route::Unknown`], with what could be
//! understood of it, so that authorization can speak of it.

use api::Kind;
use api::crd::KindSet;
use percent_encoding::percent_decode_str;

/// Documents about the API itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    /// `/`
    Paths,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources { group: String, version: String },
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiV3Index,
    /// `/openapi/v3/<path>`
    OpenApiV3(String),
    /// `/version`
    Version,
    /// `/.well-known/openid-configuration`
    Issuer,
    /// `/openid/v1/jwks`
    IssuerKeys,
}

/// Reports about this replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Probe {
    /// `/livez`
    Live,
    /// `/readyz`
    Ready,
    /// `/healthz`
    Health,
    /// `/metrics`
    Metrics,
}

/// An object or a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: &'static Kind,
    /// `None`: all namespaces, or a kind outside namespaces.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Document(Document),
    Probe(Probe, Option<String>),
    Resource(Resource),
    Unknown,
}

impl Route {
    /// Reads a request path.
    pub(super) fn parse(path: &str, kinds: &KindSet) -> Self {
        let trimmed = path.strip_prefix('/').unwrap_or(path);
        let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
        let mut segments = Vec::new();
        for segment in trimmed.split('/').filter(|_| !trimmed.is_empty()) {
            match percent_decode_str(segment).decode_utf8() {
                Ok(text) => segments.push(text.into_owned()),
                Err(_) => return Self::Unknown,
            }
        }
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let check = |rest: &[&str]| rest.first().map(|name| (*name).to_owned());
        match words.as_slice() {
            [] => Self::Document(Document::Paths),
            ["api"] => Self::Document(Document::CoreVersions),
            ["apis"] => Self::Document(Document::Groups),
            ["apis", group] => Self::Document(Document::Group((*group).to_owned())),
            ["api", version] => Self::resources("", version),
            ["apis", group, version] => Self::resources(group, version),
            ["api", version, rest @ ..] => resource(kinds, "", version, rest),
            ["apis", group, version, rest @ ..] => resource(kinds, group, version, rest),
            ["openapi", "v2"] => Self::Document(Document::OpenApiV2),
            ["openapi", "v3"] => Self::Document(Document::OpenApiV3Index),
            ["openapi", "v3", rest @ ..] => Self::Document(Document::OpenApiV3(rest.join("/"))),
            ["version"] => Self::Document(Document::Version),
            [".well-known", "openid-configuration"] => Self::Document(Document::Issuer),
            ["openid", "v1", "jwks"] => Self::Document(Document::IssuerKeys),
            ["livez", rest @ ..] if rest.len() < 2 => Self::Probe(Probe::Live, check(rest)),
            ["readyz", rest @ ..] if rest.len() < 2 => Self::Probe(Probe::Ready, check(rest)),
            ["healthz", rest @ ..] if rest.len() < 2 => Self::Probe(Probe::Health, check(rest)),
            ["metrics"] => Self::Probe(Probe::Metrics, None),
            _ => Self::Unknown,
        }
    }

    fn resources(group: &str, version: &str) -> Self {
        Self::Document(Document::Resources { group: group.to_owned(), version: version.to_owned() })
    }
}

/// Group and plural of the custom resource that a path would name, if there were such a one.
pub(super) fn custom_resource(path: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    match words.as_slice() {
        ["apis", group, _, "namespaces", _, plural, ..] | ["apis", group, _, plural, ..] => {
            Some((group, plural))
        }
        _ => None,
    }
}

fn resource(kinds: &KindSet, group: &str, version: &str, rest: &[&str]) -> Route {
    // "namespaces" begins both the kind's own paths and those of everything inside a namespace.
    let (namespace, rest) = match rest {
        ["namespaces", namespace, inner @ ..]
            if !inner.is_empty() && !matches!(inner, ["status" | "finalize"]) =>
        {
            (Some((*namespace).to_owned()), inner)
        }
        rest => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
        [plural, name, "proxy", ..] => (*plural, Some(*name), Some("proxy")),
        _ => return Route::Unknown,
    };
    let Some(kind) = kinds.by_resource(group, version, plural) else { return Route::Unknown };
    if namespace.is_some() && !kind.namespaced || name == Some("") || namespace.as_deref() == Some("") {
        return Route::Unknown;
    }
    if kind.namespaced && namespace.is_none() && name.is_some() {
        return Route::Unknown;
    }
    if subresource.is_some_and(|subresource| kind.subresource(subresource).is_none()) {
        return Route::Unknown;
    }
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Route::Resource(Resource { kind, namespace, name: owned(name), subresource: owned(subresource) })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (&'static str, Option<String>, Option<String>, Option<String>);

    fn parts(path: &str) -> Option<Parts> {
        match Route::parse(path, KindSet::builtin()) {
            Route::Resource(r) => Some((r.kind.plural, r.namespace, r.name, r.subresource)),
            _ => None,
        }
    }

    #[test]
    fn resource_paths_name_kind_namespace_name_and_subresource() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("/api/v1/pods"), Some(("pods", None, None, None)));
        assert_eq!(parts("/api/v1/namespaces/default/pods"), Some(("pods", some("default"), None, None)));
        assert_eq!(
            parts("/api/v1/namespaces/default/pods/a/log"),
            Some(("pods", some("default"), some("a"), some("log")))
        );
        assert_eq!(parts("/api/v1/namespaces"), Some(("namespaces", None, None, None)));
        assert_eq!(parts("/api/v1/namespaces/a/"), Some(("namespaces", None, some("a"), None)));
        assert_eq!(
            parts("/api/v1/namespaces/a/finalize"),
            Some(("namespaces", None, some("a"), some("finalize")))
        );
        assert_eq!(parts("/api/v1/nodes/n%31/status"), Some(("nodes", None, some("n1"), some("status"))));
        assert_eq!(
            parts("/apis/coordination.k8s.io/v1/namespaces/x/leases/y"),
            Some(("leases", some("x"), some("y"), None))
        );
    }

    #[test]
    fn paths_that_name_nothing_are_unknown() {
        for path in [
            "/api/v1/foos",
            "/api/v2/pods",
            "/api/v1/pods/x",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/pods/b/nonsense",
            "/api/v1/namespaces/a/pods/b/log/c",
            "/api/v1/namespaces//pods",
            "/apis/lab.example/v1/rockets",
            "/healthz/a/b",
            "/%ff",
        ] {
            assert_eq!(Route::parse(path, KindSet::builtin()), Route::Unknown, "{path}");
        }
        assert_eq!(Route::parse("/", KindSet::builtin()), Route::Document(Document::Paths));
        assert_eq!(
            Route::parse("/livez/ping", KindSet::builtin()),
            Route::Probe(Probe::Live, Some("ping".to_owned()))
        );
    }
}
