//! ResourceQuotas: their `status` says what the spec allows and what is used.
//!
//! What is made was charged when it was made; what changes or goes is counted here. A count is written only if
//! the quota is still the version that was read before counting, so that no charge is lost.

use std::collections::HashSet;
use std::time::Duration;

use api::{Kind, Status, object};

use super::{Context, options, settled};
use crate::leader::Epoch;
use crate::object_store::SharedStore;
use crate::reflector::{Feed, Reflector};
use crate::registry::{ListOptions, Object, Target};

/// How often everything is counted without a reason.
const RESYNC: Duration = Duration::from_secs(5);
/// The pause before counting, in which more changes may come.
const GATHER: Duration = Duration::from_millis(50);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let quotas = context.everything.iter().find(|reflector| reflector.kind().kind == "ResourceQuota");
    let Some(quotas) = quotas else { return };
    quotas.wait_synced().await;
    let (mut changes, mut pods) = (Feed::new(quotas.clone()), Feed::new(context.pods.clone()));
    loop {
        while changes.try_next().is_some() {}
        while pods.try_next().is_some() {}
        count_all(context, epoch, quotas).await;
        tokio::select! {
            _ = changes.next() => {}
            _ = pods.next(), if quotas.any() => {}
            () = tokio::time::sleep(RESYNC), if quotas.any() => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

async fn count_all(context: &Context, epoch: Epoch, quotas: &Reflector<SharedStore>) {
    for quota in quotas.list() {
        if let Err(status) = count(context, epoch, &quota).await {
            let (namespace, name) = (quota.namespace(), quota.name());
            tracing::warn!(namespace, name, %status, "the quota's use was not counted; trying again");
        }
    }
}

async fn count(context: &Context, epoch: Epoch, quota: &Object) -> Result<(), Status> {
    let kinds = context.registry.kinds().current();
    let (mut seen, mut counted): (HashSet<_>, Vec<(&'static Kind, Vec<_>)>) = Default::default();
    for kind in kinds.kinds().iter().filter(|kind| kind.namespaced && !kind.virtual_only) {
        if api::quota::bounds(quota.value(), kind) && seen.insert((kind.stored_group(), kind.plural)) {
            let listed =
                context.registry.list(kind, Some(quota.namespace()), &ListOptions::default()).await?;
            counted.push((kind, listed.items));
        }
    }
    let objects = counted.iter().flat_map(|(kind, items)| items.iter().map(|item| (*kind, item.value())));
    let status = api::quota::status(quota.value(), objects);
    if quota.value()["status"] == status {
        return Ok(());
    }
    let mut next = quota.value().clone();
    object::set_resource_version(&mut next, &quota.revision().to_string());
    next["status"] = status;
    let target = Target::status(quota.kind(), quota.namespace(), quota.name());
    settled(context.registry.update(target, next, &options(epoch)).await.map(drop))
}
