//! ClusterRoles: those that every cluster has are made, and those that are made of others get their rules.

use std::time::Duration;

use api::kinds::RBAC_GROUP;
use api::{Kind, LabelSelector, Status, object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::{Value, json};

use super::{Context, options, settled};
use crate::auth::rbac::defaults;
use crate::leader::Epoch;
use crate::reflector::Feed;
use crate::registry::{Object, Target};

/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut feed = Feed::new(context.cluster_roles.clone());
    while let Err(status) = defaults::bootstrap(&context.registry, &options(epoch)).await {
        tracing::warn!(%status, "the default roles could not be made; trying again");
        tokio::time::sleep(RETRY_AFTER).await;
    }
    loop {
        while feed.try_next().is_some() {}
        let roles = context.cluster_roles.list();
        let mut has_failed = false;
        for role in &roles {
            let Some(rules) = aggregated(role.value(), &roles) else { continue };
            if role.value()["rules"] == rules {
                continue;
            }
            if let Err(status) = write(context, epoch, role.name(), &rules).await {
                tracing::warn!(role = role.name(), %status, "the role did not get the rules of its parts");
                has_failed = true;
            }
        }
        tokio::select! {
            _ = feed.next() => {}
            () = tokio::time::sleep(RETRY_AFTER), if has_failed => {}
        }
    }
}

async fn write(context: &Context, epoch: Epoch, name: &str, rules: &Value) -> Result<(), Status> {
    let put = |role: &mut Value| {
        role["rules"] = rules.clone();
        Ok(())
    };
    let target = Target::new(kind(), "", name);
    settled(context.registry.modify(target, &options(epoch), put).await.map(drop))
}

fn kind() -> &'static Kind {
    api::kinds::by_kind(RBAC_GROUP, "v1", "ClusterRole").expect("the table of kinds has ClusterRole")
}

/// The rules of a role that is made of others, each rule once, in the order of the others' names.
fn aggregated(role: &Value, all: &[std::sync::Arc<Object>]) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<LabelSelector> = selectors
        .iter()
        .filter_map(|selector| serde_json::from_value::<meta::LabelSelector>(selector.clone()).ok())
        .filter_map(|selector| LabelSelector::from_typed(Some(&selector)).ok())
        .collect();
    let mut parts: Vec<&Value> = all
        .iter()
        .map(|other| other.value())
        .filter(|other| object::name(other) != object::name(role))
        .filter(|other| selectors.iter().any(|selector| selector.matches_object(other)))
        .collect();
    parts.sort_by_key(|part| object::name(part));
    let mut rules: Vec<&Value> = Vec::new();
    for rule in parts.iter().flat_map(|part| part["rules"].as_array().into_iter().flatten()) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    Some(json!(rules))
}
