//! Bootstrap tokens go when their time is over.

use std::time::Duration;

use api::Status;
use futures_util::{StreamExt, stream};

use super::{Context, WRITES_MAX, core_kind, settled, ticks};
use crate::auth::tokens::{is_expired, is_token};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, ListOptions, Object, Target};

const NAMESPACE: &str = "kube-system";
/// How often tokens are looked at. That an expired one does not count needs no look.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut ticks = ticks(LOOK_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(status) = look(context, epoch).await {
            tracing::debug!(%status, "bootstrap tokens were not looked at");
        }
    }
}

async fn look(context: &Context, epoch: Epoch) -> Result<(), Status> {
    // What this replica has is enough: the deletion names the version that was seen.
    let list = ListOptions { resource_version: Some("0".to_owned()), ..ListOptions::default() };
    let secrets = context.registry.list(core_kind("Secret"), Some(NAMESPACE), &list).await?;
    let now = context.registry.now();
    let over =
        secrets.items.iter().filter(|secret| is_token(secret.value()) && is_expired(secret.value(), now));
    stream::iter(over)
        .for_each_concurrent(WRITES_MAX, |secret| async move {
            if let Err(status) = settled(remove(context, epoch, secret).await) {
                tracing::warn!(secret = secret.name(), %status, "the expired bootstrap token was not removed");
            }
        })
        .await;
    Ok(())
}

async fn remove(context: &Context, epoch: Epoch, secret: &Object) -> Result<(), Status> {
    let options = DeleteOptions {
        resource_version: Some(secret.revision().to_string()),
        fence: epoch.fence(),
        ..DeleteOptions::default()
    };
    let target = Target::new(core_kind("Secret"), NAMESPACE, secret.name());
    context.registry.delete(target, &options).await.map(drop)
}
