//! What a node may not write although it has the right to write the kind (`NodeRestriction` of the Kubernetes
//! documentation): other nodes, labels and taints that decide what comes to it, pods of others, pods that are no
//! mirrors, others' Leases, certificates for others.

use api::object::{self, MIRROR_ANNOTATION};
use api::references::{self, ReferenceKind};
use api::{Kind, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::Value;

use super::LEASES;
use crate::auth::Identity;
use crate::pki::{SigningRequest, USER_NODE_PREFIX};
use crate::registry::Guard;

const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Domains whose labels are Kubernetes' own.
const OWN_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// Domains of those in which a node may set any label.
const NODE_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels of those that a node may set.
const NODE_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
];
/// Signers of certificates for nodes.
const NODE_SIGNERS: [&str; 2] =
    ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"];

/// The check of what an identity writes. `None`: it is no node, or the kind is not restricted.
pub(crate) fn guard(identity: &Identity, kind: &Kind) -> Option<Guard> {
    let node = identity.node_name()?.to_owned();
    let check: fn(&str, Option<&Value>, &Value) -> Result<(), String> = match (kind.group, kind.kind) {
        ("", "Node") => check_node,
        ("", "Pod") => check_pod,
        ("coordination.k8s.io", "Lease") => check_lease,
        ("storage.k8s.io", "CSINode") => check_own_name,
        ("certificates.k8s.io", "CertificateSigningRequest") => check_request,
        _ => return None,
    };
    Some(Guard::new(move |kind, old, new| {
        check(&node, old, new).map_err(|why| Status::forbidden(kind, object::name(new), &why))
    }))
}

fn check_own_name(node: &str, _: Option<&Value>, new: &Value) -> Result<(), String> {
    match object::name(new) {
        name if name == node => Ok(()),
        name => Err(format!("node {node:?} is not allowed to modify node {name:?}")),
    }
}

