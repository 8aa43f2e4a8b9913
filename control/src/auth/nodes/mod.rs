//! What a node may do over REST: read what its own pods refer to, and write itself.
//!
//! Owns the rights of an identity `system:node:NAME` in `system:nodes` (the node authorizer of the Kubernetes
//! documentation) and, in [`restriction`], what of the writes it may make is refused all the same. Our own agents
//! use their session and need none of this; it holds for whoever has a node's certificate. What a node may read
//! follows from the pods bound to it, as this replica has them.

pub(crate) mod restriction;

use std::sync::Arc;

use api::references::{self, Reference, ReferenceKind};
use k8s_openapi::api::core::v1::PodSpec;

use super::rbac::rule::PolicyRule;
use super::{Attributes, ResourceName};
use crate::object_store::SharedStore;
use crate::reflector::Reflector;
use crate::registry::Object;

/// Where the Leases of nodes are.
const LEASES: &str = "kube-node-lease";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 3] = ["create", "patch", "update"];

/// This replica's copies of what leads from a node to the objects that its pods need.
#[derive(Debug, Clone)]
pub(crate) struct NodeCopies {
    /// Every pod, indexed by node.
    pub(crate) pods: Reflector<SharedStore>,
    /// Every PersistentVolumeClaim.
    pub(crate) claims: Reflector<SharedStore>,
}

impl NodeCopies {
    fn specs(&self, node: &str) -> impl Iterator<Item = (String, PodSpec)> {
        let pods = self.pods.indexed(node).into_iter();
        pods.filter_map(|pod| Some((pod.namespace().to_owned(), spec_of(&pod)?)))
    }

    /// Whether a pod of the node refers to the object.
    fn refers(&self, node: &str, kind: ReferenceKind, namespace: &str, name: &str) -> bool {
        let wanted = Reference::new(kind, namespace, name);
        let pods = self.pods.indexed(node);
        let of = |pod: &Arc<Object>| Some(references::of_pod(pod.namespace(), pod.name(), &spec_of(pod)?));
        let mut all = pods.iter().filter_map(of);
        if kind != ReferenceKind::PersistentVolume {
            return all.any(|references| references.contains(&wanted));
        }
        let claims = |reference: &Reference| {
            let claim = self.claims.get(&reference.namespace, &reference.name);
            reference.kind == ReferenceKind::PersistentVolumeClaim
                && claim.is_some_and(|claim| claim.value()["spec"]["volumeName"] == name)
        };
        all.any(|references| references.iter().any(claims))
    }

    /// Whether a pod of the node runs as the account.
    fn runs_as(&self, node: &str, namespace: &str, account: &str) -> bool {
        self.specs(node)
            .any(|(own, spec)| own == namespace && spec.service_account_name.as_deref() == Some(account))
    }

    fn is_bound(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods.get(namespace, name).is_some_and(|pod| pod.value()["spec"]["nodeName"] == node)
    }
}

fn spec_of(pod: &Object) -> Option<PodSpec> {
    pod.decode_member(&["spec"])
}

/// Why a node may do that; `None`: nothing of being a node lets it. Without copies it has no pods.
pub(super) fn allows(
    node: &str,
    copies: Option<&NodeCopies>,
    request: &Attributes<'_>,
) -> Option<&'static str> {
    let Attributes { verb, subresource, namespace, name, .. } = *request;
    let ResourceName { group, plural } = request.resource?;
    let is = |verbs: &[&str]| verbs.contains(&verb);
    let may = match (group, plural, subresource) {
        ("", "nodes", "") => is(&["create"]) || name == node && (is(&READ) || is(&WRITE)),
        ("", "nodes", "status") => name == node && (is(&WRITE) || verb == "get"),
        ("", "pods", "") => match verb {
            "get" => copies.is_some_and(|copies| copies.is_bound(node, namespace, name)),
            "list" | "watch" => request.selected("spec.nodeName") == Some(node),
            // Which pods, the restriction says.
            "create" | "delete" => true,
            _ => false,
        },
        ("", "pods", "status") => is(&["patch", "update"]),
        ("", "pods", "eviction") => verb == "create",
        ("", "serviceaccounts", "token") => {
            verb == "create" && copies.is_some_and(|copies| copies.runs_as(node, namespace, name))
        }
        ("", _, "") if reference_kind(plural).is_some() => {
            let kind = reference_kind(plural)?;
            let listable = matches!(kind, ReferenceKind::Secret | ReferenceKind::ConfigMap);
            let reads = verb == "get" || listable && is(&READ);
            reads
                && !name.is_empty()
                && copies.is_some_and(|copies| copies.refers(node, kind, namespace, name))
        }
        ("coordination.k8s.io", "leases", "") => {
            let own = name == node && (is(&["delete", "get"]) || is(&WRITE));
            namespace == LEASES && (own || verb == "create")
        }
        ("storage.k8s.io", "csinodes", "") => {
            verb == "create" || name == node && (is(&["delete", "get"]) || is(&WRITE))
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => is(&READ) || verb == "create",
        _ => general(request),
    };
    may.then_some("a node may do that for itself and its own pods")
}

/// What every node may, whatever runs on it.
fn general(request: &Attributes<'_>) -> bool {
    rules_of_all().iter().any(|rule| rule.allows(request))
}

fn rules_of_all() -> [PolicyRule; 4] {
    [
        PolicyRule::on_resources(&READ, &[""], &["services"]),
        PolicyRule::on_resources(&WRITE, &["", "events.k8s.io"], &["events"]),
        PolicyRule::on_resources(
            &["create"],
            &["authentication.k8s.io", "authorization.k8s.io"],
            &["tokenreviews", "subjectaccessreviews", "localsubjectaccessreviews"],
        ),
        PolicyRule::on_resources(
            &READ,
            &["node.k8s.io", "storage.k8s.io"],
            &["runtimeclasses", "csidrivers"],
        ),
    ]
}

/// The rights in the form of roles, as far as that form can tell them.
pub(super) fn rules(node: &str) -> Vec<PolicyRule> {
    let named = |rule: PolicyRule| PolicyRule { resource_names: vec![node.to_owned()], ..rule };
    let mut rules = vec![
        named(PolicyRule::on_resources(&["get", "patch", "update"], &[""], &["nodes", "nodes/status"])),
        named(PolicyRule::on_resources(&["get", "patch", "update"], &["coordination.k8s.io"], &["leases"])),
        PolicyRule::on_resources(&["create"], &["certificates.k8s.io"], &["certificatesigningrequests"]),
    ];
    rules.extend(rules_of_all());
    rules
}

fn reference_kind(plural: &str) -> Option<ReferenceKind> {
    ReferenceKind::ALL.into_iter().find(|kind| kind.kind().plural == plural)
}
