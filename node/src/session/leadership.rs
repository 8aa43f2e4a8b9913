//! Who leads, as the replicas' own words add up: the replica that says it leads under the newest epoch.

use std::net::SocketAddr;
use std::sync::Mutex;

/// The newest claim of leadership.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    newest: Mutex<Option<Claim>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Claim {
    epoch: u64,
    /// `None` once the claimant has given up or was lost.
    address: Option<SocketAddr>,
}

impl Leadership {
    /// A replica says what it is. Returns whether it leads now.
    pub(crate) fn role(&self, address: SocketAddr, leader: bool, epoch: u64) -> bool {
        let mut newest = self.newest.lock().expect("no holder of the leadership panics");
        let known = newest.map_or(0, |c| c.epoch);
        match *newest {
            _ if leader && epoch >= known => *newest = Some(Claim { epoch, address: Some(address) }),
            Some(claim) if claim.address == Some(address) => *newest = Some(Claim { address: None, ..claim }),
            _ => {}
        }
        newest.is_some_and(|c| c.address == Some(address))
    }

    /// A replica's session ended.
    pub(crate) fn lost(&self, address: SocketAddr) {
        self.role(address, false, 0);
    }

    /// Whether something said under `epoch` counts: not when a newer epoch is known.
    pub(crate) fn counts(&self, epoch: u64) -> bool {
        self.newest.lock().expect("no holder of the leadership panics").is_none_or(|c| epoch >= c.epoch)
    }

    /// Whether this replica leads, as far as is known.
    pub(crate) fn leads(&self, address: SocketAddr) -> bool {
        let newest = self.newest.lock().expect("no holder of the leadership panics");
        newest.is_some_and(|c| c.address == Some(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn the_newest_epoch_leads() {
        let leadership = Leadership::default();
        assert!(leadership.counts(0));
        assert!(leadership.role(address(1), true, 5));
        assert!(!leadership.role(address(2), true, 4), "an old leader that does not know it");
        assert!(leadership.leads(address(1)));
        assert!(leadership.role(address(2), true, 6));
        assert!(!leadership.leads(address(1)));
        assert!(!leadership.counts(5));
        assert!(leadership.counts(6));
    }

    #[test]
    fn losing_the_leader_keeps_its_epoch() {
        let leadership = Leadership::default();
        leadership.role(address(1), true, 5);
        leadership.lost(address(2));
        assert!(leadership.leads(address(1)));
        leadership.lost(address(1));
        assert!(!leadership.leads(address(1)));
        assert!(!leadership.counts(4));
        assert!(leadership.role(address(1), true, 5), "the same leader, dialled again");
    }
}
