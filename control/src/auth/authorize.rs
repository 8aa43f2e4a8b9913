//! Whether an identity may do what it asks.
//!
//! One trait, [`Authorizer`], so that role-based rules can take the place of the fixed ones here.

use api::kinds::Subresource;
use api::{Kind, Status};

use super::{BARQUE_MEMBERS, Identity, SYSTEM_AUTHENTICATED, SYSTEM_MASTERS};

/// What a request wants to do, as Kubernetes' request attributes describe it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a path that is
    /// no resource the method in lower case.
    pub verb: &'a str,
    /// The kind, for a resource.
    pub kind: Option<&'static Kind>,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace; empty for all, or outside namespaces.
    pub namespace: &'a str,
    /// The object's name, or empty.
    pub name: &'a str,
    /// The path, for what is no resource.
    pub path: &'a str,
}

/// Decides about requests.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether the identity may do that.
    fn allows(&self, identity: &Identity, request: &Attributes<'_>) -> bool;
}

/// The fixed rules: `system:masters` may do everything, members may read everything (a connection into a pod
/// is not reading), a node agent may read its own Node (all else goes over its session), and whoever is known
/// may read what the API is made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupRules;

/// Paths that everybody known may read, with everything below them.
const DISCOVERY_PATHS: [&str; 7] = ["/api", "/apis", "/healthz", "/livez", "/openapi", "/readyz", "/version"];

impl Authorizer for GroupRules {
    fn allows(&self, identity: &Identity, request: &Attributes<'_>) -> bool {
        if identity.in_group(SYSTEM_MASTERS) {
            return true;
        }
        let Some(kind) = request.kind else {
            return identity.in_group(SYSTEM_AUTHENTICATED)
                && matches!(request.verb, "get" | "head")
                && is_discovery(request.path);
        };
        if identity.in_group(BARQUE_MEMBERS) {
            return matches!(request.verb, "get" | "list" | "watch")
                && !is_connection(kind, request.subresource);
        }
        let own_node =
            kind.group.is_empty() && kind.kind == "Node" && identity.node_name() == Some(request.name);
        own_node && request.verb == "get" && request.subresource.is_empty()
    }
}

/// Whether that is `exec`, `attach`, `portforward` and their like, which clients open with GET as well.
fn is_connection(kind: &Kind, subresource: &str) -> bool {
    kind.subresource(subresource).is_some_and(Subresource::is_connection)
}

fn is_discovery(path: &str) -> bool {
    path == "/"
        || DISCOVERY_PATHS.iter().any(|known| {
            path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

/// The refusal in Kubernetes' words.
pub fn refusal(identity: &Identity, request: &Attributes<'_>) -> Status {
    let Attributes { verb, subresource, namespace, name, path, .. } = *request;
    let Some(kind) = request.kind else {
        return Status::forbidden_path(format!(
            "forbidden: User {:?} cannot {verb} path {path:?}",
            identity.user
        ));
    };
    let resource = match subresource {
        "" => kind.plural.to_owned(),
        subresource => format!("{}/{subresource}", kind.plural),
    };
    let place = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let why = format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {:?} {place}",
        identity.user, kind.group
    );
    Status::forbidden(kind, name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, group: &str) -> Identity {
        Identity { user: user.to_owned(), groups: vec![group.to_owned(), SYSTEM_AUTHENTICATED.to_owned()] }
    }

    fn resource<'a>(verb: &'a str, kind: &str, name: &'a str) -> Attributes<'a> {
        let kind = api::kinds::by_kind("", "v1", kind);
        Attributes { verb, kind, name, ..Attributes::default() }
    }

    #[test]
    fn who_may_do_what() {
        let master = identity("admin", SYSTEM_MASTERS);
        let member = identity("barque:member:m1", BARQUE_MEMBERS);
        let node = identity("system:node:n1", super::super::SYSTEM_NODES);
        let other = identity("eve", "guests");
        let impostor = identity("system:node:n1", "guests");
        let version = Attributes { verb: "get", path: "/version", ..Attributes::default() };
        let metrics = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
        for (request, allowed) in [
            (resource("delete", "Pod", "x"), [true, false, false, false, false]),
            (resource("list", "Pod", ""), [true, true, false, false, false]),
            (
                Attributes { subresource: "exec", ..resource("get", "Pod", "x") },
                [true, false, false, false, false],
            ),
            (
                Attributes { subresource: "log", ..resource("get", "Pod", "x") },
                [true, true, false, false, false],
            ),
            (resource("get", "Node", "n1"), [true, true, true, false, false]),
            (resource("get", "Node", "n2"), [true, true, false, false, false]),
            (resource("update", "Node", "n1"), [true, false, false, false, false]),
            (version, [true; 5]),
            (metrics, [true, false, false, false, false]),
        ] {
            let got =
                [&master, &member, &node, &other, &impostor].map(|who| GroupRules.allows(who, &request));
            assert_eq!(got, allowed, "{request:?}");
        }
        assert!(!GroupRules.allows(&Identity::anonymous(), &version));
    }

    #[test]
    fn refusals_are_worded_as_kubernetes_words_them() {
        let eve = identity("eve", "guests");
        let list = Attributes { namespace: "default", ..resource("list", "Pod", "") };
        assert_eq!(
            refusal(&eve, &list).message(),
            "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let node = resource("delete", "Node", "n1");
        assert_eq!(
            refusal(&eve, &node).message(),
            "nodes \"n1\" is forbidden: User \"eve\" cannot delete resource \"nodes\" in API group \"\" at the cluster scope"
        );
        let path = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
        assert_eq!(refusal(&eve, &path).message(), "forbidden: User \"eve\" cannot get path \"/metrics\"");
    }
}
