//! The table of served kinds.
//!
//! Owns what is the same for every object of a kind: group, version, names, scope, verbs, categories and
//! subresources. Promises that a kind stands here only if the API behaves as Kubernetes does for it. Does
//! not hold per-kind rules: those are keyed by [`Kind::kind`] in the modules beside this one.

/// A subresource of a kind, such as `pods/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// The path segment after the object's name.
    pub name: &'static str,
    /// Group of the kind that the subresource takes and gives, when it differs from its parent's.
    pub group: &'static str,
    /// Version of that kind, when it differs from its parent's.
    pub version: &'static str,
    /// The kind that the subresource takes and gives.
    pub kind: &'static str,
    /// Verbs served.
    pub verbs: &'static [&'static str],
}

/// A served kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// CamelCase kind, as objects carry it.
    pub kind: &'static str,
    /// The resource: lower-case plural, as paths carry it.
    pub plural: &'static str,
    /// Lower-case singular.
    pub singular: &'static str,
    /// Abbreviations that `kubectl` accepts.
    pub short_names: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Groups of kinds that the kind belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Verbs served on the kind itself.
    pub verbs: &'static [&'static str],
    /// Subresources served.
    pub subresources: &'static [Subresource],
    /// Whether `status` is a subresource, so that a plain update leaves the status alone.
    pub has_status: bool,
    /// Whether `metadata.generation` counts the changes of the spec.
    pub has_generation: bool,
    /// Whether objects are taken in over the API but never stored (a review, a binding).
    pub virtual_only: bool,
}

const STORED: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

const fn status_of(kind: &'static str) -> Subresource {
    Subresource { name: "status", group: "", version: "", kind, verbs: STATUS_VERBS }
}

/// A subresource that is a connection; its options come as query parameters.
const fn connect_of(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, group: "", version: "", kind, verbs: &["create", "get"] }
}

/// How many of something there should be, the same for every kind that counts.
const SCALE: Subresource =
    Subresource { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: STATUS_VERBS };

impl Subresource {
    /// Whether it is a connection rather than a document.
    pub fn is_connection(&self) -> bool {
        self.kind.ends_with("Options")
    }
}

/// The group of roles and what binds them.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

const PLAIN: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    namespaced: true,
    categories: &[],
    verbs: STORED,
    subresources: &[],
    has_status: false,
    has_generation: false,
    virtual_only: false,
};

/// A question that is answered and not stored.
const fn review(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind { group, kind, plural, singular, namespaced: false, verbs: &["create"], virtual_only: true, ..PLAIN }
}

static KINDS: &[Kind] = &[
    Kind {
        kind: "Binding",
        plural: "bindings",
        singular: "binding",
        verbs: &["create"],
        virtual_only: true,
        ..PLAIN
    },
    Kind { kind: "ConfigMap", plural: "configmaps", singular: "configmap", short_names: &["cm"], ..PLAIN },
    Kind { kind: "Event", plural: "events", singular: "event", short_names: &["ev"], ..PLAIN },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[
            Subresource { name: "finalize", group: "", version: "", kind: "Namespace", verbs: &["update"] },
            status_of("Namespace"),
        ],
        has_status: true,
        ..PLAIN
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &[status_of("Node")],
        has_status: true,
        ..PLAIN
    },
    Kind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        subresources: &[status_of("PersistentVolumeClaim")],
        has_status: true,
        ..PLAIN
    },
    Kind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        namespaced: false,
        subresources: &[status_of("PersistentVolume")],
        has_status: true,
        ..PLAIN
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            connect_of("attach", "PodAttachOptions"),
            Subresource { name: "binding", group: "", version: "", kind: "Binding", verbs: &["create"] },
            Subresource {
                name: "ephemeralcontainers",
                group: "",
                version: "",
                kind: "Pod",
                verbs: STATUS_VERBS,
            },
            Subresource {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            },
            connect_of("exec", "PodExecOptions"),
            Subresource { name: "log", group: "", version: "", kind: "Pod", verbs: &["get"] },
            connect_of("portforward", "PodPortForwardOptions"),
            status_of("Pod"),
        ],
        has_status: true,
        has_generation: true,
        ..PLAIN
    },
    Kind { kind: "Secret", plural: "secrets", singular: "secret", ..PLAIN },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &[Subresource {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status_of("Deployment")],
        has_status: true,
        has_generation: true,
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status_of("ReplicaSet")],
        has_status: true,
        has_generation: true,
        ..PLAIN
    },
    review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview"),
    review("authentication.k8s.io", "TokenReview", "tokenreviews", "tokenreview"),
    Kind {
        namespaced: true,
        ..review(
            "authorization.k8s.io",
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        )
    },
    review(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    ),
    review(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
    ),
    review("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview"),
    Kind { group: "coordination.k8s.io", kind: "Lease", plural: "leases", singular: "lease", ..PLAIN },
    Kind {
        group: RBAC_GROUP,
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        ..PLAIN
    },
    Kind {
        group: RBAC_GROUP,
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        namespaced: false,
        ..PLAIN
    },
    Kind { group: RBAC_GROUP, kind: "RoleBinding", plural: "rolebindings", singular: "rolebinding", ..PLAIN },
    Kind { group: RBAC_GROUP, kind: "Role", plural: "roles", singular: "role", ..PLAIN },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        namespaced: false,
        ..PLAIN
    },
];

/// Every served kind, in discovery order: core group first, then groups by name; kinds by plural.
pub fn kinds() -> &'static [Kind] {
    KINDS
}

/// The kind that a path names.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.plural == plural && k.version == version && k.group == group)
}

/// The kind that an object names.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.kind == kind && k.version == version && k.group == group)
}

/// Splits an `apiVersion` into group and version (`v1` is the core group's).
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

impl Kind {
    /// The `apiVersion` that objects carry: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The resource qualified by its group, as error texts name it: `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The kind qualified by its group, as `is invalid` texts name it: `Pod`, `Deployment.apps`.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The kind of a list of these: `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// The subresource of that name, if served.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the verb is served on the kind itself.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified_by_group() {
        let pod = by_kind("", "v1", "Pod").unwrap();
        assert_eq!((pod.api_version().as_str(), pod.group_resource().as_str()), ("v1", "pods"));
        let lease = by_resource("coordination.k8s.io", "v1", "leases").unwrap();
        assert_eq!(lease.api_version(), "coordination.k8s.io/v1");
        assert_eq!(lease.group_resource(), "leases.coordination.k8s.io");
        assert_eq!(lease.group_kind(), "Lease.coordination.k8s.io");
        assert_eq!(split_api_version("apps/v1"), ("apps", "v1"));
        assert_eq!(split_api_version("v1"), ("", "v1"));
        assert!(by_resource("", "v1", "services").is_none());
    }

    #[test]
    fn the_table_is_in_discovery_order_and_without_twins() {
        let keys: Vec<_> = kinds().iter().map(|k| (k.group, k.plural)).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(keys, sorted);
        for kind in kinds() {
            assert_eq!(kind.has_status, kind.subresource("status").is_some(), "{}", kind.kind);
        }
    }
}
