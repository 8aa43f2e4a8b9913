//! The rows of the table of kinds, in discovery order: core group first, then groups by name; kinds by plural.

use super::{EXTENSIONS_GROUP, FLOW_CONTROL_GROUP, Kind, METRICS_GROUP, RBAC_GROUP, Subresource};

const STORED: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Verbs of a subresource that is a part of the object.
pub(crate) const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

const ADMISSION_GROUP: &str = "admissionregistration.k8s.io";
const STORAGE_GROUP: &str = "storage.k8s.io";

/// A subresource that is a part of the object itself.
const fn part_of(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, group: "", version: "", kind, verbs: STATUS_VERBS }
}

const fn status_of(kind: &'static str) -> Subresource {
    part_of("status", kind)
}

/// A subresource that is a connection; its options come as query parameters.
const fn connect_of(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, group: "", version: "", kind, verbs: &["create", "get"] }
}

/// HTTP to what stands behind an object.
const fn proxy_of(kind: &'static str) -> Subresource {
    Subresource { name: "proxy", group: "", version: "", kind, verbs: PROXY_VERBS }
}

/// How many of something there should be, the same for every kind that counts.
pub(crate) const SCALE: Subresource =
    Subresource { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: STATUS_VERBS };

/// A kind that says nothing of itself.
pub(crate) const PLAIN: Kind = Kind {
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
    list: "",
    stored_as: None,
    is_custom: false,
};

/// A kind whose objects live in namespaces.
const fn named(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind { group, kind, plural, singular, ..PLAIN }
}

/// A kind whose objects live outside namespaces.
const fn wide(group: &'static str, kind: &'static str, plural: &'static str, singular: &'static str) -> Kind {
    Kind { namespaced: false, ..named(group, kind, plural, singular) }
}

/// A question that is answered and not stored.
const fn review(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind { verbs: &["create"], virtual_only: true, ..wide(group, kind, plural, singular) }
}

/// Figures that are shown and never stored.
const fn measured(kind: Kind) -> Kind {
    Kind { version: "v1beta1", verbs: &["get", "list"], virtual_only: true, ..kind }
}

