//! The IngressClass that every cluster begins with, and the addresses at which Ingresses of ours are reached.
//!
//! Owns `status.loadBalancer` of the Ingresses that are served here: the addresses of the nodes that take requests from
//! outside and are ready. Does not lead requests: those nodes do (`node/src/ingress`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use api::{Kind, Status, ingress};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};

use super::{Context, options, settled};
use crate::grpc::node_sessions::is_labelled;
use crate::leader::Epoch;
use crate::reflector::Feed;
use crate::registry::{Object, Target};

const GROUP: &str = "networking.k8s.io";
/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long changes of nodes are gathered: they say something every few seconds.
const GATHER: Duration = Duration::from_millis(50);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut ingresses = Feed::new(context.every(GROUP, "Ingress").clone());
    let mut classes = Feed::new(context.every(GROUP, "IngressClass").clone());
    let mut nodes = Feed::new(context.nodes.clone());
    while let Err(status) = make_class(context, epoch).await {
        tracing::warn!(%status, "the cluster's IngressClass is not there yet; trying again");
        tokio::time::sleep(RETRY_AFTER).await;
    }
    loop {
        while ingresses.try_next().or_else(|| classes.try_next()).or_else(|| nodes.try_next()).is_some() {}
        let has_failed = match show(context, epoch).await {
            Ok(()) => false,
            Err(status) => {
                tracing::warn!(%status, "an Ingress does not show its addresses yet; trying again");
                true
            }
        };
        tokio::select! {
            _ = ingresses.next() => {}
            _ = classes.next() => {}
            _ = nodes.next() => {}
            () = tokio::time::sleep(RETRY_AFTER), if has_failed => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Makes the class if nobody has.
async fn make_class(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let kind = kind("IngressClass");
    if context.registry.get_local(kind, "", ingress::CLASS).await?.is_some() {
        return Ok(());
    }
    let class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": ingress::CLASS, "annotations": {ingress::DEFAULT_ANNOTATION: "true"}},
        "spec": {"controller": ingress::CONTROLLER},
    });
    match context.registry.create(kind, "", class, &options(epoch)).await {
        Err(status) if status.reason() != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}

async fn show(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let classes = context.every(GROUP, "IngressClass").list();
    let classes: Vec<IngressClass> = classes.iter().filter_map(|class| class.decode().ok()).collect();
    let own = ingress::own_classes(&classes);
    let nodes = context.nodes.list();
    let addresses: BTreeSet<IpAddr> = nodes.iter().filter_map(|node| address(node)).collect();
    let shown =
        json!({"ingress": addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>()});
    for object in context.every(GROUP, "Ingress").list() {
        let Ok(decoded) = object.decode::<Ingress>() else { continue };
        if !ingress::is_served(&decoded, &own) || is_shown(&object, &shown) {
            continue;
        }
        let target = Target::status(kind("Ingress"), object.namespace(), object.name());
        let change = |value: &mut Value| {
            value["status"]["loadBalancer"] = shown.clone();
            Ok(())
        };
        settled(context.registry.modify(target, &options(epoch), change).await.map(drop))?;
    }
    Ok(())
}

fn is_shown(ingress: &Object, shown: &Value) -> bool {
    let now = &ingress.value()["status"]["loadBalancer"];
    let list = |value: &Value| value["ingress"].as_array().cloned().unwrap_or_default();
    list(now) == list(shown)
}

/// Where a node takes requests from outside, if it does.
fn address(node: &Object) -> Option<IpAddr> {
    if !is_labelled(node) {
        return None;
    }
    let status = node.decode::<Node>().ok()?.status?;
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let internal = status.addresses?.into_iter().find(|address| address.type_ == "InternalIP")?;
    internal.address.parse().ok().filter(|_| is_ready)
}

fn kind(name: &str) -> &'static Kind {
    api::kinds::by_kind(GROUP, "v1", name).expect("the table of kinds has Ingress and IngressClass")
}
