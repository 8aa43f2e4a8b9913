//! Consensus: the library's traits over our log, our state and our wire. Nothing of the library leaves this
//! module and `propose`, `read_index`, `store`.

pub(crate) mod checkpointer;
pub(crate) mod codec;
mod describe;
pub(crate) mod log_store;
pub(crate) mod membership;
pub(crate) mod peer_client;
pub(crate) mod peer_service;
pub(crate) mod snapshot_receive;
pub(crate) mod snapshot_send;
pub(crate) mod snapshot_transfer;
pub(crate) mod state_machine;
#[cfg(test)]
mod storage_suite;
pub(crate) mod types;

pub use codec::DecodeError;
pub use describe::{Description, describe_cluster};
pub use peer_client::{ConnectError, PeerTls};
pub(crate) use peer_client::{Connector, PeerClient};
pub use peer_service::{PeerServer, PeerService};
pub use snapshot_send::SnapshotTransfers;
pub use types::{Member, MemberId};
