//! Nodes: registered by their agent with a whole status.

use serde_json::Value;

use super::Strategy;

pub(super) struct NodeStrategy;

impl Strategy for NodeStrategy {
    /// An agent registers its node with addresses, capacity and conditions in one write.
    fn prepare_create(&self, _object: &mut Value) {}
}
