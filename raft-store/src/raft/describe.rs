//! Asks a running member which cluster it belongs to, before joining it.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::raft as wire;

use super::codec;
use super::peer_client::{Connector, PeerTls};
use super::types::{Member, MemberId};

const TIMEOUT: Duration = Duration::from_secs(2);

/// A cluster as one of its members describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its id.
    pub cluster_id: [u8; 16],
    /// Its members, those included that have not started yet.
    pub members: BTreeMap<MemberId, Member>,
}

/// Asks the member at `host:port`.
///
/// # Errors
/// When it cannot be reached or does not answer sensibly, in words.
pub async fn describe_cluster(tls: Option<PeerTls>, address: &str) -> Result<Description, String> {
    // Neither cluster nor member are known yet; this one question is answered all the same.
    let connector = Connector::new(tls, "none");
    let mut client = connector.client(0, address).map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(TIMEOUT, client.describe(wire::DescribeRequest {})).await;
    let response = answer
        .map_err(|_| format!("{address} does not answer"))?
        .map_err(|status| format!("{address}: {}", status.message()))?
        .into_inner();
    let mut cluster_id = [0; 16];
    if response.cluster_id.len() != 32 {
        return Err(format!("{address} gave no cluster id"));
    }
    for (at, byte) in cluster_id.iter_mut().enumerate() {
        let digits = response.cluster_id.get(2 * at..2 * at + 2).unwrap_or("");
        *byte = u8::from_str_radix(digits, 16).map_err(|_| format!("{address} gave no cluster id"))?;
    }
    Ok(Description { cluster_id, members: response.members.iter().map(codec::member_from_wire).collect() })
}
