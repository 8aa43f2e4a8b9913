//! What a member has above its store where there are nodes: the control plane's own code, without TLS. Who calls is known by the
//! host that the call comes from.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use control::auth::{Identity, NODE_USER_PREFIX, SYSTEM_AUTHENTICATED, SYSTEM_MASTERS, SYSTEM_NODES};
use control::pki::Authority;
use control::port::{Caller, Services, converse};
use raft_store::Store;
use serde_json::{Map, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::net::TcpListener;

use crate::faults::CLIENTS;
use crate::members::name;

/// Where the Kubernetes API is served, over HTTP/1.1.
pub(crate) const API_PORT: u16 = 6443;
/// Where node agents are heard, over HTTP/2.
pub(crate) const NODE_PORT: u16 = 6444;
/// How long a node may be silent.
const NODE_GRACE: &str = "1s";

/// Starts it; it lives as long as the host's process.
pub(crate) async fn start(
    store: &Store,
    authority: Arc<Authority>,
    directory: &Path,
    number: usize,
    members: usize,
) -> turmoil::Result {
    let address = |number| (name(number), json!(SocketAddr::new(turmoil::lookup(name(number)), API_PORT)));
    let config = json!({
        "name": name(number),
        "dataDir": directory,
        "tokenFile": directory,
        "initialMembers": (0..members).map(address).collect::<Map<_, _>>(),
        "nodeGracePeriod": NODE_GRACE,
    });
    let config = serde_json::from_value(config)?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let services = control::server::start_above(&config, store, authority, &tasks, &stop)?;
    for (port, http2) in [(API_PORT, false), (NODE_PORT, true)] {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        tokio::spawn(serve(listener, http2, services.clone(), stop.clone()));
    }
    Ok(())
}

async fn serve(listener: TcpListener, http2: bool, services: Services, stop: CancellationToken) {
    while let Ok((stream, peer)) = listener.accept().await {
        let caller = Caller { identity: identity(peer.ip()), peer: None, http2 };
        tokio::spawn(converse(stream, caller, services.clone(), stop.clone()));
    }
}

fn identity(peer: IpAddr) -> Identity {
    let host = turmoil::reverse_lookup(peer).unwrap_or_default();
    let (user, group) = match host.as_str() {
        CLIENTS => ("admin".to_owned(), SYSTEM_MASTERS),
        node => (format!("{NODE_USER_PREFIX}{node}"), SYSTEM_NODES),
    };
    Identity { user, groups: vec![group.to_owned(), SYSTEM_AUTHENTICATED.to_owned()], ..Identity::default() }
}
