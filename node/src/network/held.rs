//! Addresses of Services that this node holds for everybody outside: the leader says which, the node takes them on the
//! link of its own address and announces them to its neighbours.
//!
//! Owns those addresses, and a file that names them, so that a later life of the agent knows which to give up. Keeps what it
//! holds until a leader says otherwise: while masters are away, and while the agent is. An address that was taken is
//! announced at once and a few times more, for neighbours that missed it; one that somebody removed is taken again within
//! [`CHECK_INTERVAL`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use runtime::net::{Netlink, Prefix, announce_address};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::NetworkError;

/// How often it is looked whether the addresses are there.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often an address is announced once it was taken, one announcement with each look.
const ANNOUNCEMENTS: u8 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct HeldAddresses {
    node_address: IpAddr,
    file: PathBuf,
    wanted: watch::Sender<Option<BTreeSet<Ipv4Addr>>>,
}

impl HeldAddresses {
    /// State lies below `dir`; addresses are taken on the link that has `node_address`.
    pub(crate) fn open(dir: &Path, node_address: IpAddr) -> Self {
        Self { node_address, file: dir.join("held-addresses.json"), wanted: watch::Sender::new(None) }
    }

    /// A leader says that the node holds exactly these.
    pub(crate) fn want(&self, addresses: BTreeSet<Ipv4Addr>) {
        self.wanted.send_if_modified(|wanted| {
            let changes = wanted.as_ref() != Some(&addresses);
            *wanted = Some(addresses);
            changes
        });
    }

    /// Holds them until cancelled. They stay held afterwards, as Services stay in force.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut wanted = self.wanted.subscribe();
        let mut left = 0;
        let mut told = String::new();
        loop {
            let now = wanted.borrow_and_update().clone();
            if let Some(now) = now {
                let held = Arc::clone(&self);
                let (announces, many) = (left > 0, !now.is_empty());
                let turn = tokio::task::spawn_blocking(move || held.turn(&now, announces)).await;
                match turn.expect("holding addresses does not panic") {
                    Ok(taken) => {
                        left = if taken { ANNOUNCEMENTS } else { left };
                        told.clear();
                    }
                    Err(error) if many || error.to_string() != told => {
                        let words = error.to_string();
                        if words != told {
                            tracing::error!(
                                error = words,
                                "addresses of Services are not held as they should be; trying on"
                            );
                            told = words;
                        }
                    }
                    Err(_) => {}
                }
                left = left.saturating_sub(1);
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = wanted.changed() => {}
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
    }

    /// Says whether any address was taken.
    fn turn(&self, wanted: &BTreeSet<Ipv4Addr>, announces: bool) -> Result<bool, NetworkError> {
        let own = self.read();
        if wanted.is_empty() && own.is_empty() {
            return Ok(false);
        }
        let mut netlink = Netlink::open()?;
        let link = netlink.link_of(self.node_address)?;
        let link = link.ok_or(NetworkError::NoLink { address: self.node_address })?;
        let present: BTreeSet<Ipv4Addr> = netlink
            .addresses_of(&link)?
            .into_iter()
            .filter_map(|prefix| match prefix.address() {
                IpAddr::V4(address) if prefix.length() == 32 => Some(address),
                _ => None,
            })
            .collect();
        if !wanted.is_subset(&own) {
            self.write(&own.union(wanted).copied().collect())?;
        }
        for address in own.difference(wanted).filter(|address| present.contains(address)) {
            netlink.delete_address(&link, Prefix::host(IpAddr::V4(*address)))?;
            tracing::info!(%address, link, "an address of Services is another node's now");
        }
        let mut taken = false;
        for address in wanted {
            let is_new = !present.contains(address);
            if is_new {
                netlink.add_address(&link, Prefix::host(IpAddr::V4(*address)))?;
                tracing::info!(%address, link, "this node holds an address of Services");
            }
            if is_new || announces {
                announce_address(&link, *address)?;
            }
            taken |= is_new;
        }
        if own != *wanted {
            self.write(wanted)?;
        }
        Ok(taken)
    }

    fn read(&self) -> BTreeSet<Ipv4Addr> {
        fs::read(&self.file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn write(&self, addresses: &BTreeSet<Ipv4Addr>) -> Result<(), NetworkError> {
        let failed = |source: io::Error| NetworkError::File { path: self.file.clone(), source };
        let bytes = serde_json::to_vec(addresses).expect("addresses are strings");
        let temporary = self.file.with_extension("tmp");
        fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &self.file)).map_err(failed)
    }
}
