//! Every role and every binding of the cluster, arranged so that a request costs what its own subjects were
//! granted and not what others were. Pure: built from objects, then only read.

use std::collections::HashMap;
use std::sync::Arc;

use api::object;
use serde::Deserialize;

use super::rule::PolicyRule;
use crate::auth::{Attributes, Identity};
use crate::registry::Object;

type Rules = Arc<[PolicyRule]>;

/// The objects that a policy is built from.
#[derive(Debug, Default)]
pub struct Sources {
    /// Every ClusterRole.
    pub cluster_roles: Vec<Arc<Object>>,
    /// Every Role.
    pub roles: Vec<Arc<Object>>,
    /// Every ClusterRoleBinding.
    pub cluster_role_bindings: Vec<Arc<Object>>,
    /// Every RoleBinding.
    pub role_bindings: Vec<Arc<Object>>,
}

/// Which role a binding names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Role {
    rules: Option<Vec<PolicyRule>>,
}

/// What one binding gives one subject.
#[derive(Debug, Clone)]
struct Grant {
    /// In which namespace; empty: everywhere, and outside namespaces.
    namespace: String,
    rules: Rules,
    /// Binding, role and subject, as a review's reason names them.
    reason: String,
}

/// Who may do what.
#[derive(Debug, Default)]
pub struct Policy {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    cluster_roles: HashMap<String, Rules>,
    /// By namespace and name.
    roles: HashMap<(String, String), Rules>,
}

impl Policy {
    /// Arranges what there is. A binding to a role that does not exist gives nothing.
    pub fn build(sources: &Sources) -> Self {
        let mut policy = Self::default();
        for role in &sources.cluster_roles {
            policy.cluster_roles.insert(role.name().to_owned(), rules_of(role));
        }
        for role in &sources.roles {
            let key = (object::namespace(role.value()).to_owned(), role.name().to_owned());
            policy.roles.insert(key, rules_of(role));
        }
        for binding in &sources.cluster_role_bindings {
            policy.bind(binding, "");
        }
        for binding in &sources.role_bindings {
            policy.bind(binding, object::namespace(binding.value()));
        }
        policy
    }

    fn bind(&mut self, binding: &Object, namespace: &str) {
        let Binding { subjects, role_ref } = binding.decode().unwrap_or_default();
        let Some(rules) = self.role(&role_ref, namespace) else { return };
        let of = match namespace {
            "" => format!("ClusterRoleBinding {:?}", binding.name()),
            namespace => format!("RoleBinding {:?}", format!("{}/{namespace}", binding.name())),
        };
        for subject in subjects.unwrap_or_default() {
            let Subject { kind, name, namespace: of_account } = subject;
            let (holders, holder, shown) = match kind.as_str() {
                "User" => (&mut self.users, name.clone(), name),
                "Group" => (&mut self.groups, name.clone(), name),
                "ServiceAccount" => {
                    let home = if of_account.is_empty() { namespace } else { &of_account };
                    (
                        &mut self.users,
                        format!("system:serviceaccount:{home}:{name}"),
                        format!("{name}/{home}"),
                    )
                }
                _ => continue,
            };
            let reason = format!("{of} of {} {:?} to {kind} {shown:?}", role_ref.kind, role_ref.name);
            let grant = Grant { namespace: namespace.to_owned(), rules: rules.clone(), reason };
            holders.entry(holder).or_default().push(grant);
        }
    }

    /// What a role allows; `namespace` is that of the binding which names it.
    pub fn role(&self, role: &RoleRef, namespace: &str) -> Option<Rules> {
        match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name).cloned(),
            _ => self.roles.get(&(namespace.to_owned(), role.name.clone())).cloned(),
        }
    }

    fn grants<'p, 'a>(
        &'p self,
        identity: &'a Identity,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'p Grant> + use<'p, 'a> {
        let own = self.users.get(&identity.user).into_iter();
        let of_groups = identity.groups.iter().filter_map(|group| self.groups.get(group));
        own.chain(of_groups)
            .flatten()
            .filter(move |grant| grant.namespace.is_empty() || grant.namespace == namespace)
    }

    /// Which binding allows a request, in the words of a review's reason.
    pub fn allows(&self, identity: &Identity, request: &Attributes<'_>) -> Option<&str> {
        let mut grants = self.grants(identity, request.namespace);
        grants
            .find(|grant| grant.rules.iter().any(|rule| rule.allows(request)))
            .map(|grant| grant.reason.as_str())
    }

    /// Every rule that is somebody's in a namespace; those for the whole cluster are among them.
    pub fn rules(&self, identity: &Identity, namespace: &str) -> Vec<PolicyRule> {
        self.grants(identity, namespace).flat_map(|grant| grant.rules.iter().cloned()).collect()
    }
}

