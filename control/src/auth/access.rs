//! Whether an identity may do what it asks.
//!
//! Owns [`Access`], the one place that decides: fixed rules for those without whom a cluster does not work
//! (`system:masters` may do everything, members may read everything, a node what [`super::nodes`] says), then
//! roles ([`super::rbac`]). Keeps the roles current from the
//! store, a moment behind it, as every replica does for itself.

use std::sync::Arc;
use std::time::Duration;

use api::kinds::{RBAC_GROUP, Subresource};
use api::{Kind, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::nodes::{self, NodeCopies};
use super::rbac::policy::{Policy, Sources};
use super::rbac::rule::PolicyRule;
use super::{BARQUE_MEMBERS, Identity, SYSTEM_MASTERS};
use crate::object_store::{Error, SharedStore};
use crate::reflector::{Feed, Reflector, no_index};

/// After a change of roles or bindings, how long to wait for others before the policy is built anew.
const REBUILD_AFTER: Duration = Duration::from_millis(10);

/// A resource as requests and rules name it; it need not be one that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceName<'a> {
    /// Its API group; empty for the core group.
    pub group: &'a str,
    /// The plural.
    pub plural: &'a str,
}

impl ResourceName<'_> {
    /// The resource of a kind.
    pub fn of(kind: &'static Kind) -> ResourceName<'static> {
        ResourceName { group: kind.group, plural: kind.plural }
    }
}

/// What a request wants to do, as Kubernetes' request attributes describe it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or a word that only
    /// roles know, such as `bind`; for a path that is no resource the method in lower case.
    pub verb: &'a str,
    /// The resource; `None`: a path that is none.
    pub resource: Option<ResourceName<'a>>,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace; empty for all, or outside namespaces.
    pub namespace: &'a str,
    /// The object's name, or empty.
    pub name: &'a str,
    /// The path, for what is no resource.
    pub path: &'a str,
    /// The field selector of a list or a watch, as text.
    pub fields: &'a str,
}

impl<'a> Attributes<'a> {
    /// The one value that the field selector asks of a field.
    pub fn selected(&self, field: &str) -> Option<&'a str> {
        self.fields.split(',').find_map(|term| {
            let value = term.trim().strip_prefix(field)?.strip_prefix('=')?;
            Some(value.strip_prefix('=').unwrap_or(value))
        })
    }
}

/// Decides about requests; clones share the policy.
#[derive(Debug, Clone)]
pub struct Access {
    policy: watch::Receiver<Arc<Policy>>,
    copies: Copies,
    nodes: Option<Arc<NodeCopies>>,
}

/// This replica's copies of roles and bindings.
#[derive(Debug, Clone)]
struct Copies {
    cluster_roles: Reflector<SharedStore>,
    roles: Reflector<SharedStore>,
    cluster_role_bindings: Reflector<SharedStore>,
    role_bindings: Reflector<SharedStore>,
}

impl Access {
    /// Follows the roles and bindings of a store, in `tasks`, until `cancel` is cancelled.
    pub fn start(store: &SharedStore, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let reflect = |kind: &str| {
            let kind = api::kinds::by_kind(RBAC_GROUP, "v1", kind).expect("the table of kinds has these");
            let reflector = Reflector::new(store.clone(), kind, no_index);
            tasks.spawn(reflector.clone().run(cancel.clone()));
            reflector
        };
        let copies = Copies {
            cluster_roles: reflect("ClusterRole"),
            roles: reflect("Role"),
            cluster_role_bindings: reflect("ClusterRoleBinding"),
            role_bindings: reflect("RoleBinding"),
        };
        let (publisher, policy) = watch::channel(Arc::default());
        let (following, cancel) = (copies.clone(), cancel.clone());
        tasks.spawn(async move {
            cancel.run_until_cancelled(following.follow(publisher)).await;
        });
        Self { policy, copies, nodes: None }
    }

    /// The same, knowing what the pods of nodes need.
    #[must_use]
    pub(crate) fn with_nodes(self, nodes: NodeCopies) -> Self {
        Self { nodes: Some(Arc::new(nodes)), ..self }
    }

