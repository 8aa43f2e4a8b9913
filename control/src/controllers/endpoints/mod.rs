//! Endpoints: the pods that stand behind each Service, as EndpointSlices and, for older clients, as Endpoints.
//!
//! Owns both for Services with a selector. A turn says what should stand there ([`slices`], pure) and writes the
//! difference; a slice that is right is not touched. Services without a selector are their users' own to fill.

mod slices;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use api::{Kind, LabelSelector, Status, object};
use serde_json::{Value, json};

use self::slices::Backend;
use super::owners::{Controller, Owner, Work};
use super::replica_set::labels_selector;
use super::work_queue::{Key, key_of};
use super::{core_kind, settled};
use crate::reflector::Delta;
use crate::registry::{DeleteOptions, Object, Target};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The loop over Services.
#[derive(Debug, Clone, Copy)]
pub(super) struct Services;

impl Controller for Services {
    fn owner(&self) -> (&'static str, &'static str) {
        ("", "Service")
    }

    fn child(&self) -> (&'static str, &'static str) {
        ("discovery.k8s.io", "EndpointSlice")
    }

    fn component(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn other(&self) -> Option<(&'static str, &'static str)> {
        Some(("", "Pod"))
    }

    /// Pods are few changes away from the services that select them: all of its namespace are asked.
    fn concerned(&self, work: &Work<'_>, delta: &Delta) -> Vec<Key> {
        let pod = delta.object();
        let services = work.owners.list();
        let own = services.iter().filter(|service| service.namespace() == pod.namespace());
        let selects = |service: &&Arc<Object>| {
            labels_selector(&service.value()["spec"]["selector"])
                .is_some_and(|selector| selector.matches_object(pod.value()))
                || work.children_of(service).iter().any(|slice| slices::names(slice.value(), pod.name()))
        };
        own.filter(selects).map(|service| key_of(service)).collect()
    }

    /// Slices are made here and told by their owner; none is adopted.
    fn selector(&self, _owner: &Object) -> Option<LabelSelector> {
        Some(LabelSelector::everything())
    }

    fn is_adoptable(&self, _child: &Object) -> bool {
        false
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let service = owner.value();
        let selector = labels_selector(&service["spec"]["selector"]);
        let Some(selector) = selector.filter(|_| service["spec"]["type"] != "ExternalName") else {
            return Ok(None);
        };
        if owner.is_deleting {
            return Ok(None);
        }
        let pods = work.context.pods.list();
        let own = pods.iter().filter(|pod| pod.namespace() == owner.object.namespace());
        let publishes_all = service["spec"]["publishNotReadyAddresses"] == true;
        let mut backends: Vec<Backend> = own
            .filter(|pod| selector.matches_object(pod.value()))
            .filter_map(|pod| Backend::of(pod.value(), publishes_all))
            .collect();
        backends.sort_by(|one, other| one.name.cmp(&other.name));
        let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        self.sync_slices(work, owner, slices::of(&ports, &backends)).await?;
        sync_endpoints(work, owner, slices::subsets(&ports, &backends)).await?;
        Ok(None)
    }
}

impl Services {
    /// Makes, changes and deletes slices until they are those wanted.
    async fn sync_slices(
        &self,
        work: &mut Work<'_>,
        owner: &Owner<'_>,
        wanted: Vec<Value>,
    ) -> Result<(), Status> {
        let own: Vec<Arc<Object>> = owner
            .children
            .iter()
            .filter(|slice| object::label(slice.value(), MANAGED_BY) == Some(MANAGER))
            .cloned()
            .collect();
        let mut unused = own;
        let mut missing = Vec::new();
        for body in wanted {
            let is_same = |slice: &Arc<Object>| {
                slice.value()["endpoints"] == body["endpoints"] && slice.value()["ports"] == body["ports"]
            };
            match unused.iter().position(is_same) {
                Some(index) => drop(unused.swap_remove(index)),
                None => missing.push(body),
            }
        }
        for body in missing {
            // One that is no longer right becomes one that is, rather than one more being made.
            let of_family = |slice: &Arc<Object>| slice.value()["addressType"] == body["addressType"];
            let Some(index) = unused.iter().position(of_family) else {
                let mut slice = body;
                slice["metadata"] = metadata(owner);
                work.create_quietly(owner, slice).await?;
                continue;
            };
            let slice = unused.swap_remove(index);
            let change = |value: &mut Value| {
                for field in ["endpoints", "ports"] {
                    value[field] = body[field].clone();
                }
            };
            work.modify(&slice, change).await?;
        }
        for slice in unused {
            let options =
                DeleteOptions { fence: work.fence(), ..DeleteOptions::now(object::uid(slice.value())) };
            let target = Target::new(slice.kind(), slice.namespace(), slice.name());
            settled(work.context.registry.delete(target, &options).await.map(drop))?;
            work.assume_gone(&slice);
        }
        Ok(())
    }
}

fn metadata(owner: &Owner<'_>) -> Value {
    let name = owner.object.name();
    let mut labels = owner.value()["metadata"]["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels[MANAGED_BY] = json!(MANAGER);
    labels[SERVICE_NAME] = json!(name);
    if owner.value()["spec"]["clusterIP"] == "None" {
        labels[HEADLESS_LABEL] = json!("");
    }
    json!({"generateName": format!("{name}-"), "labels": labels, "ownerReferences": [owner.reference]})
}

/// Writes the one Endpoints object of a Service, if it is not right already.
async fn sync_endpoints(work: &Work<'_>, owner: &Owner<'_>, subsets: Value) -> Result<(), Status> {
    let (namespace, name) = (owner.object.namespace(), owner.object.name());
    let kind: &'static Kind = core_kind("Endpoints");
    let registry = &work.context.registry;
    let found = work.context.every("", "Endpoints").get(namespace, name);
    let labels = owner.value()["metadata"]["labels"].clone();
    if found.is_some_and(|found| {
        found.value().get("subsets").unwrap_or(&Value::Null) == &subsets
            && (labels.is_null() || found.value()["metadata"]["labels"] == labels)
    }) {
        return Ok(());
    }
    let change = |value: &mut Value| {
        value["subsets"] = subsets.clone();
        if !labels.is_null() {
            object::set_metadata(value, "labels", labels.clone());
        }
        Ok(())
    };
    match registry.modify(Target::new(kind, namespace, name), &work.options(), change).await {
        Err(status) if status.reason() == "NotFound" => {}
        other => return settled(other.map(drop)),
    }
    let made = json!({"metadata": {"name": name, "labels": labels}, "subsets": subsets});
    match registry.create(kind, namespace, made, &work.options()).await {
        Err(status) if status.reason() != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}

/// Removes the Endpoints of Services that are gone: they have no owner that would take them along.
pub(super) async fn forget(work: &super::Context, epoch: crate::leader::Epoch) {
    let mut services = crate::reflector::Feed::new(work.every("", "Service").clone());
    loop {
        let delta = services.next().await;
        let Delta::Deleted(service) = delta else { continue };
        if labels_selector(&service.value()["spec"]["selector"]).is_none() {
            continue;
        }
        let options = DeleteOptions { fence: epoch.fence(), ..DeleteOptions::default() };
        let target = Target::new(core_kind("Endpoints"), service.namespace(), service.name());
        if let Err(status) = settled(work.registry.delete(target, &options).await.map(drop)) {
            tracing::warn!(%status, service = service.name(), "its Endpoints were not removed");
        }
    }
}
