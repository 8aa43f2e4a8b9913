//! The status of an autoscaler, as it grows during a look.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use serde_json::{Value, json};

/// A status in the making; what is not said stays as it was.
#[derive(Debug)]
pub(super) struct Report {
    status: Value,
    conditions: Vec<Value>,
    now: String,
}

impl Report {
    /// Begins with what is known.
    pub(super) fn new(autoscaler: &HorizontalPodAutoscaler, now: Timestamp) -> Self {
        let mut status = json!({"currentReplicas": 0, "desiredReplicas": 0, "currentMetrics": null});
        let mut conditions = Vec::new();
        if let Some(known) = &autoscaler.status {
            status["currentReplicas"] = json!(known.current_replicas.unwrap_or(0));
            status["desiredReplicas"] = json!(known.desired_replicas);
            if let Some(at) = &known.last_scale_time {
                status["lastScaleTime"] = json!(at);
            }
            conditions = known.conditions.iter().flatten().map(|condition| json!(condition)).collect();
        }
        if let Some(generation) = autoscaler.metadata.generation {
            status["observedGeneration"] = json!(generation);
        }
        Self { status, conditions, now: api::object::timestamp(now) }
    }

    pub(super) fn current(&mut self, replicas: i32) {
        self.status["currentReplicas"] = json!(replicas);
    }

    pub(super) fn desired(&mut self, replicas: i32) {
        self.status["desiredReplicas"] = json!(replicas);
    }

    pub(super) fn metrics(&mut self, statuses: Vec<Value>) {
        self.status["currentMetrics"] = match statuses.is_empty() {
            true => Value::Null,
            false => Value::Array(statuses),
        };
    }

    pub(super) fn rescaled(&mut self) {
        self.status["lastScaleTime"] = json!(self.now);
    }

    pub(super) fn able(&mut self, is: bool, reason: &str, message: &str) {
        self.condition("AbleToScale", is, reason, message);
    }

    pub(super) fn active(&mut self, is: bool, reason: &str, message: &str) {
        self.condition("ScalingActive", is, reason, message);
    }

    pub(super) fn limited(&mut self, is: bool, reason: &str, message: &str) {
        self.condition("ScalingLimited", is, reason, message);
    }

    fn condition(&mut self, name: &str, is: bool, reason: &str, message: &str) {
        let status = if is { "True" } else { "False" };
        let known = self.conditions.iter_mut().find(|condition| condition["type"] == name);
        let turned = known.as_ref().filter(|condition| condition["status"] == status);
        let since =
            turned.and_then(|condition| condition["lastTransitionTime"].as_str()).unwrap_or(&self.now);
        let new = json!({"type": name, "status": status, "lastTransitionTime": since, "reason": reason,
            "message": message});
        match known {
            Some(condition) => *condition = new,
            None => self.conditions.push(new),
        }
    }

    /// The status; fields without a value are left out.
    pub(super) fn finish(mut self) -> Value {
        self.status["conditions"] = Value::Array(self.conditions);
        if self.status["currentMetrics"].is_null()
            && let Some(fields) = self.status.as_object_mut()
        {
            fields.remove("currentMetrics");
        }
        self.status
    }
}
