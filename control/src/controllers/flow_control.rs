//! FlowSchemas and PriorityLevelConfigurations: those that every cluster begins with are made and kept as this release
//! suggests them, until a user says of one that it is his (`apf.kubernetes.io/autoupdate-spec: "false"`); schemas
//! say in their status whether their level is there.

use std::time::Duration;

use api::{Status, object};
use serde_json::{Value, json};

use super::{Context, options, settled};
use crate::flow_control::suggested::{self, AUTO_UPDATE};
use crate::flow_control::{GROUP, kind};
use crate::leader::Epoch;
use crate::object_store::SharedStore;
use crate::reflector::{Feed, Reflector};
use crate::registry::Target;

/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let schemas = context.every(GROUP, "FlowSchema");
    let levels = context.every(GROUP, "PriorityLevelConfiguration");
    let mut feeds = (Feed::new(schemas.clone()), Feed::new(levels.clone()));
    loop {
        while feeds.0.try_next().is_some() || feeds.1.try_next().is_some() {}
        let kept = keep(context, epoch, (schemas, levels)).await;
        let told = tell(context, epoch, (schemas, levels)).await;
        let failed = kept.and(told).inspect_err(|status| {
            tracing::warn!(%status, "schemas and levels of flow control are not as they should be; trying again");
        });
        tokio::select! {
            _ = feeds.0.next() => {}
            _ = feeds.1.next() => {}
            () = tokio::time::sleep(RETRY_AFTER), if failed.is_err() => {}
        }
    }
}

type Copies<'a> = (&'a Reflector<SharedStore>, &'a Reflector<SharedStore>);

/// Makes what is missing, and brings what follows this release up to date.
async fn keep(context: &Context, epoch: Epoch, (schemas, levels): Copies<'_>) -> Result<(), Status> {
    for wanted in suggested::all() {
        let (name, of) = (object::name(&wanted).to_owned(), kind(object::kind(&wanted)));
        let copy = if of == schemas.kind() { schemas } else { levels };
        let Some(there) = copy.get("", &name) else {
            match context.registry.create(of, "", wanted, &options(epoch)).await {
                Err(status) if status.reason() != "AlreadyExists" => return Err(status),
                _ => continue,
            }
        };
        let follows =
            suggested::is_mandatory(&name) || there.value()["metadata"]["annotations"][AUTO_UPDATE] == "true";
        if !follows || there.value()["spec"] == wanted["spec"] {
            continue;
        }
        let restore = |value: &mut Value| {
            value["spec"] = wanted["spec"].clone();
            Ok(())
        };
        let target = Target::new(of, "", &name);
        settled(context.registry.modify(target, &options(epoch), restore).await.map(drop))?;
    }
    Ok(())
}

/// Says in the status of each schema whether its level is there.
async fn tell(context: &Context, epoch: Epoch, (schemas, levels): Copies<'_>) -> Result<(), Status> {
    for schema in schemas.list() {
        let level = schema.value()["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
        let is_there = levels.get("", level).is_some();
        let (status, reason, rest) = match is_there {
            true => ("False", "Found", "it exists"),
            false => ("True", "NotFound", "there is no such object"),
        };
        let word = if is_there { "and" } else { "but" };
        let message = format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {word} {rest}"
        );
        let conditions = schema.value()["status"]["conditions"].as_array().into_iter().flatten();
        let is_same = |own: &Value| own["status"] == status && own["message"] == message.as_str();
        if conditions.clone().any(|own| own["type"] == "Dangling" && is_same(own)) {
            continue;
        }
        let mut others: Vec<Value> = conditions.filter(|own| own["type"] != "Dangling").cloned().collect();
        others.push(json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": object::timestamp(context.registry.now())}));
        let note = |value: &mut Value| {
            value["status"] = json!({"conditions": others});
            Ok(())
        };
        let target = Target::status(kind("FlowSchema"), "", schema.name());
        settled(context.registry.modify(target, &options(epoch), note).await.map(drop))?;
    }
    Ok(())
}
