//! The plugins, one file each, by Kubernetes' names.

mod balanced_allocation;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_ports;
mod node_resources_fit;
mod pod_topology_spread;
mod queueing;
mod small;
mod taint_toleration;
mod volumes;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use balanced_allocation::NodeResourcesBalancedAllocation;
pub use image_locality::ImageLocality;
pub use inter_pod_affinity::InterPodAffinity;
pub use node_affinity::NodeAffinity;
pub use node_ports::NodePorts;
pub use node_resources_fit::NodeResourcesFit;
pub use pod_topology_spread::PodTopologySpread;
pub use queueing::{Coscheduling, PrioritySort, SchedulingGates};
pub use small::{DefaultBinder, DefaultPreemption, NodeName, NodeUnschedulable};
pub use taint_toleration::TaintToleration;
pub use volumes::{VolumeBinding, VolumeZone};

use crate::framework::Plugin;

type Built = Result<Arc<dyn Plugin>, String>;

/// Every plugin by name, with what makes it from its arguments.
#[expect(clippy::type_complexity, reason = "a table of names and functions says what it is")]
pub(crate) const FACTORIES: [(&str, fn(Option<&Value>) -> Built); 17] = [
    ("SchedulingGates", |args| without_args(args, SchedulingGates)),
    ("PrioritySort", |args| without_args(args, PrioritySort)),
    ("NodeUnschedulable", |args| without_args(args, NodeUnschedulable)),
    ("NodeName", |args| without_args(args, NodeName)),
    ("TaintToleration", |args| without_args(args, TaintToleration)),
    ("NodeAffinity", |args| Ok(Arc::new(NodeAffinity::new(read(args, "NodeAffinityArgs")?)?))),
    ("NodePorts", |args| without_args(args, NodePorts)),
    ("NodeResourcesFit", |args| Ok(Arc::new(NodeResourcesFit::new(read(args, "NodeResourcesFitArgs")?)?))),
    ("VolumeBinding", |args| without_args(args, VolumeBinding)),
    ("VolumeZone", |args| without_args(args, VolumeZone)),
    ("PodTopologySpread", |args| Ok(Arc::new(PodTopologySpread::new(read(args, "PodTopologySpreadArgs")?)?))),
    ("InterPodAffinity", |args| Ok(Arc::new(InterPodAffinity::new(read(args, "InterPodAffinityArgs")?)?))),
    ("Coscheduling", |args| without_args(args, Coscheduling)),
    ("DefaultPreemption", |args| Ok(Arc::new(DefaultPreemption::new(read(args, "DefaultPreemptionArgs")?)?))),
    ("NodeResourcesBalancedAllocation", |args| {
        let args = read(args, "NodeResourcesBalancedAllocationArgs")?;
        Ok(Arc::new(NodeResourcesBalancedAllocation::new(args)?))
    }),
    ("ImageLocality", |args| without_args(args, ImageLocality)),
    ("DefaultBinder", |args| without_args(args, DefaultBinder)),
];

fn without_args(args: Option<&Value>, plugin: impl Plugin + 'static) -> Built {
    match args {
        None | Some(Value::Null) => Ok(Arc::new(plugin)),
        Some(_) => Err("it takes none".to_owned()),
    }
}

/// The arguments of the kind expected; without any, the defaults.
fn read<T: DeserializeOwned + Default>(args: Option<&Value>, kind: &str) -> Result<T, String> {
    let Some(Value::Object(fields)) = args.filter(|args| !args.is_null()) else {
        return if args.is_none_or(Value::is_null) { Ok(T::default()) } else { Err("not an object".into()) };
    };
    let mut fields = fields.clone();
    if let Some(named) = fields.remove("kind").filter(|named| named != kind) {
        return Err(format!("kind {named} is not {kind}"));
    }
    fields.remove("apiVersion");
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}
