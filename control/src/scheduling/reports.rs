//! What pods' owners are told: Events, and the condition `PodScheduled` of pods that fit nowhere.

use std::time::Instant;

use api::{Kind, Status, object};
use jiff::Timestamp;
use scheduler::PodInfo;
use serde_json::{Value, json};

use super::{COMPONENT, REPEAT_AFTER, REPORTS_MAX, Shell};
use crate::leader::Epoch;
use crate::registry::{Binding, EventRecord, EventType, Regarding, Registry, Target, set_condition};

impl Shell {
    pub(super) fn bound(&mut self, epoch: Epoch, binding: &Binding) {
        self.metrics.scheduled();
        self.core.bound(&binding.uid, &binding.node);
        self.said.remove(&binding.uid);
        let Binding { namespace, name, node, .. } = binding;
        self.say(
            epoch,
            regarding(namespace, name, &binding.uid),
            (EventType::Normal, "Scheduled"),
            format!("Successfully assigned {namespace}/{name} to {node}"),
        );
    }

    /// Tells the pod's owner why it waits, if that is news, and where room is being made for it.
    pub(super) fn report(&mut self, epoch: Epoch, pod: &PodInfo, message: String, nominated: Option<&str>) {
        let known = self.said.get(&*pod.uid);
        let is_news = known.is_none_or(|(said, _)| *said != message) || nominated.is_some();
        if !is_news && known.is_some_and(|(_, at)| at.elapsed() < REPEAT_AFTER) {
            return;
        }
        self.said.insert(pod.uid.to_string(), (message.clone(), Instant::now()));
        let about = regarding(&pod.namespace, &pod.name, &pod.uid);
        self.say(epoch, about.clone(), (EventType::Warning, "FailedScheduling"), message.clone());
        // Where room is made must be known to the next leader; what is only said may be left out.
        if is_news && (self.reports.len() < REPORTS_MAX || nominated.is_some()) {
            let registry = self.registry.clone();
            let nominated = nominated.map(str::to_owned);
            self.reports.push(Box::pin(async move {
                let told = Told { message, nominated };
                if let Err(status) = write_unschedulable(&registry, &about, &told, epoch).await {
                    tracing::debug!(pod = about.name, %status, "the pod's condition was not written");
                }
            }));
        }
    }

    pub(super) fn say(
        &self,
        epoch: Epoch,
        regarding: Regarding,
        (event_type, reason): (EventType, &str),
        message: String,
    ) {
        let record = EventRecord::now(COMPONENT, regarding, event_type, reason, message);
        self.events.say(record, epoch.fence());
    }
}

pub(super) fn regarding(namespace: &str, name: &str, uid: &str) -> Regarding {
    Regarding {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        field_path: String::new(),
    }
}

pub(super) fn pod_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod")
}

struct Told {
    message: String,
    nominated: Option<String>,
}

/// Sets the pod's condition PodScheduled to False with the message, unless it says so already.
async fn write_unschedulable(
    registry: &Registry,
    pod: &Regarding,
    told: &Told,
    epoch: Epoch,
) -> Result<(), Status> {
    change_status(registry, pod, epoch, |value, now| {
        let is_bound = value["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        if is_bound {
            return;
        }
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": told.message,
            "lastProbeTime": null,
        });
        set_condition(value, condition, now);
        if let Some(node) = &told.nominated {
            value["status"]["nominatedNodeName"] = Value::from(node.as_str());
        }
    })
    .await
}

/// Changes the status of a pod that is still the one meant; none is fine.
pub(super) async fn change_status(
    registry: &Registry,
    pod: &Regarding,
    epoch: Epoch,
    change: impl Fn(&mut Value, &str) + Send + Sync,
) -> Result<(), Status> {
    let target = Target::status(pod_kind(), &pod.namespace, &pod.name);
    let now = object::timestamp(Timestamp::now());
    registry.change_status_of(&pod.uid, target, epoch.fence(), |value| change(value, &now)).await
}
