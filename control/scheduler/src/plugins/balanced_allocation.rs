//! NodeResourcesBalancedAllocation: a node whose resources fill up evenly wastes none of them.

use serde::Deserialize;

use super::node_resources_fit::{ResourceWeight, checked, is_common, usage};
use crate::framework::{Plugin, SCORE_MAX, Score};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Arguments of NodeResourcesBalancedAllocation.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesBalancedAllocationArgs {
    resources: Vec<ResourceWeight>,
}

/// Prefers nodes where, with the pod, the used fractions of the resources lie close together.
#[derive(Debug, Clone)]
pub struct NodeResourcesBalancedAllocation {
    resources: Vec<ResourceWeight>,
}

impl NodeResourcesBalancedAllocation {
    /// The plugin with these arguments.
    pub fn new(args: NodeResourcesBalancedAllocationArgs) -> Result<Self, String> {
        Ok(Self { resources: checked(args.resources)? })
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score(&self) -> Option<&dyn Score> {
        Some(self)
    }
}

impl Score for NodeResourcesBalancedAllocation {
    fn applies(&self, pod: &PodInfo) -> bool {
        self.resources.iter().any(|resource| pod.class.requests.amount(&resource.name) > 0)
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let mut fractions = [0.0; 8];
        let mut count = 0;
        for resource in &self.resources {
            let (own, wanted, capacity) = usage(pod, node, &resource.name, true);
            if capacity > 0 && (own > 0 || is_common(&resource.name)) && count < fractions.len() {
                fractions[count] = (wanted as f64 / capacity as f64).min(1.0);
                count += 1;
            }
        }
        ((1.0 - deviation(&fractions[..count])) * SCORE_MAX as f64) as i64
    }
}

/// The standard deviation.
fn deviation(fractions: &[f64]) -> f64 {
    match fractions {
        [] | [_] => 0.0,
        // Of two numbers it is half their distance.
        [one, other] => (one - other).abs() / 2.0,
        many => {
            let mean = many.iter().sum::<f64>() / many.len() as f64;
            let squares = many.iter().map(|fraction| (fraction - mean).powi(2)).sum::<f64>();
            (squares / many.len() as f64).sqrt()
        }
    }
}