pub(super) static KINDS: &[Kind] = &[
    Kind { verbs: &["create"], virtual_only: true, ..named("", "Binding", "bindings", "binding") },
    Kind { short_names: &["cm"], ..named("", "ConfigMap", "configmaps", "configmap") },
    Kind { short_names: &["ep"], ..named("", "Endpoints", "endpoints", "endpoints") },
    Kind { short_names: &["ev"], ..named("", "Event", "events", "event") },
    Kind { short_names: &["limits"], ..named("", "LimitRange", "limitranges", "limitrange") },
    Kind {
        short_names: &["ns"],
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[
            Subresource { name: "finalize", group: "", version: "", kind: "Namespace", verbs: &["update"] },
            status_of("Namespace"),
        ],
        has_status: true,
        ..wide("", "Namespace", "namespaces", "namespace")
    },
    Kind {
        short_names: &["no"],
        subresources: &[proxy_of("NodeProxyOptions"), status_of("Node")],
        has_status: true,
        ..wide("", "Node", "nodes", "node")
    },
    Kind {
        short_names: &["pvc"],
        subresources: &[status_of("PersistentVolumeClaim")],
        has_status: true,
        ..named("", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim")
    },
    Kind {
        short_names: &["pv"],
        subresources: &[status_of("PersistentVolume")],
        has_status: true,
        ..wide("", "PersistentVolume", "persistentvolumes", "persistentvolume")
    },
    Kind {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            connect_of("attach", "PodAttachOptions"),
            Subresource { name: "binding", group: "", version: "", kind: "Binding", verbs: &["create"] },
            part_of("ephemeralcontainers", "Pod"),
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
            proxy_of("PodProxyOptions"),
            status_of("Pod"),
        ],
        has_status: true,
        has_generation: true,
        ..named("", "Pod", "pods", "pod")
    },
    Kind { has_generation: true, ..named("", "PodTemplate", "podtemplates", "podtemplate") },
    Kind {
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[SCALE, status_of("ReplicationController")],
        has_status: true,
        has_generation: true,
        ..named("", "ReplicationController", "replicationcontrollers", "replicationcontroller")
    },
    Kind {
        short_names: &["quota"],
        subresources: &[status_of("ResourceQuota")],
        has_status: true,
        ..named("", "ResourceQuota", "resourcequotas", "resourcequota")
    },
    named("", "Secret", "secrets", "secret"),
    Kind {
        short_names: &["sa"],
        subresources: &[Subresource {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        ..named("", "ServiceAccount", "serviceaccounts", "serviceaccount")
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[proxy_of("ServiceProxyOptions"), status_of("Service")],
        has_status: true,
        ..named("", "Service", "services", "service")
    },
    Kind {
        categories: &["api-extensions"],
        has_generation: true,
        ..wide(
            ADMISSION_GROUP,
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
            "mutatingwebhookconfiguration",
        )
    },
    Kind {
        categories: &["api-extensions"],
        subresources: &[status_of("ValidatingAdmissionPolicy")],
        has_status: true,
        has_generation: true,
        ..wide(
            ADMISSION_GROUP,
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            "validatingadmissionpolicy",
        )
    },
    Kind {
        categories: &["api-extensions"],
        has_generation: true,
        ..wide(
            ADMISSION_GROUP,
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            "validatingadmissionpolicybinding",
        )
    },
    Kind {
        categories: &["api-extensions"],
        has_generation: true,
        ..wide(
            ADMISSION_GROUP,
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
            "validatingwebhookconfiguration",
        )
    },
    Kind {
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        subresources: &[status_of("CustomResourceDefinition")],
        has_status: true,
        has_generation: true,
        ..wide(
            EXTENSIONS_GROUP,
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "customresourcedefinition",
        )
    },
    named("apps", "ControllerRevision", "controllerrevisions", "controllerrevision"),
    Kind {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status_of("DaemonSet")],
        has_status: true,
        has_generation: true,
        ..named("apps", "DaemonSet", "daemonsets", "daemonset")
    },
    Kind {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status_of("Deployment")],
        has_status: true,
        has_generation: true,
        ..named("apps", "Deployment", "deployments", "deployment")
    },
    Kind {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status_of("ReplicaSet")],
        has_status: true,
        has_generation: true,
        ..named("apps", "ReplicaSet", "replicasets", "replicaset")
    },
    Kind {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[SCALE, status_of("StatefulSet")],
        has_status: true,
        has_generation: true,
        ..named("apps", "StatefulSet", "statefulsets", "statefulset")
    },
    review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview"),
    // What kubectl 1.27 asks for.
    Kind {
        version: "v1beta1",
        stored_as: Some(("authentication.k8s.io", "v1")),
        ..review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview")
    },
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
    Kind {
        version: "v2",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status_of("HorizontalPodAutoscaler")],
        has_status: true,
        ..named(
            "autoscaling",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
        )
    },
    Kind {
        stored_as: Some(("autoscaling", "v2")),
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status_of("HorizontalPodAutoscaler")],
        has_status: true,
        ..named(
            "autoscaling",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
        )
    },
    Kind {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[status_of("CronJob")],
        has_status: true,
        has_generation: true,
        ..named("batch", "CronJob", "cronjobs", "cronjob")
    },
    Kind {
        categories: &["all"],
        subresources: &[status_of("Job")],
        has_status: true,
        has_generation: true,
        ..named("batch", "Job", "jobs", "job")
    },
    Kind {
        short_names: &["csr"],
        subresources: &[
            part_of("approval", "CertificateSigningRequest"),
            status_of("CertificateSigningRequest"),
        ],
        has_status: true,
        ..wide(
            "certificates.k8s.io",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "certificatesigningrequest",
        )
    },
    named("coordination.k8s.io", "Lease", "leases", "lease"),
    Kind {
        has_generation: true,
        ..named("discovery.k8s.io", "EndpointSlice", "endpointslices", "endpointslice")
    },
    Kind {
        stored_as: Some(("", "v1")),
        // `ev` is the core group's: kubectl would warn each time that it could mean either.
        short_names: &[],
        ..named("events.k8s.io", "Event", "events", "event")
    },
    Kind {
        subresources: &[status_of("FlowSchema")],
        has_status: true,
        has_generation: true,
        ..wide(FLOW_CONTROL_GROUP, "FlowSchema", "flowschemas", "flowschema")
    },
    Kind {
        subresources: &[status_of("PriorityLevelConfiguration")],
        has_status: true,
        has_generation: true,
        ..wide(
            FLOW_CONTROL_GROUP,
            "PriorityLevelConfiguration",
            "prioritylevelconfigurations",
            "prioritylevelconfiguration",
        )
    },
    measured(wide(METRICS_GROUP, "NodeMetrics", "nodes", "")),
    measured(named(METRICS_GROUP, "PodMetrics", "pods", "")),
    Kind {
        has_generation: true,
        ..wide("networking.k8s.io", "IngressClass", "ingressclasses", "ingressclass")
    },
    Kind {
        short_names: &["ing"],
        subresources: &[status_of("Ingress")],
        has_status: true,
        has_generation: true,
        ..named("networking.k8s.io", "Ingress", "ingresses", "ingress")
    },
    Kind {
        short_names: &["netpol"],
        has_generation: true,
        ..named("networking.k8s.io", "NetworkPolicy", "networkpolicies", "networkpolicy")
    },
    wide("node.k8s.io", "RuntimeClass", "runtimeclasses", "runtimeclass"),
    Kind {
        short_names: &["pdb"],
        subresources: &[status_of("PodDisruptionBudget")],
        has_status: true,
        has_generation: true,
        ..named("policy", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget")
    },
    wide(RBAC_GROUP, "ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding"),
    wide(RBAC_GROUP, "ClusterRole", "clusterroles", "clusterrole"),
    named(RBAC_GROUP, "RoleBinding", "rolebindings", "rolebinding"),
    named(RBAC_GROUP, "Role", "roles", "role"),
    Kind {
        short_names: &["pc"],
        has_generation: true,
        ..wide("scheduling.k8s.io", "PriorityClass", "priorityclasses", "priorityclass")
    },
    wide(STORAGE_GROUP, "CSIDriver", "csidrivers", "csidriver"),
    wide(STORAGE_GROUP, "CSINode", "csinodes", "csinode"),
    named(STORAGE_GROUP, "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity"),
    Kind { short_names: &["sc"], ..wide(STORAGE_GROUP, "StorageClass", "storageclasses", "storageclass") },
    Kind {
        subresources: &[status_of("VolumeAttachment")],
        has_status: true,
        ..wide(STORAGE_GROUP, "VolumeAttachment", "volumeattachments", "volumeattachment")
    },
];
