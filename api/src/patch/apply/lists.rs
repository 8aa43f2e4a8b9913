//! Lists whose items are told apart, maps and structs that are one value: the `x-kubernetes-list-type`,
//! `x-kubernetes-list-map-keys` and `x-kubernetes-map-type` of Kubernetes' types.
//!
//! A list that is not named here is one value; a map or a struct that is not, is merged member by member.

/// How the items of a list are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListType {
    /// By the values of these members.
    Keyed(&'static [&'static str]),
    /// By themselves.
    Set,
}

use ListType::{Keyed, Set};

const TYPE: ListType = Keyed(&["type"]);
const NAME: ListType = Keyed(&["name"]);
const PORTS: ListType = Keyed(&["containerPort", "protocol"]);

/// By type and field, sorted.
const LISTS: &[(&str, &str, ListType)] = &[
    ("CSIDriverSpec", "volumeLifecycleModes", Set),
    ("CSINodeSpec", "drivers", NAME),
    ("CertificateSigningRequestStatus", "conditions", TYPE),
    ("ComponentStatus", "conditions", TYPE),
    ("Container", "env", NAME),
    ("Container", "ports", PORTS),
    ("Container", "volumeDevices", Keyed(&["devicePath"])),
    ("Container", "volumeMounts", Keyed(&["mountPath"])),
    ("ContainerStatus", "allocatedResourcesStatus", NAME),
    ("ContainerStatus", "volumeMounts", Keyed(&["mountPath"])),
    ("CustomResourceDefinitionStatus", "conditions", TYPE),
    ("DaemonSetStatus", "conditions", TYPE),
    ("DeploymentStatus", "conditions", TYPE),
    ("Endpoint", "addresses", Set),
    ("EphemeralContainerCommon", "env", NAME),
    ("EphemeralContainerCommon", "ports", PORTS),
    ("EphemeralContainerCommon", "volumeDevices", Keyed(&["devicePath"])),
    ("EphemeralContainerCommon", "volumeMounts", Keyed(&["mountPath"])),
    ("FlowSchemaStatus", "conditions", TYPE),
    ("HorizontalPodAutoscalerStatus", "conditions", TYPE),
    ("JSONSchemaProps", "x-kubernetes-validations", Keyed(&["rule"])),
    ("MutatingWebhook", "matchConditions", NAME),
    ("MutatingWebhookConfiguration", "webhooks", NAME),
    ("NamespaceStatus", "conditions", TYPE),
    ("NodeSpec", "podCIDRs", Set),
    ("NodeStatus", "addresses", TYPE),
    ("NodeStatus", "conditions", TYPE),
    ("NonResourcePolicyRule", "nonResourceURLs", Set),
    ("NonResourcePolicyRule", "verbs", Set),
    ("ObjectMeta", "finalizers", Set),
    ("ObjectMeta", "ownerReferences", Keyed(&["uid"])),
    ("PersistentVolumeClaimStatus", "conditions", TYPE),
    ("PodDisruptionBudgetStatus", "conditions", TYPE),
    ("PodFailurePolicyOnExitCodesRequirement", "values", Set),
    ("PodSpec", "containers", NAME),
    ("PodSpec", "ephemeralContainers", NAME),
    ("PodSpec", "hostAliases", Keyed(&["ip"])),
    ("PodSpec", "imagePullSecrets", NAME),
    ("PodSpec", "initContainers", NAME),
    ("PodSpec", "resourceClaims", NAME),
    ("PodSpec", "schedulingGates", NAME),
    ("PodSpec", "topologySpreadConstraints", Keyed(&["topologyKey", "whenUnsatisfiable"])),
    ("PodSpec", "volumes", NAME),
    ("PodStatus", "conditions", TYPE),
    ("PodStatus", "hostIPs", Keyed(&["ip"])),
    ("PodStatus", "podIPs", Keyed(&["ip"])),
    ("PodStatus", "resourceClaimStatuses", NAME),
    ("PriorityLevelConfigurationStatus", "conditions", TYPE),
    ("ReplicaSetStatus", "conditions", TYPE),
    ("ReplicationControllerStatus", "conditions", TYPE),
    ("ResourcePolicyRule", "apiGroups", Set),
    ("ResourcePolicyRule", "namespaces", Set),
    ("ResourcePolicyRule", "resources", Set),
    ("ResourcePolicyRule", "verbs", Set),
    ("ResourceRequirements", "claims", NAME),
    ("ResourceStatus", "resources", Keyed(&["resourceID"])),
    ("ServiceAccount", "secrets", NAME),
    ("ServiceCIDRStatus", "conditions", TYPE),
    ("ServiceSpec", "ports", Keyed(&["port", "protocol"])),
    ("ServiceStatus", "conditions", TYPE),
    ("StatefulSetStatus", "conditions", TYPE),
    ("UncountedTerminatedPods", "failed", Set),
    ("UncountedTerminatedPods", "succeeded", Set),
    ("ValidatingAdmissionPolicyBindingSpec", "validationActions", Set),
    ("ValidatingAdmissionPolicySpec", "matchConditions", NAME),
    ("ValidatingAdmissionPolicySpec", "variables", NAME),
    ("ValidatingAdmissionPolicyStatus", "conditions", TYPE),
    ("ValidatingWebhook", "matchConditions", NAME),
    ("ValidatingWebhookConfiguration", "webhooks", NAME),
];