fn check_node(node: &str, old: Option<&Value>, new: &Value) -> Result<(), String> {
    check_own_name(node, old, new)?;
    let label = |of: Option<&Value>, key: &str| of.and_then(|of| object::label(of, key).map(str::to_owned));
    let keys = [old, Some(new)].into_iter().flatten().flat_map(|of| object::labels(of).into_keys());
    let mut forbidden: Vec<String> =
        keys.filter(|key| label(old, key) != label(Some(new), key) && is_forbidden(key)).collect();
    forbidden.sort_unstable();
    forbidden.dedup();
    if !forbidden.is_empty() {
        let what = if old.is_some() { "modify labels" } else { "set the following labels" };
        return Err(format!("node {node:?} is not allowed to {what}: {}", forbidden.join(", ")));
    }
    let Some(old) = old else { return Ok(()) };
    let differs = |path: &str| {
        let list = |of: &Value| of.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        list(old) != list(new)
    };
    if differs("/spec/taints") {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if differs("/metadata/ownerReferences") {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    Ok(())
}

/// Whether a label is none that a node may set on itself.
fn is_forbidden(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if within(RESTRICTED) {
        return true;
    }
    OWN_DOMAINS.into_iter().any(within)
        && !NODE_DOMAINS.into_iter().any(within)
        && !NODE_LABELS.contains(&key)
}

fn check_pod(node: &str, old: Option<&Value>, new: &Value) -> Result<(), String> {
    match old {
        None => check_mirror(node, new),
        Some(old) if !is_bound(old, node) => {
            Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
        }
        Some(old) if object::labels(old) != object::labels(new) => {
            Err(format!("node {node:?} cannot update labels through pod status"))
        }
        Some(_) => Ok(()),
    }
}

/// Whether a pod runs on a node.
pub(crate) fn is_bound(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"] == node
}

fn check_mirror(node: &str, pod: &Value) -> Result<(), String> {
    if object::annotation(pod, MIRROR_ANNOTATION).is_none() {
        return Err(format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if !is_bound(pod, node) {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    for owner in object::owner_references(pod) {
        if owner["kind"] != "Node" || owner["name"] != node {
            return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
    }
    let refuse = |what: &str| Err(format!("node {node:?} can not create pods that reference {what}"));
    if !pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        return refuse("a service account");
    }
    let spec: PodSpec = serde_json::from_value(pod["spec"].clone()).unwrap_or_default();
    let referred = references::of_pod(object::namespace(pod), object::name(pod), &spec).into_iter().next();
    match referred.map(|reference| reference.kind) {
        None => Ok(()),
        Some(ReferenceKind::ConfigMap) => refuse("configmaps"),
        Some(ReferenceKind::Secret) => refuse("secrets"),
        Some(_) => refuse("persistentvolumeclaims"),
    }
}

fn check_lease(node: &str, _: Option<&Value>, new: &Value) -> Result<(), String> {
    if object::namespace(new) != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    match object::name(new) == node {
        true => Ok(()),
        false => Err("can only access node lease with the same name as the requesting node".to_owned()),
    }
}

fn check_request(node: &str, old: Option<&Value>, new: &Value) -> Result<(), String> {
    let spec = &new["spec"];
    if old.is_some() || !NODE_SIGNERS.into_iter().any(|signer| spec["signerName"] == signer) {
        return Ok(());
    }
    let pem = STANDARD.decode(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
    let wanted = format!("{USER_NODE_PREFIX}{node}");
    match SigningRequest::parse(&pem) {
        Ok(asked) if asked.common_name == wanted => Ok(()),
        Ok(_) => Err(format!("can only create a node CSR with CN={wanted}")),
        Err(error) => Err(format!("unable to parse csr: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(labels: Value, taints: Value) -> Value {
        json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}})
    }

    #[test]
    fn a_node_sets_only_labels_that_say_what_it_is() {
        for (key, forbidden) in [
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("node.kubernetes.io/instance-type", false),
            ("foo.kubelet.kubernetes.io/x", false),
            ("example.com/role", false),
            ("plain", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/pci", true),
            ("a.node-restriction.kubernetes.io/pci", true),
            ("k8s.io/x", true),
            ("notkubernetes.io/x", false),
        ] {
            assert_eq!(is_forbidden(key), forbidden, "{key}");
        }
        let plain = node(json!({"plain": "1"}), json!([]));
        let role = node(json!({"plain": "1", "node-role.kubernetes.io/x": ""}), json!([]));
        let why = check_node("n1", None, &role).unwrap_err();
        assert_eq!(why, "node \"n1\" is not allowed to set the following labels: node-role.kubernetes.io/x");
        let why = check_node("n1", Some(&role), &plain).unwrap_err();
        assert_eq!(why, "node \"n1\" is not allowed to modify labels: node-role.kubernetes.io/x");
        check_node("n1", Some(&role), &role).unwrap();
        let why =
            check_node("n1", Some(&plain), &node(json!({"plain": "1"}), json!([{"key": "a"}]))).unwrap_err();
        assert_eq!(why, "node \"n1\" is not allowed to modify taints");
        assert!(check_node("n2", None, &plain).is_err());
    }

    #[test]
    fn a_node_creates_mirrors_only() {
        let mirror = |spec: Value, annotated: bool| {
            let annotations = if annotated { json!({MIRROR_ANNOTATION: "hash"}) } else { json!({}) };
            let mut pod = json!({"metadata": {"name": "p", "namespace": "d", "annotations": annotations}, "spec": spec});
            pod["spec"]["containers"] = json!([{"name": "c"}]);
            pod
        };
        check_pod("n1", None, &mirror(json!({"nodeName": "n1"}), true)).unwrap();
        let volume = |source: Value| json!({"nodeName": "n1", "volumes": [source]});
        for (pod, words) in [
            (mirror(json!({"nodeName": "n1"}), false), "can only create mirror pods"),
            (mirror(json!({"nodeName": "n2"}), true), "spec.nodeName set to itself"),
            (
                mirror(json!({"nodeName": "n1", "serviceAccountName": "x"}), true),
                "reference a service account",
            ),
            (mirror(volume(json!({"name": "v", "secret": {"secretName": "s"}})), true), "reference secrets"),
            (mirror(volume(json!({"name": "v", "configMap": {"name": "s"}})), true), "reference configmaps"),
        ] {
            let why = check_pod("n1", None, &pod).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
