//! Pod networking: one bridge per node, one veth and one address per pod, routes to the other nodes' pods.
//!
//! Services are led to their endpoints (`services`) and pods held to policies (`policies`) out of a copy of all of them
//! (`cluster`).
//! The agent's own network namespace is "the host". Owns the bridge, the veths, the forwarded ports of the host, the routes through which the
//! node reaches its peers' pods, and the files that say which pod has which address. Promises: an address is
//! written down before it is used and never belongs to two pods; every call may be repeated.

mod bridge;
pub(crate) mod cluster;
pub(crate) mod cni;
pub(crate) mod health_checks;
pub(crate) mod held;
mod host_ports;
mod ipam;
mod peers;
pub(crate) mod policies;
pub(crate) mod services;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(crate) use bridge::{BridgeNetwork, Peer, Topology};
pub use cni::CniConfig;
pub(crate) use peers::Underlay;
pub use peers::{Encapsulation, PodNetworkConfig};

use crate::pods::admission::HostPort;
use crate::pods::bandwidth::Bandwidth;

/// The pod's interface.
const POD_LINK: &str = "eth0";

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
    /// A leader has named policies, and not yet told them all.
    #[error("the control plane has not told all policies to this node yet")]
    PoliciesUnknown,
    /// A pod is held to policies, and this kernel's bridges pass packets on unseen.
    #[error(
        "pods of this node cannot be held to policies: its bridge does not meet the packet filter; load the kernel's \
         module br_netfilter: {0}"
    )]
    BridgeNotFiltered(#[source] runtime::net::Error),
    /// An address of Services cannot be held, because no link has the node's own.
    #[error(
        "no link of this host has the node's address {address}; `internalIp` in the configuration names it"
    )]
    NoLink { address: IpAddr },
    /// The pod asks for what cannot be had.
    #[error("{0}")]
    Bandwidth(String),
    /// Plugins that connect pods.
    #[error(transparent)]
    Cni(#[from] cni::CniError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] runtime::net::Error),
    /// The files that hold the addresses cannot be used.
    #[error("cannot use {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// Why a file of the network's cannot be used.
fn file_error(path: &Path) -> impl FnOnce(io::Error) -> NetworkError + use<> {
    let path = path.to_owned();
    move |source| NetworkError::File { path, source }
}

/// What is wrong with a range of pod addresses, if anything is.
pub(crate) fn check_range(text: &str) -> Option<String> {
    ipam::Range::parse(text).err().map(|error| error.to_string())
}

/// The first address of a range, which its bridge has, and the length of its prefix.
pub(crate) fn gateway_of(range: &str) -> Option<(String, u8)> {
    let range = ipam::Range::parse(range).ok()?;
    Some((range.gateway().to_string(), range.prefix_length()))
}

/// A pod that is to be connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) uid: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// Ports of the host that are to lead to it.
    pub(crate) ports: &'a [HostPort],
    /// How fast it may send and receive.
    pub(crate) bandwidth: Bandwidth,
}

/// What pod workers need of the network. Calls block.
pub(crate) trait PodNetwork: Send + Sync + 'static {
    /// The pod's address, the same one on every call until it is released; `None`: it is known when the pod is connected.
    fn reserve(&self, uid: &str) -> Result<Option<IpAddr>, NetworkError>;
    /// Connects a network namespace: eth0 with the pod's address, lo, a default route. Gives the address.
    fn attach(&self, pod: &Wanted<'_>, netns: &Path) -> Result<IpAddr, NetworkError>;
    /// Makes ports of the host lead to a connected pod.
    fn publish(&self, uid: &str, ip: IpAddr, ports: &[HostPort]) -> Result<(), NetworkError>;
    /// Makes ports of the host lead to exactly these connected pods.
    fn publish_all(&self, pods: &[(String, IpAddr, Vec<HostPort>)]) -> Result<(), NetworkError>;
    /// Disconnects the pod and frees its address. Nothing there is no error.
    fn release(&self, uid: &str) -> Result<(), NetworkError>;
    /// The pods that have addresses.
    fn owners(&self) -> Result<Vec<String>, NetworkError>;
}
