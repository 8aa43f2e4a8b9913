//! The messages that are read: field numbers of Kubernetes' `generated.proto` files, and what they are in JSON.
//!
//! The tables are constants and so cannot refer to themselves: what they nest is as deep as a body can nest.
//! Fields that are not in a table are skipped; `metadata.managedFields` is one, since only servers write it.

/// How a field is encoded, and what it becomes.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Text,
    Int32,
    Int64,
    Bool,
    /// `metav1.Time`: RFC 3339 with whole seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six decimals.
    MicroTime,
    /// Left out if nothing is in it.
    Message(&'static [Field]),
    Texts,
    Messages(&'static [Field]),
    TextMap,
    /// From text to bytes, which are base64 in JSON.
    BytesMap,
}

/// One row of a message's table.
pub(super) struct Field {
    pub(super) number: u32,
    /// The name in JSON.
    pub(super) name: &'static str,
    pub(super) ty: Type,
    /// Whether an empty text, a zero and a `false` say something. Those of plain fields are written though
    /// nobody set them; those of optional ones (pointers in Kubernetes' types) only when somebody did.
    pub(super) is_optional: bool,
}

const fn plain(number: u32, name: &'static str, ty: Type) -> Field {
    Field { number, name, ty, is_optional: false }
}

const fn optional(number: u32, name: &'static str, ty: Type) -> Field {
    Field { number, name, ty, is_optional: true }
}

/// The table of a kind.
pub(super) fn message(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    match (api_version, kind) {
        ("v1", "Binding") => Some(BINDING),
        ("v1", "ConfigMap") => Some(CONFIG_MAP),
        ("v1", "Namespace") => Some(NAMESPACE),
        ("v1", "Secret") => Some(SECRET),
        ("v1", "ServiceAccount") => Some(SERVICE_ACCOUNT),
        ("authentication.k8s.io/v1", "SelfSubjectReview") => Some(SELF_SUBJECT_REVIEW),
        ("authentication.k8s.io/v1", "TokenReview") => Some(TOKEN_REVIEW),
        ("authorization.k8s.io/v1", "LocalSubjectAccessReview" | "SubjectAccessReview") => {
            Some(SUBJECT_ACCESS_REVIEW)
        }
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => Some(SELF_SUBJECT_ACCESS_REVIEW),
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => Some(SELF_SUBJECT_RULES_REVIEW),
        ("coordination.k8s.io/v1", "Lease") => Some(LEASE),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => Some(CLUSTER_ROLE),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding" | "RoleBinding") => Some(ROLE_BINDING),
        ("rbac.authorization.k8s.io/v1", "Role") => Some(ROLE),
        ("policy/v1", "Eviction") => Some(EVICTION),
        ("authentication.k8s.io/v1", "TokenRequest") => Some(TOKEN_REQUEST),
        // Clients send it in the version of whatever they delete.
        (_, "DeleteOptions") => Some(DELETE_OPTIONS),
        _ => None,
    }
}

const OWNER_REFERENCE: &[Field] = &[
    plain(1, "kind", Type::Text),
    plain(3, "name", Type::Text),
    plain(4, "uid", Type::Text),
    plain(5, "apiVersion", Type::Text),
    optional(6, "controller", Type::Bool),
    optional(7, "blockOwnerDeletion", Type::Bool),
];

const OBJECT_META: &[Field] = &[
    plain(1, "name", Type::Text),
    plain(2, "generateName", Type::Text),
    plain(3, "namespace", Type::Text),
    plain(4, "selfLink", Type::Text),
    plain(5, "uid", Type::Text),
    plain(6, "resourceVersion", Type::Text),
    plain(7, "generation", Type::Int64),
    plain(8, "creationTimestamp", Type::Time),
    plain(9, "deletionTimestamp", Type::Time),
    optional(10, "deletionGracePeriodSeconds", Type::Int64),
    plain(11, "labels", Type::TextMap),
    plain(12, "annotations", Type::TextMap),
    plain(13, "ownerReferences", Type::Messages(OWNER_REFERENCE)),
    plain(14, "finalizers", Type::Texts),
];

const OBJECT_REFERENCE: &[Field] = &[
    plain(1, "kind", Type::Text),
    plain(2, "namespace", Type::Text),
    plain(3, "name", Type::Text),
    plain(4, "uid", Type::Text),
    plain(5, "apiVersion", Type::Text),
    plain(6, "resourceVersion", Type::Text),
    plain(7, "fieldPath", Type::Text),
];

const LOCAL_OBJECT_REFERENCE: &[Field] = &[plain(1, "name", Type::Text)];

const BINDING: &[Field] =
    &[plain(1, "metadata", Type::Message(OBJECT_META)), plain(2, "target", Type::Message(OBJECT_REFERENCE))];

const CONFIG_MAP: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "data", Type::TextMap),
    plain(3, "binaryData", Type::BytesMap),
    optional(4, "immutable", Type::Bool),
];

const NAMESPACE_SPEC: &[Field] = &[plain(1, "finalizers", Type::Texts)];

const NAMESPACE_CONDITION: &[Field] = &[
    plain(1, "type", Type::Text),
    plain(2, "status", Type::Text),
    plain(4, "lastTransitionTime", Type::Time),
    plain(5, "reason", Type::Text),
    plain(6, "message", Type::Text),
];

const NAMESPACE_STATUS: &[Field] =
    &[plain(1, "phase", Type::Text), plain(2, "conditions", Type::Messages(NAMESPACE_CONDITION))];

const NAMESPACE: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "spec", Type::Message(NAMESPACE_SPEC)),
    plain(3, "status", Type::Message(NAMESPACE_STATUS)),
];

