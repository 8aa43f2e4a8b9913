//! Evictions: deletions of pods that keep to the disruption budgets.
//!
//! Owns the check of an eviction against the budgets that select the pod, and the lowering of what such a budget
//! allows: a guarded write, so that two evictions at once never use the same allowance.

use api::{Kind, LabelSelector, Status, object};
use serde_json::{Value, json};

use super::{DeleteOptions, Deleted, Disruption, ListOptions, Object, Registry, Target, WriteOptions};

/// Budgets that select one pod: Kubernetes refuses more than one as well.
const BUDGETS_MAX: usize = 1;
/// After how long a refused eviction is worth trying again.
const RETRY_AFTER_S: u32 = 10;
/// Evictions that a budget remembers at once.
const EVICTED_MAX: usize = 2000;

fn budget_kind() -> &'static Kind {
    api::kinds::by_kind("policy", "v1", "PodDisruptionBudget").expect("the table of kinds has budgets")
}

fn refused() -> Status {
    Status::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        RETRY_AFTER_S,
    )
}

impl Registry {
    /// Evicts a pod: deletes it if every budget allows it.
    pub async fn evict(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let options = &DeleteOptions { disruption: Some(Disruption::Eviction), ..options.clone() };
        let pods = api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod");
        let target = Target::new(pods, namespace, name);
        let pod = self.get(pods, namespace, name).await?;
        if needs_no_budget(pod.value()) {
            return self.delete(target, options).await;
        }
        let budgets = self.list(budget_kind(), Some(namespace), &ListOptions::default()).await?;
        let own: Vec<&Object> =
            budgets.items.iter().map(AsRef::as_ref).filter(|budget| selects(budget, &pod)).collect();
        if own.len() > BUDGETS_MAX {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::internal(why));
        }
        if let Some(budget) = own.first()
            && !may_go_unhealthy(budget.value(), pod.value())
        {
            self.take_allowance(budget, name, options).await?;
        }
        // Only the pod that was looked at.
        let uid = options.uid.clone().or_else(|| Some(object::uid(pod.value()).to_owned()));
        self.delete(target, &DeleteOptions { uid, ..options.clone() }).await
    }

    async fn take_allowance(
        &self,
        budget: &Object,
        pod: &str,
        options: &DeleteOptions,
    ) -> Result<(), Status> {
        let target = Target::status(budget_kind(), budget.namespace(), budget.name());
        let at = object::timestamp(self.now());
        let change = |value: &mut Value| {
            let generation = object::generation(value);
            let status = &mut value["status"];
            // What was counted for another spec says nothing of this one.
            let is_current = status["observedGeneration"].as_i64().unwrap_or(0) >= generation;
            let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
            let known = status["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
            if !is_current || allowed <= 0 || known >= EVICTED_MAX {
                return Err(refused());
            }
            status["disruptionsAllowed"] = json!(allowed - 1);
            if !status["disruptedPods"].is_object() {
                status["disruptedPods"] = json!({});
            }
            status["disruptedPods"][pod] = json!(at);
            Ok(())
        };
        let write =
            WriteOptions { dry_run: options.dry_run, fence: options.fence, ..WriteOptions::default() };
        self.modify(target, &write, change).await.map(drop)
    }
}

/// Pods that are through, or on no node yet, disturb nobody by going.
fn needs_no_budget(pod: &Value) -> bool {
    object::deletion_timestamp(pod).is_some()
        || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
}

/// Whether the pod serves nobody and the budget lets such pods go.
fn may_go_unhealthy(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_ready = conditions.into_iter().any(|own| own["type"] == "Ready" && own["status"] == "True");
    let status = &budget["status"];
    let is_met = status["currentHealthy"].as_i64() >= status["desiredHealthy"].as_i64()
        && status["desiredHealthy"].as_i64().unwrap_or(0) > 0;
    !is_ready && (budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || is_met)
}

fn selects(budget: &Object, pod: &Object) -> bool {
    let selector = &budget.value()["spec"]["selector"];
    let typed = serde_json::from_value(selector.clone()).ok();
    !selector.is_null()
        && LabelSelector::from_typed(typed.as_ref())
            .is_ok_and(|selector| selector.matches_object(pod.value()))
}
