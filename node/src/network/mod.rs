//! Pod networking: one bridge per node, one veth and one address per pod, routes to the other nodes' pods.
//!
//! The agent's own network namespace is "the host". Owns the bridge, the veths, the forwarded ports of the host, the routes through which the
//! node reaches its peers' pods, and the files that say which pod has which address. Promises: an address is
//! written down before it is used and never belongs to two pods; every call may be repeated.

mod bridge;
mod host_ports;
mod ipam;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(crate) use bridge::{BridgeNetwork, Peer, Topology};

use crate::pods::admission::HostPort;

/// Why networking failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The leader has not told the node's pod address range yet.
    #[error("the control plane has not assigned a pod address range to this node yet")]
    NotReady,
    /// Every address of the range belongs to a pod.
    #[error("no address is left in {range}")]
    Exhausted { range: String },
    /// The range is not one that pods can live in.
    #[error("{range:?} cannot be a pod address range: {problem}")]
    BadRange { range: String, problem: &'static str },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] runtime::net::Error),
    /// The files that hold the addresses cannot be used.
    #[error("cannot use {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// What is wrong with a range of pod addresses, if anything is.
pub(crate) fn check_range(text: &str) -> Option<String> {
    ipam::Range::parse(text).err().map(|error| error.to_string())
}

/// What pod workers need of the network. Calls block.
pub(crate) trait PodNetwork: Send + Sync + 'static {
    /// The pod's address; the same one on every call until it is released.
    fn reserve(&self, uid: &str) -> Result<IpAddr, NetworkError>;
    /// Connects a network namespace: eth0 with the address, lo, a default route.
    fn attach(&self, uid: &str, ip: IpAddr, netns: &Path) -> Result<(), NetworkError>;
    /// Makes ports of the host lead to a connected pod.
    fn publish(&self, uid: &str, ip: IpAddr, ports: &[HostPort]) -> Result<(), NetworkError>;
    /// Makes ports of the host lead to exactly these connected pods.
    fn publish_all(&self, pods: &[(String, IpAddr, Vec<HostPort>)]) -> Result<(), NetworkError>;
    /// Disconnects the pod and frees its address. Nothing there is no error.
    fn release(&self, uid: &str) -> Result<(), NetworkError>;
    /// The pods that have addresses.
    fn owners(&self) -> Result<Vec<String>, NetworkError>;
}