const SECRET: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "data", Type::BytesMap),
    plain(3, "type", Type::Text),
    plain(4, "stringData", Type::TextMap),
    optional(5, "immutable", Type::Bool),
];

const SERVICE_ACCOUNT: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "secrets", Type::Messages(OBJECT_REFERENCE)),
    plain(3, "imagePullSecrets", Type::Messages(LOCAL_OBJECT_REFERENCE)),
    optional(4, "automountServiceAccountToken", Type::Bool),
];

const LEASE_SPEC: &[Field] = &[
    optional(1, "holderIdentity", Type::Text),
    optional(2, "leaseDurationSeconds", Type::Int32),
    plain(3, "acquireTime", Type::MicroTime),
    plain(4, "renewTime", Type::MicroTime),
    optional(5, "leaseTransitions", Type::Int32),
    optional(6, "strategy", Type::Text),
    optional(7, "preferredHolder", Type::Text),
];

const LEASE: &[Field] =
    &[plain(1, "metadata", Type::Message(OBJECT_META)), plain(2, "spec", Type::Message(LEASE_SPEC))];

const PRECONDITIONS: &[Field] = &[optional(1, "uid", Type::Text), optional(2, "resourceVersion", Type::Text)];

const DELETE_OPTIONS: &[Field] = &[
    optional(1, "gracePeriodSeconds", Type::Int64),
    plain(2, "preconditions", Type::Message(PRECONDITIONS)),
    optional(3, "orphanDependents", Type::Bool),
    optional(4, "propagationPolicy", Type::Text),
    plain(5, "dryRun", Type::Texts),
];

const TOKEN_REQUEST: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(
        2,
        "spec",
        Type::Message(&[
            plain(1, "audiences", Type::Texts),
            plain(
                3,
                "boundObjectRef",
                Type::Message(&[
                    plain(1, "kind", Type::Text),
                    plain(2, "apiVersion", Type::Text),
                    plain(3, "name", Type::Text),
                    plain(4, "uid", Type::Text),
                ]),
            ),
            optional(4, "expirationSeconds", Type::Int64),
        ]),
    ),
];

const EVICTION: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "deleteOptions", Type::Message(DELETE_OPTIONS)),
];

const SELF_SUBJECT_REVIEW: &[Field] = &[plain(1, "metadata", Type::Message(OBJECT_META))];

const TOKEN_REVIEW: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "spec", Type::Message(&[plain(1, "token", Type::Text), plain(2, "audiences", Type::Texts)])),
];

const RESOURCE_ATTRIBUTES: &[Field] = &[
    plain(1, "namespace", Type::Text),
    plain(2, "verb", Type::Text),
    plain(3, "group", Type::Text),
    plain(4, "version", Type::Text),
    plain(5, "resource", Type::Text),
    plain(6, "subresource", Type::Text),
    plain(7, "name", Type::Text),
];

const NON_RESOURCE_ATTRIBUTES: &[Field] = &[plain(1, "path", Type::Text), plain(2, "verb", Type::Text)];

const SUBJECT_ACCESS_REVIEW: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(
        2,
        "spec",
        Type::Message(&[
            plain(1, "resourceAttributes", Type::Message(RESOURCE_ATTRIBUTES)),
            plain(2, "nonResourceAttributes", Type::Message(NON_RESOURCE_ATTRIBUTES)),
            plain(3, "user", Type::Text),
            plain(4, "groups", Type::Texts),
            plain(6, "uid", Type::Text),
        ]),
    ),
];

const SELF_SUBJECT_ACCESS_REVIEW: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(
        2,
        "spec",
        Type::Message(&[
            plain(1, "resourceAttributes", Type::Message(RESOURCE_ATTRIBUTES)),
            plain(2, "nonResourceAttributes", Type::Message(NON_RESOURCE_ATTRIBUTES)),
        ]),
    ),
];

const SELF_SUBJECT_RULES_REVIEW: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "spec", Type::Message(&[plain(1, "namespace", Type::Text)])),
];

const POLICY_RULE: &[Field] = &[
    plain(1, "verbs", Type::Texts),
    plain(2, "apiGroups", Type::Texts),
    plain(3, "resources", Type::Texts),
    plain(4, "resourceNames", Type::Texts),
    plain(5, "nonResourceURLs", Type::Texts),
];

const ROLE: &[Field] =
    &[plain(1, "metadata", Type::Message(OBJECT_META)), plain(2, "rules", Type::Messages(POLICY_RULE))];

const LABEL_SELECTOR: &[Field] = &[
    plain(1, "matchLabels", Type::TextMap),
    plain(
        2,
        "matchExpressions",
        Type::Messages(&[
            plain(1, "key", Type::Text),
            plain(2, "operator", Type::Text),
            plain(3, "values", Type::Texts),
        ]),
    ),
];

const CLUSTER_ROLE: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(2, "rules", Type::Messages(POLICY_RULE)),
    plain(
        3,
        "aggregationRule",
        Type::Message(&[plain(1, "clusterRoleSelectors", Type::Messages(LABEL_SELECTOR))]),
    ),
];

const ROLE_BINDING: &[Field] = &[
    plain(1, "metadata", Type::Message(OBJECT_META)),
    plain(
        2,
        "subjects",
        Type::Messages(&[
            plain(1, "kind", Type::Text),
            plain(2, "apiGroup", Type::Text),
            plain(3, "name", Type::Text),
            plain(4, "namespace", Type::Text),
        ]),
    ),
    plain(
        3,
        "roleRef",
        Type::Message(&[
            plain(1, "apiGroup", Type::Text),
            plain(2, "kind", Type::Text),
            plain(3, "name", Type::Text),
        ]),
    ),
];
