//! Generic ephemeral volumes: a claim of its own for each volume of a pod that asks for one, which goes with the pod.
//!
//! Owns the making only. Binding is [`super::volume_binding`]'s, removal the garbage collector's, since the pod owns the
//! claim. A claim of that name that somebody else made is left alone; scheduler and node refuse it.

use api::{Status, object, references};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::work_queue::{Key, WorkQueue, key_of};
use super::{Context, core_kind, options};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{EventRecord, EventType, Object, Regarding};

/// Who reports.
const COMPONENT: &str = "ephemeral_volume";

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let (mut pods, mut claims) = (Feed::new(context.pods.clone()), Feed::new(context.claims.clone()));
    let mut queue: WorkQueue<Key> = WorkQueue::default();
    loop {
        for key in queue.take_due() {
            let outcome = ensure(context, epoch, &key).await;
            queue.ended(key, outcome);
        }
        tokio::select! {
            delta = pods.next() => if let Delta::Applied(pod) = &delta && asks(pod.value()) {
                queue.add(key_of(pod));
            },
            // One that was deleted while its pod waits is made again.
            delta = claims.next() => if let Delta::Deleted(claim) = &delta {
                let owner = object::owner_references(claim.value()).iter().find(|one| one["kind"] == "Pod");
                if let Some(name) = owner.and_then(|owner| owner["name"].as_str()) {
                    queue.add((claim.namespace().to_owned(), name.to_owned()));
                }
            },
            () = queue.wait() => {}
        }
    }
}

fn asks(pod: &Value) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.into_iter().any(|volume| volume["ephemeral"].is_object())
}

/// Makes the claims of a pod that are not there.
async fn ensure(context: &Context, epoch: Epoch, (namespace, name): &Key) -> Result<(), Status> {
    let Some(object) = context.pods.get(namespace, name) else { return Ok(()) };
    let is_over = matches!(object.value()["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if is_over || object::deletion_timestamp(object.value()).is_some() {
        return Ok(());
    }
    let Ok(pod) = object.decode::<Pod>() else { return Ok(()) };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let template = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref());
        let (Some(template), Some(claim)) = (template, references::claim_of(name, volume)) else { continue };
        if context.claims.get(namespace, &claim).is_some() {
            continue;
        }
        let wanted = claim_for(&object, &claim, &json!(template));
        let kind = core_kind("PersistentVolumeClaim");
        match context.registry.create(kind, namespace, wanted, &options(epoch)).await {
            Err(status) if status.reason() != "AlreadyExists" => {
                let why = format!("ephemeral volume controller: create PVC {claim}: {}", status.message());
                let regarding = Regarding::object(object.value());
                let record = EventRecord::now(COMPONENT, regarding, EventType::Warning, "FailedCreate", why);
                context.events.say(record, epoch.fence());
                return Err(status);
            }
            _ => {}
        }
    }
    Ok(())
}

fn claim_for(pod: &Object, name: &str, template: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": pod.namespace(),
            "labels": template["metadata"]["labels"],
            "annotations": template["metadata"]["annotations"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name(),
                "uid": object::uid(pod.value()), "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": template["spec"],
    })
}