/// Maps that are one value, sorted.
const ATOMIC_MAPS: &[(&str, &str)] = &[
    ("PodSpec", "nodeSelector"),
    ("ReplicationControllerSpec", "selector"),
    ("Scheduling", "nodeSelector"),
    ("ServiceSpec", "selector"),
];

/// Structs that are one value, sorted.
const ATOMIC_STRUCTS: &[&str] = &[
    "ConfigMapKeySelector",
    "CrossVersionObjectReference",
    "EndpointAddress",
    "EndpointPort",
    "FlowDistinguisherMethod",
    "LabelSelector",
    "LocalObjectReference",
    "MatchResources",
    "NamedRuleWithOperations",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "ParamKind",
    "ParamRef",
    "ResourceFieldSelector",
    "RoleRef",
    "ScopeSelector",
    "ScopedResourceSelectorRequirement",
    "SecretKeySelector",
    "SecretReference",
    "ServiceBackendPort",
    "Subject",
    "TopologySelectorTerm",
    "TypedLocalObjectReference",
];

/// Members of keys that may be left out, and what they then are.
const KEY_DEFAULTS: &[(&str, &str)] = &[("protocol", "TCP")];

/// The type of a list, unless it is one value.
pub(super) fn list_type(owner: &str, field: &str) -> Option<ListType> {
    let index = LISTS.binary_search_by_key(&(owner, field), |(owner, field, _)| (owner, field)).ok()?;
    LISTS.get(index).map(|(_, _, ty)| *ty)
}

/// Whether a map is one value.
pub(super) fn is_atomic_map(owner: &str, field: &str) -> bool {
    ATOMIC_MAPS.binary_search(&(owner, field)).is_ok()
}

/// Whether a struct is one value.
pub(super) fn is_atomic_struct(name: &str) -> bool {
    ATOMIC_STRUCTS.binary_search(&name).is_ok()
}

/// What a key's member is when it is left out.
pub(super) fn key_default(key: &str) -> Option<&'static str> {
    KEY_DEFAULTS.iter().find(|(own, _)| *own == key).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_and_name_what_there_is() {
        assert!(LISTS.is_sorted_by_key(|(owner, field, _)| (*owner, *field)));
        assert!(ATOMIC_MAPS.is_sorted() && ATOMIC_STRUCTS.is_sorted());
        let types: std::collections::BTreeSet<&str> =
            crate::protobuf::table::names().map(|(_, name)| *name).collect();
        for (owner, ..) in LISTS {
            assert!(types.contains(owner), "{owner}");
        }
        for name in ATOMIC_STRUCTS.iter().chain(ATOMIC_MAPS.iter().map(|(owner, _)| owner)) {
            assert!(types.contains(name), "{name}");
        }
    }
}
