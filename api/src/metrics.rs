//! What nodes and pods use: the objects of `metrics.k8s.io/v1beta1` (Kubernetes' resource metrics API).
//!
//! Owns their types and their schemas. They are made when somebody asks, and never stored.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a node uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeMetrics {
    /// The node's name and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The end of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Time>,
    /// How long was measured, as a duration such as `15s`.
    #[serde(default)]
    pub window: String,
    /// `cpu` and `memory`.
    #[serde(default)]
    pub usage: BTreeMap<String, Quantity>,
}

/// What a pod uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodMetrics {
    /// The pod's name, namespace and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The end of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Time>,
    /// How long was measured, as a duration such as `15s`.
    #[serde(default)]
    pub window: String,
    /// The containers that run.
    #[serde(default)]
    pub containers: Vec<ContainerMetrics>,
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerMetrics {
    /// The container's name.
    pub name: String,
    /// `cpu` and `memory`.
    pub usage: BTreeMap<String, Quantity>,
}

/// The schema of one of the kinds.
pub(crate) fn schema(kind: &str) -> Value {
    let quantities = json!({"type": "object", "description": "CPU and memory that are used.",
        "additionalProperties": {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.api.resource.Quantity"}});
    let text = |description: &str| json!({"type": "string", "description": description});
    let mut schema = json!({
        "type": "object",
        "description": format!("{kind} are the resource usage metrics of a {}.", match kind {
            "NodeMetrics" => "node",
            _ => "pod",
        }),
        "properties": {
            "apiVersion": text("Version of the schema of this representation of the object."),
            "kind": text("Kind of this object."),
            "metadata": {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
            "timestamp": {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.Time"},
            "window": text("The metrics were collected within [timestamp - window, timestamp]."),
        },
    });
    let properties = &mut schema["properties"];
    if kind == "NodeMetrics" {
        properties["usage"] = quantities;
    } else {
        properties["containers"] = json!({
            "type": "array",
            "description": "Metrics of all containers that ran in the window.",
            "items": {
                "type": "object",
                "required": ["name", "usage"],
                "properties": {"name": text("The container's name."), "usage": quantities},
            },
        });
    }
    schema
}