    /// Waits until the roles were read for the first time.
    pub async fn wait_synced(&self) {
        // The sender's task ends with the replica only.
        let _ = self.policy.clone().changed().await;
    }

    /// The copies of roles and bindings.
    pub(crate) fn reflectors(&self) -> [&Reflector<SharedStore>; 4] {
        self.copies.all()
    }

    /// Every ClusterRole, for who works on them.
    pub(crate) fn cluster_roles(&self) -> &Reflector<SharedStore> {
        &self.copies.cluster_roles
    }

    /// The policy with everything that was acknowledged before this call, by whichever replica.
    ///
    /// # Errors
    /// When the store cannot say now.
    pub(crate) async fn newest(&self) -> Result<Arc<Policy>, Error> {
        futures_util::future::try_join_all(self.copies.all().map(Reflector::sync)).await?;
        Ok(Arc::new(self.copies.policy()))
    }

    /// Whether the identity may do that.
    pub fn allows(&self, identity: &Identity, request: &Attributes<'_>) -> bool {
        self.reason(identity, request).is_some()
    }

    /// Why the identity may do that; `None`: it may not.
    pub fn reason(&self, identity: &Identity, request: &Attributes<'_>) -> Option<String> {
        if let Some(why) = fixed(identity, request) {
            return Some(why.to_owned());
        }
        let node = identity.node_name();
        if let Some(why) = node.and_then(|node| nodes::allows(node, self.nodes.as_deref(), request)) {
            return Some(why.to_owned());
        }
        let policy = self.policy.borrow();
        policy.allows(identity, request).map(|why| format!("RBAC: allowed by {why}"))
    }

    /// Every rule that is the identity's in a namespace.
    pub fn rules(&self, identity: &Identity, namespace: &str) -> Vec<PolicyRule> {
        let mut rules = fixed_rules(identity);
        rules.extend(self.policy.borrow().rules(identity, namespace));
        rules
    }
}

impl Copies {
    fn all(&self) -> [&Reflector<SharedStore>; 4] {
        [&self.cluster_roles, &self.roles, &self.cluster_role_bindings, &self.role_bindings]
    }

    fn policy(&self) -> Policy {
        Policy::build(&Sources {
            cluster_roles: self.cluster_roles.list(),
            roles: self.roles.list(),
            cluster_role_bindings: self.cluster_role_bindings.list(),
            role_bindings: self.role_bindings.list(),
        })
    }

    async fn follow(self, publisher: watch::Sender<Arc<Policy>>) {
        for reflector in self.all() {
            reflector.wait_synced().await;
        }
        let mut feeds = self.all().map(|reflector| Feed::new(reflector.clone()));
        loop {
            for feed in &mut feeds {
                while feed.try_next().is_some() {}
            }
            publisher.send_replace(Arc::new(self.policy()));
            let [first, second, third, fourth] = &mut feeds;
            tokio::select! {
                _ = first.next() => {}
                _ = second.next() => {}
                _ = third.next() => {}
                _ = fourth.next() => {}
            }
            tokio::time::sleep(REBUILD_AFTER).await;
        }
    }
}