fn rules_of(role: &Object) -> Rules {
    role.decode::<Role>().unwrap_or_default().rules.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::{ResourceName, SYSTEM_AUTHENTICATED};
    use crate::object_store::StoredObject;

    fn stored(kind: &str, namespace: &str, name: &str, mut value: Value) -> Arc<Object> {
        let kind = api::kinds::by_kind(api::kinds::RBAC_GROUP, "v1", kind).expect("a kind");
        value["metadata"] = json!({"name": name, "namespace": namespace});
        let key = crate::registry::keys::object(kind, namespace, name);
        let value = serde_json::to_vec(&value).expect("JSON").into();
        Arc::new(Object::new(kind, StoredObject { key, value, create_revision: 1, mod_revision: 1 }))
    }

    fn read(resource: &str) -> Value {
        json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]})
    }

    #[test]
    fn bindings_lead_from_subjects_to_rules() {
        let bound = |role: Value, subject: Value| json!({"roleRef": role, "subjects": [subject]});
        let sources = Sources {
            cluster_roles: vec![stored("ClusterRole", "", "nodes", read("nodes"))],
            roles: vec![stored("Role", "a", "pods", read("pods"))],
            cluster_role_bindings: vec![
                stored(
                    "ClusterRoleBinding",
                    "",
                    "b1",
                    bound(
                        json!({"kind": "ClusterRole", "name": "nodes"}),
                        json!({"kind": "Group", "name": "ops"}),
                    ),
                ),
                stored(
                    "ClusterRoleBinding",
                    "",
                    "b2",
                    bound(
                        json!({"kind": "ClusterRole", "name": "gone"}),
                        json!({"kind": "Group", "name": "ops"}),
                    ),
                ),
            ],
            role_bindings: vec![
                stored(
                    "RoleBinding",
                    "a",
                    "b3",
                    bound(
                        json!({"kind": "Role", "name": "pods"}),
                        json!({"kind": "ServiceAccount", "name": "robot", "namespace": "b"}),
                    ),
                ),
                stored(
                    "RoleBinding",
                    "b",
                    "b4",
                    bound(json!({"kind": "Role", "name": "pods"}), json!({"kind": "User", "name": "eve"})),
                ),
            ],
        };
        let policy = Policy::build(&sources);
        let who = |user: &str, group: &str| Identity {
            user: user.to_owned(),
            groups: vec![group.to_owned(), SYSTEM_AUTHENTICATED.to_owned()],
            ..Identity::default()
        };
        let get = |plural: &'static str, namespace: &'static str| Attributes {
            verb: "get",
            resource: Some(ResourceName { group: "", plural }),
            namespace,
            name: "x",
            ..Attributes::default()
        };
        let robot = who("system:serviceaccount:b:robot", "system:serviceaccounts");
        assert_eq!(
            policy.allows(&who("bob", "ops"), &get("nodes", "")),
            Some(r#"ClusterRoleBinding "b1" of ClusterRole "nodes" to Group "ops""#)
        );
        assert_eq!(policy.allows(&who("bob", "others"), &get("nodes", "")), None);
        assert_eq!(
            policy.allows(&robot, &get("pods", "a")),
            Some(r#"RoleBinding "b3/a" of Role "pods" to ServiceAccount "robot/b""#)
        );
        assert_eq!(policy.allows(&robot, &get("pods", "b")), None);
        assert_eq!(policy.allows(&robot, &get("pods", "")), None);
        assert_eq!(
            policy.allows(&who("eve", "x"), &get("pods", "b")),
            None,
            "the role is another namespace's"
        );
        assert_eq!(policy.rules(&robot, "a").len(), 1);
        assert!(policy.rules(&robot, "b").is_empty());
    }
}
