//! Network plumbing over synchronous netlink: bridges, veth pairs, addresses, routes, forwarded ports, Services,
//! policies, network namespaces and per-namespace sysctls. It needs no external tool.
//!
//! Owns: the wire conversation with `NETLINK_ROUTE` and `NETLINK_NETFILTER`, and the pinned namespaces
//! under `/run/netns`.
//! Promises: every call is idempotent (adding what is there and deleting what is gone succeed), and
//! returns only when the kernel has acknowledged it.
//! Does not: remember what it made. Whoever asks for a link or a namespace is its one owner and
//! deletes it.
//!
//! A [`Netlink`] socket belongs to the network namespace in which it was opened, for good; it may be
//! used from any thread. So work in another namespace needs [`Netlink::open_in`] and no `setns` by the
//! caller.

mod address;
mod announce;
mod conntrack;
mod ids;
mod ledger;
mod link;
mod netfilter;
pub mod netns;
mod nft;
mod policy_table;
mod port_forward;
mod prefix;
mod rate;
mod route;
mod service_table;
mod socket;
pub mod sysctl;
mod vxlan;

use std::io;
use std::path::PathBuf;

pub use address::Address;
pub use announce::announce_address;
pub use conntrack::{DatagramPlace, forget_dead_flows, forget_flows};
pub use link::{Link, LinkKind, VethPair, mac_of};
pub use netns::NetNs;
pub use policy_table::{Allowed, Block, PodRules, PolicyRules, PolicyTable, Ports};
pub use port_forward::{Behind, PortForward, Transport, set_port_forwards};
pub use prefix::{ParsePrefixError, Prefix};
pub use rate::burst_bytes;
pub use route::Route;
pub use service_table::{
    Backend, Frontend, Pool, Scope, ServiceRules, ServiceTable, ServiceTableConfig, WhenEmpty,
};
pub use socket::Netlink;
pub use vxlan::{Vxlan, vxlan_overhead};

/// Longest interface name that the kernel takes (IFNAMSIZ less the final zero).
pub const LINK_NAME_BYTES_MAX: usize = 15;

/// What went wrong in network plumbing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request, or the netlink socket failed.
    #[error("{operation} {subject}: {source}")]
    Netlink {
        /// What was asked, for example `create bridge`.
        operation: &'static str,
        /// Of what: a link name, an address, a route.
        subject: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("{operation}: the kernel's netlink answer could not be decoded: {detail}")]
    Decode {
        /// What was asked.
        operation: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// A listing was interrupted by changes each time it was tried.
    #[error("{operation}: the listing changed under every one of {tries} tries")]
    Unstable {
        /// What was asked.
        operation: &'static str,
        /// How often it was tried.
        tries: usize,
    },
    /// No link of that name is in the namespace.
    #[error("link {name} does not exist in this network namespace")]
    NoSuchLink {
        /// The name looked for.
        name: String,
    },
    /// A link of that name exists and is something else.
    #[error("link {name} exists but is a {found}, not a {wanted}; delete it or choose another name")]
    WrongKind {
        /// The name in use.
        name: String,
        /// What the link is.
        found: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A name that the kernel would refuse.
    #[error("{name:?} cannot name a {what}: {why}")]
    InvalidName {
        /// The name given.
        name: String,
        /// What it should name.
        what: &'static str,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A file or mount operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Error::Io { operation, path: path.into(), source: source.into() }
    }

    /// The errno behind this error, where the kernel gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Netlink { source, .. } | Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
