//! Mirror pods: the objects that show static pods of a node.
//!
//! A node makes and removes only such objects, only for itself, and only what refers to nothing that it would
//! thereby be given: the rules of Kubernetes' NodeRestriction.

use api::object::MIRROR_ANNOTATION;
use api::{Status, object, references};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use proto::node::MirrorPod;
use serde_json::{Value, json};

use super::NodeSessions;
use super::inbox::{parse, pod_kind, unless_gone};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, Target, WriteOptions};

/// What the object shows, if it is a mirror pod: the uid under which its node speaks of it.
pub(super) fn shown(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"][MIRROR_ANNOTATION].as_str().filter(|hash| !hash.is_empty())
}

impl NodeSessions {
    /// Does what a node wishes about one of its mirror pods.
    pub(super) async fn mirror(&self, node: &str, said: &MirrorPod, epoch: Epoch) -> Result<(), Status> {
        if said.pod_json.is_empty() {
            self.unmirror(node, said, epoch).await
        } else {
            self.show(node, said, epoch).await
        }
    }

    async fn show(&self, node: &str, said: &MirrorPod, epoch: Epoch) -> Result<(), Status> {
        let mut pod = parse(&said.pod_json, "mirror pod")?;
        check(node, said, &pod)?;
        // The object goes with its node.
        if let Some(owner) = self.inner.nodes.get("", node) {
            let uid = super::uid(&owner);
            pod["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid, "controller": true}]);
        }
        let options = WriteOptions { fence: epoch.fence(), ..WriteOptions::default() };
        let created = self.inner.registry.create(pod_kind(), &said.namespace, pod, &options).await;
        match created {
            Err(status) if status.reason() == "AlreadyExists" => Ok(()),
            created => created.map(|_| ()),
        }
    }

    async fn unmirror(&self, node: &str, said: &MirrorPod, epoch: Epoch) -> Result<(), Status> {
        let registry = &self.inner.registry;
        let pod = match registry.get(pod_kind(), &said.namespace, &said.name).await {
            Err(status) if status.reason() == "NotFound" => return Ok(()),
            pod => pod?,
        };
        let pod = pod.value();
        if object::uid(pod) != said.uid {
            return Ok(());
        }
        if shown(pod).is_none() || pod["spec"]["nodeName"] != node {
            let why = format!("node {node:?} can only delete mirror pods with spec.nodeName set to itself");
            return Err(Status::forbidden(pod_kind(), &said.name, &why));
        }
        let options = DeleteOptions { fence: epoch.fence(), ..DeleteOptions::now(&said.uid) };
        let target = Target::new(pod_kind(), &said.namespace, &said.name);
        match registry.delete(target, &options).await {
            Err(status) if status.reason() == "Conflict" => Ok(()),
            deleted => unless_gone(deleted.map(|_| ())),
        }
    }
}

/// Whether the node may create this.
fn check(node: &str, said: &MirrorPod, pod: &Value) -> Result<(), Status> {
    let refuse = |why: String| Err(Status::forbidden(pod_kind(), &said.name, &why));
    if shown(pod).is_none() {
        return refuse(format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if object::name(pod) != said.name {
        return refuse(format!("the mirror pod's name is not {:?}", said.name));
    }
    if pod["spec"]["nodeName"] != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let decoded: Pod = serde_json::from_value(pod.clone())
        .map_err(|error| Status::bad_request(format!("the mirror pod is no pod: {error}")))?;
    match referred(said, &decoded.spec.unwrap_or_default()) {
        Some(what) => refuse(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// Something of the API's that the pod would give its node.
fn referred(said: &MirrorPod, spec: &PodSpec) -> Option<String> {
    if let Some(reference) = references::of_pod(&said.namespace, &said.name, spec).into_iter().next() {
        return Some(reference.to_string());
    }
    let has_account = spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty());
    let volumes = spec.volumes.iter().flatten();
    let mut sources = volumes.flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    let has_token = sources.any(|source| source.service_account_token.is_some());
    let has_claims = spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty());
    match (has_account || has_token, has_claims) {
        (true, _) => Some("a service account".to_owned()),
        (_, true) => Some("resource claims".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut Value)) -> Result<(), String> {
        let mut pod = json!({
            "metadata": {"name": "web-n1", "annotations": {MIRROR_ANNOTATION: "h"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        });
        change(&mut pod);
        let said = MirrorPod { namespace: "d".into(), name: "web-n1".into(), ..MirrorPod::default() };
        check("n1", &said, &pod).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_node_shows_only_its_own_static_pods_and_gains_nothing_by_it() {
        assert_eq!(checked(|_| ()), Ok(()));
        let refused = |change: fn(&mut Value), word: &str| {
            let message = checked(change).expect_err(word);
            assert!(message.contains(word), "{message}");
        };
        refused(|pod| pod["metadata"]["annotations"] = json!({}), "can only create mirror pods");
        refused(|pod| pod["metadata"]["name"] = json!("other"), "name is not");
        refused(|pod| pod["spec"]["nodeName"] = json!("n2"), "spec.nodeName set to itself");
        refused(|pod| pod["spec"]["serviceAccountName"] = json!("a"), "service account");
        refused(
            |pod| pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]),
            "reference Secret d/s",
        );
        refused(
            |pod| {
                let sources = json!([{"serviceAccountToken": {"path": "t"}}]);
                pod["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": sources}}]);
            },
            "service account",
        );
        refused(
            |pod| pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "m"}}]),
            "reference ConfigMap d/m",
        );
    }
}
