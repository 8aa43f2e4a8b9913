//! How the lists of each kind merge.
//!
//! Owns the merge keys that Kubernetes' types declare. A list that is not named here is replaced whole; an
//! object that is not named here merges member by member.

use crate::kinds::Kind;

/// What a strategic merge patch must know of an object's shape.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) fields: &'static [(&'static str, Rule)],
}

/// How a field merges.
#[derive(Debug)]
pub(crate) enum Rule {
    /// An object with rules of its own.
    Object(&'static Shape),
    /// A list of objects, told apart by the value of the key.
    List {
        key: &'static str,
        item: &'static Shape,
        /// Whether clients say which members stay, since only one of several may be set.
        retain_keys: bool,
    },
    /// A list of texts or numbers without twins.
    Set,
}

impl Shape {
    pub(crate) fn rule(&self, field: &str) -> Option<&'static Rule> {
        self.fields.iter().find(|(name, _)| *name == field).map(|(_, rule)| rule)
    }
}

const fn by(key: &'static str) -> Rule {
    Rule::List { key, item: &FREE, retain_keys: false }
}

const fn retaining(key: &'static str) -> Rule {
    Rule::List { key, item: &FREE, retain_keys: true }
}

/// No lists that merge.
pub(crate) static FREE: Shape = Shape { fields: &[] };

static METADATA: Shape = Shape { fields: &[("finalizers", Rule::Set), ("ownerReferences", by("uid"))] };

static CONTAINER: Shape = Shape {
    fields: &[
        ("env", by("name")),
        ("ports", by("containerPort")),
        ("volumeDevices", by("devicePath")),
        ("volumeMounts", by("mountPath")),
    ],
};

static POD_SPEC: Shape = Shape {
    fields: &[
        ("containers", Rule::List { key: "name", item: &CONTAINER, retain_keys: false }),
        ("ephemeralContainers", Rule::List { key: "name", item: &CONTAINER, retain_keys: false }),
        ("hostAliases", by("ip")),
        ("imagePullSecrets", by("name")),
        ("initContainers", Rule::List { key: "name", item: &CONTAINER, retain_keys: false }),
        ("resourceClaims", retaining("name")),
        ("schedulingGates", by("name")),
        ("topologySpreadConstraints", by("topologyKey")),
        ("volumes", retaining("name")),
    ],
};

static POD: Shape = Shape {
    fields: &[
        ("metadata", Rule::Object(&METADATA)),
        ("spec", Rule::Object(&POD_SPEC)),
        (
            "status",
            Rule::Object(&Shape {
                fields: &[
                    ("conditions", by("type")),
                    ("hostIPs", by("ip")),
                    ("podIPs", by("ip")),
                    ("resourceClaimStatuses", retaining("name")),
                ],
            }),
        ),
    ],
};

static POD_TEMPLATE: Shape =
    Shape { fields: &[("metadata", Rule::Object(&METADATA)), ("spec", Rule::Object(&POD_SPEC))] };

static WORKLOAD: Shape = Shape {
    fields: &[
        ("metadata", Rule::Object(&METADATA)),
        ("spec", Rule::Object(&Shape { fields: &[("template", Rule::Object(&POD_TEMPLATE))] })),
        ("status", Rule::Object(&Shape { fields: &[("conditions", by("type"))] })),
    ],
};

static CRON_JOB: Shape = Shape {
    fields: &[
        ("metadata", Rule::Object(&METADATA)),
        (
            "spec",
            Rule::Object(&Shape {
                fields: &[(
                    "jobTemplate",
                    Rule::Object(&Shape {
                        fields: &[
                            ("metadata", Rule::Object(&METADATA)),
                            (
                                "spec",
                                Rule::Object(&Shape { fields: &[("template", Rule::Object(&POD_TEMPLATE))] }),
                            ),
                        ],
                    }),
                )],
            }),
        ),
    ],
};

static POD_TEMPLATE_OBJECT: Shape =
    Shape { fields: &[("metadata", Rule::Object(&METADATA)), ("template", Rule::Object(&POD_TEMPLATE))] };

static SERVICE: Shape = Shape {
    fields: &[
        ("metadata", Rule::Object(&METADATA)),
        ("spec", Rule::Object(&Shape { fields: &[("ports", by("port"))] })),
        ("status", Rule::Object(&Shape { fields: &[("conditions", by("type"))] })),
    ],
};

static WEBHOOKS: Shape = Shape { fields: &[("metadata", Rule::Object(&METADATA)), ("webhooks", by("name"))] };

// Taints are replaced whole, as Kubernetes' type says: `kubectl taint` sends the full list.
static NODE: Shape = Shape {
    fields: &[
        ("metadata", Rule::Object(&METADATA)),
        ("spec", Rule::Object(&Shape { fields: &[("podCIDRs", Rule::Set)] })),
        ("status", Rule::Object(&Shape { fields: &[("addresses", by("type")), ("conditions", by("type"))] })),
    ],
};

static NAMESPACE: Shape = Shape {
    fields: &[
        ("metadata", Rule::Object(&METADATA)),
        ("status", Rule::Object(&Shape { fields: &[("conditions", by("type"))] })),
    ],
};

static SERVICE_ACCOUNT: Shape =
    Shape { fields: &[("metadata", Rule::Object(&METADATA)), ("secrets", by("name"))] };

static OTHER: Shape = Shape { fields: &[("metadata", Rule::Object(&METADATA))] };

/// The shape of a kind's objects.
pub(crate) fn shape(kind: &Kind) -> &'static Shape {
    match (kind.group, kind.kind) {
        ("", "Pod") => &POD,
        ("", "PodTemplate") => &POD_TEMPLATE_OBJECT,
        ("", "ReplicationController")
        | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job") => &WORKLOAD,
        ("batch", "CronJob") => &CRON_JOB,
        ("", "Service") => &SERVICE,
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => &WEBHOOKS,
        ("", "Node") => &NODE,
        ("", "Namespace" | "PersistentVolumeClaim")
        | ("flowcontrol.apiserver.k8s.io", _)
        | ("policy", "PodDisruptionBudget")
        | ("autoscaling", "HorizontalPodAutoscaler") => &NAMESPACE,
        ("", "ServiceAccount") => &SERVICE_ACCOUNT,
        _ => &OTHER,
    }
}
