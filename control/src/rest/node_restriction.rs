//! What a node must not end or ask for, beside what it must not write (`auth::nodes`): pods of other nodes, and
//! tokens of accounts whose pods run elsewhere.

use api::{Status, object};
use serde_json::Value;

use super::Rest;
use super::verbs::{Call, Verb};
use crate::auth::nodes::restriction::is_bound;

impl Rest {
    /// Refuses a node's deletion or eviction of a pod that is not its own. Gives the uid of the pod that was looked
    /// at: a later one of the same name is another's.
    pub(super) async fn restrict_node(&self, call: &Call<'_>) -> Result<Option<String>, Status> {
        let Some(node) = call.identity.node_name() else { return Ok(None) };
        let is_pod = call.kind().kind == "Pod" && call.kind().group.is_empty();
        let what = match (call.verb, call.resource.subresource.as_deref()) {
            (Verb::Delete, None) => "delete",
            (Verb::Create, Some("eviction")) => "evict",
            _ => return Ok(None),
        };
        if !is_pod {
            return Ok(None);
        }
        let pod = self.registry.get(call.kind(), call.namespace(), call.name()).await?;
        if !is_bound(pod.value(), node) {
            let why = format!("node {node:?} can only {what} pods with spec.nodeName set to itself");
            return Err(Status::forbidden(call.kind(), call.name(), &why));
        }
        Ok(Some(object::uid(pod.value()).to_owned()))
    }

    /// Refuses a node's request for a token that is not bound to one of its own pods.
    pub(super) fn restrict_token(&self, call: &Call<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let Some(node) = call.identity.node_name() else { return Ok(()) };
        let why = match pod {
            None => "node requested token not bound to a pod",
            Some(pod) if !is_bound(pod, node) => {
                "node requested token bound to a pod scheduled on a different node"
            }
            Some(_) => return Ok(()),
        };
        Err(Status::forbidden(call.kind(), call.name(), why))
    }
}
