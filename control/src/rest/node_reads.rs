//! What is read from nodes: container logs, and the numbers that nodes count.

use std::pin::Pin;

use api::Status;
use bytes::Bytes;
use futures_util::Stream;

use super::logs::LogRequest;

/// Bytes as they come from a node.
pub type NodeBytes = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
/// The future that a read gives.
pub type NodeBytesFuture<'a> = Pin<Box<dyn Future<Output = Result<NodeBytes, Status>> + Send + 'a>>;

/// Which of its numbers a node is asked for; each is a path of a kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measurements {
    /// `/metrics`: of the agent, as Prometheus text.
    Metrics,
    /// `/metrics/resource`: CPU and memory of the node, its pods and containers, as Prometheus text.
    Resources,
    /// `/stats/summary`: the same and averages, as JSON.
    Summary,
}

/// Asks nodes. Errors are those that the client should see.
pub trait NodeReads: Send + Sync + 'static {
    /// Opens a container's log.
    fn log(&self, request: LogRequest) -> NodeBytesFuture<'_>;

    /// Asks a node for numbers.
    fn measurements(&self, node: &str, form: Measurements) -> NodeBytesFuture<'_>;
}
