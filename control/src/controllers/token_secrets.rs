//! Secrets that ask for a service account's token get it, with what one needs to use it; they go with the account.

use std::time::Duration;

use api::{Status, object};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Context, core_kind, options, settled};
use crate::auth::secret_tokens::{self, NAME_ANNOTATION, TYPE, UID_ANNOTATION};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{DeleteOptions, Object, Target};

/// How often every such Secret is looked at, beside when one changes: its account may have gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let secrets = context.every("", "Secret");
    let mut feed = Feed::new(secrets.clone());
    let mut wait = Duration::ZERO;
    loop {
        let mut changed: Vec<Delta> = Vec::new();
        tokio::select! {
            delta = feed.next() => changed.push(delta),
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(delta) = feed.try_next() {
            changed.push(delta);
        }
        if !changed.is_empty() && !changed.iter().any(|delta| is_meant(delta.object())) {
            continue;
        }
        wait = LOOK_INTERVAL;
        for secret in secrets.list().into_iter().filter(|secret| is_meant(secret)) {
            if let Err(status) = settled(handle(context, epoch, &secret).await) {
                tracing::warn!(secret = secret.name(), %status, "the Secret did not get its token");
                wait = RETRY_AFTER;
            }
        }
    }
}

fn is_meant(secret: &Object) -> bool {
    secret.value()["type"] == TYPE
}

async fn handle(context: &Context, epoch: Epoch, secret: &Object) -> Result<(), Status> {
    let (value, namespace) = (secret.value(), secret.namespace());
    let Some(name) = object::annotation(value, NAME_ANNOTATION) else { return Ok(()) };
    // As of now: a Secret goes only if its account is really gone.
    let account = match context.registry.get(core_kind("ServiceAccount"), namespace, name).await {
        Err(status) if status.reason() == "NotFound" => None,
        found => Some(found?),
    };
    let own = object::annotation(value, UID_ANNOTATION);
    let account = account.filter(|account| own.is_none_or(|own| own == object::uid(account.value())));
    let Some(account) = account else {
        let options = DeleteOptions {
            resource_version: Some(secret.revision().to_string()),
            fence: epoch.fence(),
            ..DeleteOptions::default()
        };
        let target = Target::new(core_kind("Secret"), namespace, secret.name());
        return context.registry.delete(target, &options).await.map(drop);
    };
    let has = |key: &str| value["data"][key].as_str().is_some_and(|text| !text.is_empty());
    if own.is_some() && ["token", "ca.crt", "namespace"].into_iter().all(has) {
        return Ok(());
    }
    let token = secret_tokens::issue(&context.accounts, secret.name(), account.value()).await?;
    let put = |secret: &mut Value| {
        secret["metadata"]["annotations"][UID_ANNOTATION] = json!(object::uid(account.value()));
        for (key, text) in [("token", token.as_str()), ("ca.crt", &context.ca_pem), ("namespace", namespace)]
        {
            let is_there = secret["data"][key].as_str().is_some_and(|text| !text.is_empty());
            if !is_there {
                secret["data"][key] = json!(STANDARD.encode(text));
            }
        }
        Ok(())
    };
    let target = Target::new(core_kind("Secret"), namespace, secret.name());
    context.registry.modify(target, &options(epoch), put).await.map(drop)
}