/// Why somebody may do that who needs no role for it.
fn fixed(identity: &Identity, request: &Attributes<'_>) -> Option<&'static str> {
    if identity.in_group(SYSTEM_MASTERS) {
        return Some("the group system:masters may do everything");
    }
    let resource = request.resource?;
    if identity.in_group(BARQUE_MEMBERS)
        && matches!(request.verb, "get" | "list" | "watch")
        && !is_connection(resource, request.subresource)
    {
        return Some("members of the control plane may read everything");
    }
    let own_node = resource == ResourceName { group: "", plural: "nodes" }
        && identity.node_name() == Some(request.name)
        && request.verb == "get"
        && request.subresource.is_empty();
    own_node.then_some("a node may read itself")
}

/// The fixed rules in the form of roles, as far as that form can tell them.
fn fixed_rules(identity: &Identity) -> Vec<PolicyRule> {
    if identity.in_group(SYSTEM_MASTERS) {
        return vec![PolicyRule::on_resources(&["*"], &["*"], &["*"]), PolicyRule::on_paths(&["*"], &["*"])];
    }
    if identity.in_group(BARQUE_MEMBERS) {
        return vec![PolicyRule::on_resources(&["get", "list", "watch"], &["*"], &["*"])];
    }
    identity.node_name().map(nodes::rules).unwrap_or_default()
}

/// Whether that is `exec`, `attach`, `portforward` and their like, which clients open with GET as well.
fn is_connection(resource: ResourceName<'_>, subresource: &str) -> bool {
    let mut kinds = api::kinds().iter().filter(|k| k.group == resource.group && k.plural == resource.plural);
    kinds.any(|kind| kind.subresource(subresource).is_some_and(Subresource::is_connection))
}

/// The refusal in Kubernetes' words.
pub fn refusal(identity: &Identity, request: &Attributes<'_>) -> Status {
    let Attributes { verb, subresource, namespace, name, path, .. } = *request;
    let Some(ResourceName { group, plural }) = request.resource else {
        return Status::forbidden_path(format!(
            "forbidden: User {:?} cannot {verb} path {path:?}",
            identity.user
        ));
    };
    let resource = match subresource {
        "" => plural.to_owned(),
        subresource => format!("{plural}/{subresource}"),
    };
    let place = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let why = format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {group:?} {place}",
        identity.user
    );
    Status::forbidden_resource(group, plural, name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{SYSTEM_AUTHENTICATED, SYSTEM_NODES};

    fn identity(user: &str, group: &str) -> Identity {
        Identity {
            user: user.to_owned(),
            groups: vec![group.to_owned(), SYSTEM_AUTHENTICATED.to_owned()],
            ..Identity::default()
        }
    }

    fn resource<'a>(verb: &'a str, plural: &'a str, name: &'a str) -> Attributes<'a> {
        let resource = Some(ResourceName { group: "", plural });
        Attributes { verb, resource, name, ..Attributes::default() }
    }

    #[test]
    fn who_may_do_what_without_a_role() {
        let master = identity("admin", SYSTEM_MASTERS);
        let member = identity("barque:member:m1", BARQUE_MEMBERS);
        let node = identity("system:node:n1", SYSTEM_NODES);
        let other = identity("eve", "guests");
        let impostor = identity("system:node:n1", "guests");
        let metrics = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
        for (request, allowed) in [
            (resource("delete", "pods", "x"), [true, false, false, false, false]),
            (resource("list", "pods", ""), [true, true, false, false, false]),
            (
                Attributes { subresource: "exec", ..resource("get", "pods", "x") },
                [true, false, false, false, false],
            ),
            (
                Attributes { subresource: "log", ..resource("get", "pods", "x") },
                [true, true, false, false, false],
            ),
            (resource("get", "nodes", "n1"), [true, true, true, false, false]),
            (resource("get", "nodes", "n2"), [true, true, false, false, false]),
            (resource("update", "nodes", "n1"), [true, false, false, false, false]),
            (metrics, [true, false, false, false, false]),
        ] {
            let got = [&master, &member, &node, &other, &impostor].map(|who| fixed(who, &request).is_some());
            assert_eq!(got, allowed, "{request:?}");
        }
        assert!(fixed(&Identity::anonymous(), &resource("get", "pods", "x")).is_none());
    }

    #[test]
    fn refusals_are_worded_as_kubernetes_words_them() {
        let eve = identity("eve", "guests");
        let list = Attributes { namespace: "default", ..resource("list", "pods", "") };
        assert_eq!(
            refusal(&eve, &list).message(),
            "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let node = resource("delete", "nodes", "n1");
        assert_eq!(
            refusal(&eve, &node).message(),
            "nodes \"n1\" is forbidden: User \"eve\" cannot delete resource \"nodes\" in API group \"\" at the cluster scope"
        );
        let path = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
        assert_eq!(refusal(&eve, &path).message(), "forbidden: User \"eve\" cannot get path \"/metrics\"");
    }
}
