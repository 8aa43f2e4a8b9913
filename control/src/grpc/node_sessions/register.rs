//! Registration: a node's object exists, carries what the agent says of itself, and has its range of pod
//! addresses.

use api::{Kind, Status, object};
use serde_json::{Value, json};

use super::NodeSessions;
use crate::controllers::node_lifecycle::node_taints;
use crate::leader::Epoch;
use crate::registry::{FieldManager, ListOptions, Target, WriteOptions};

pub(super) fn node_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Node").expect("the table of kinds has Node")
}

impl NodeSessions {
    /// Creates the node's object, or brings it in line with what the agent says; an existing status is
    /// replaced only `with_status`. May run twice.
    pub(super) async fn register(
        &self,
        node: &str,
        said: &Value,
        with_status: bool,
        epoch: Epoch,
    ) -> Result<(), Status> {
        // One registration at a time: two nodes must not be given the same range.
        let _allocating = self.inner.allocation.lock().await;
        // Nodes change rarely, so that theirs is the one status of a node's that is tracked.
        let manager = FieldManager::Updates("kubelet".to_owned());
        let options = WriteOptions { fence: epoch.fence(), manager, ..WriteOptions::default() };
        let registry = &self.inner.registry;
        match registry.get(node_kind(), "", node).await {
            Ok(_) => {}
            Err(status) if status.reason() == "NotFound" => {
                let range = self.allocate().await?;
                let created = registry.create(node_kind(), "", new_node(node, said, &range), &options).await;
                match created {
                    Err(status) if status.reason() == "AlreadyExists" => {}
                    created => {
                        created?;
                        tracing::info!(node, range, "node registered");
                        return Ok(());
                    }
                }
            }
            Err(status) => return Err(status),
        }
        self.refresh(node, said, with_status, &options).await
    }

    /// Labels and status of an existing node; a range if it has none.
    async fn refresh(
        &self,
        node: &str,
        said: &Value,
        with_status: bool,
        options: &WriteOptions,
    ) -> Result<(), Status> {
        let registry = &self.inner.registry;
        let current = registry.get(node_kind(), "", node).await?;
        let has_range = current.value()["spec"]["podCIDR"].as_str().is_some_and(|range| !range.is_empty());
        let range = if has_range { None } else { Some(self.allocate().await?) };
        registry
            .modify(Target::new(node_kind(), "", node), options, |value| {
                for field in ["labels", "annotations"] {
                    merge(value, said, field);
                }
                if let Some(range) = &range {
                    set_range(value, range);
                }
                Ok(())
            })
            .await?;
        if with_status && said["status"].is_object() {
            registry
                .modify(Target::status(node_kind(), "", node), options, |value| {
                    set_status(value, &said["status"]);
                    Ok(())
                })
                .await?;
        }
        Ok(())
    }

    async fn allocate(&self) -> Result<String, Status> {
        let nodes = self.inner.registry.list(node_kind(), None, &ListOptions::default()).await?;
        let taken = nodes.items.iter().filter_map(|node| node.value()["spec"]["podCIDR"].as_str());
        self.inner.range.allocate(taken).map_err(|error| Status::internal(&error.to_string()))
    }
}

fn new_node(name: &str, said: &Value, range: &str) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name},
        "spec": {},
        "status": said["status"],
    });
    if node["status"].is_null() {
        node["status"] = json!({});
    }
    for field in ["labels", "annotations"] {
        merge(&mut node, said, field);
    }
    let given = said["spec"]["taints"].as_array().cloned().unwrap_or_default();
    node["spec"]["taints"] = Value::from(given);
    set_range(&mut node, range);
    // A node that is not ready yet gets no pods in the moment before its controller looks at it.
    if let Some(taints) = node_taints(&node, &object::timestamp(jiff::Timestamp::now())) {
        node["spec"]["taints"] = Value::from(taints);
    }
    node
}

/// The node is the author of its status. Since when a condition is what it is, the store knows better: a node
/// forgets that when its agent starts anew, and has not seen what was said of it while it was silent.
pub(super) fn set_status(node: &mut Value, said: &Value) {
    let mut status = said.clone();
    let known = node["status"]["conditions"].take();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let same_type = |known: &&Value| known["type"] == condition["type"];
        let Some(known) = known.as_array().into_iter().flatten().find(same_type) else { continue };
        let time = |condition: &Value| object::parse_timestamp(condition["lastTransitionTime"].as_str()?);
        let since = match known["status"] == condition["status"] {
            true => known["lastTransitionTime"].clone(),
            false if time(condition) < time(known) => condition["lastHeartbeatTime"].clone(),
            false => continue,
        };
        if since.is_string() {
            condition["lastTransitionTime"] = since;
        }
    }
    node["status"] = status;
}

fn set_range(node: &mut Value, range: &str) {
    node["spec"]["podCIDR"] = Value::from(range);
    node["spec"]["podCIDRs"] = json!([range]);
}

/// Entries that the agent says; others stay.
fn merge(node: &mut Value, said: &Value, field: &str) {
    let Some(entries) = said["metadata"][field].as_object().filter(|entries| !entries.is_empty()) else {
        return;
    };
    if !node["metadata"][field].is_object() {
        node["metadata"][field] = json!({});
    }
    for (key, entry) in entries {
        node["metadata"][field][key] = entry.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_the_time_of_their_last_flip() {
        let ready = |status: &str, since: &str, heard: &str| {
            json!({"conditions": [
            {"type": "Ready", "status": status, "lastTransitionTime": since, "lastHeartbeatTime": heard}]})
        };
        let mut node = json!({"status": ready("True", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z")});
        let mut since = |status, since, heard| {
            set_status(&mut node, &ready(status, since, heard));
            let condition = &node["status"]["conditions"][0];
            assert_eq!(condition["lastHeartbeatTime"], heard);
            condition["lastTransitionTime"].as_str().unwrap_or_default().to_owned()
        };
        // The agent has started anew.
        let restarted = since("True", "2024-01-02T00:00:00Z", "2024-01-02T00:00:01Z");
        assert_eq!(restarted, "2024-01-01T00:00:00Z");
        assert_eq!(since("False", "2024-01-03T00:00:00Z", "2024-01-03T00:00:00Z"), "2024-01-03T00:00:00Z");
        // It was silent, and is back with what it remembers.
        let back = since("True", "2024-01-02T00:00:00Z", "2024-01-04T00:00:00Z");
        assert_eq!(back, "2024-01-04T00:00:00Z");
    }
}
