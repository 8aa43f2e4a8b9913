//! What every namespace has: the service account `default`, and the ConfigMap `kube-root-ca.crt` with the
//! certificate by which pods know the API.

use std::time::Duration;

use api::{Status, object};
use serde_json::{Value, json};

use super::{Context, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::Feed;

/// The ConfigMap's name, and its key.
const CA_MAP: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
/// How often what somebody deleted or changed is made good, unless a namespace changes before.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut feed = Feed::new(context.namespaces.clone());
    loop {
        while feed.try_next().is_some() {}
        for namespace in context.namespaces.list() {
            if object::deletion_timestamp(namespace.value()).is_some() {
                continue;
            }
            let name = namespace.name();
            if let Err(status) = reconcile(context, epoch, name).await {
                tracing::warn!(namespace = name, %status, "the namespace lacks what every namespace has");
            }
        }
        tokio::select! {
            _ = feed.next() => {}
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
}

async fn reconcile(context: &Context, epoch: Epoch, namespace: &str) -> Result<(), Status> {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    ensure(context, epoch, namespace, account, |_| true).await?;
    let pem = context.ca_pem.as_str();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": CA_MAP, "annotations": {"kubernetes.io/description":
            "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such \
             as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions \
             of Kubernetes clusters."}},
        "data": {CA_KEY: pem},
    });
    ensure(context, epoch, namespace, map, |found| found["data"][CA_KEY] == pem).await
}

/// Makes the object if it is missing, and puts its data right if `is_right` says that they are not.
async fn ensure(
    context: &Context,
    epoch: Epoch,
    namespace: &str,
    wanted: Value,
    is_right: impl Fn(&Value) -> bool,
) -> Result<(), Status> {
    let (kind, name) = (core_kind(object::kind(&wanted)), object::name(&wanted).to_owned());
    let registry = &context.registry;
    match registry.get_local(kind, namespace, &name).await? {
        Some(found) if is_right(found.value()) => Ok(()),
        Some(_) => {
            let target = crate::registry::Target::new(kind, namespace, &name);
            let put_right = |found: &mut Value| {
                found["data"] = wanted["data"].clone();
                Ok(())
            };
            settled(registry.modify(target, &options(epoch), put_right).await.map(|_| ()))
        }
        None => match registry.create(kind, namespace, wanted, &options(epoch)).await {
            // Somebody was faster, or the namespace is going.
            Err(status) if matches!(status.reason(), "AlreadyExists" | "Forbidden") => Ok(()),
            created => settled(created.map(|_| ())),
        },
    }
}
