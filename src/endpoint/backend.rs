//! What is known of each master, and the choice among them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// How a master fares, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// Answered that it is ready: it knows a leader and serves.
    Ready,
    /// Answered that it is not ready.
    Unready,
    /// Did not answer the last question, or was not asked yet.
    Suspect,
    /// Refuses connections, closed one, or has been silent for long.
    Unreachable,
}

/// One master.
#[derive(Clone)]
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    health: Arc<watch::Sender<Health>>,
    /// Counts the times that the master's connections had to be cut.
    cuts: Arc<watch::Sender<u64>>,
}

impl Backend {
    /// Its newest health.
    pub(super) fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// Notes its health; when it became unreachable, its connections are cut.
    pub(super) fn set_health(&self, health: Health) {
        let before = self.health.send_replace(health);
        if before != health {
            tracing::info!(master = %self.address, ?before, now = ?health, "master's health changed");
            if health == Health::Unreachable {
                self.cut();
            }
        }
    }

    /// Cuts all connections to it.
    pub(super) fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }

    /// Changes when connections made before are to be cut.
    pub(super) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }
}

/// All masters.
#[derive(Clone)]
pub(super) struct Backends {
    all: Arc<[Backend]>,
    /// Where the next choice among equals begins.
    turn: Arc<AtomicUsize>,
}

impl Backends {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        let all = addresses
            .iter()
            .map(|&address| Backend {
                address,
                health: Arc::new(watch::Sender::new(Health::Suspect)),
                cuts: Arc::new(watch::Sender::new(0)),
            })
            .collect();
        Self { all, turn: Arc::new(AtomicUsize::new(0)) }
    }

    pub(super) fn all(&self) -> &[Backend] {
        &self.all
    }

    /// Whether any master is ready.
    pub(super) fn any_ready(&self) -> bool {
        self.all.iter().any(|backend| backend.health() == Health::Ready)
    }

    /// The masters in the order in which a new connection should try them: the best first, equals in turn.
    pub(super) fn by_preference(&self) -> Vec<Backend> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<Backend> = self.all.to_vec();
        order.rotate_left(turn % self.all.len().max(1));
        // A stable sort keeps the rotation among equals.
        order.sort_by_key(Backend::health);
        order
    }

    /// Waits until some master is ready.
    pub(super) async fn until_ready(&self) {
        let waits = self.all.iter().map(|backend| {
            let mut health = backend.health.subscribe();
            Box::pin(async move {
                if health.wait_for(|health| *health == Health::Ready).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        });
        futures_util::future::select_all(waits).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_take_turns_and_the_rest_come_last() {
        let addresses: Vec<SocketAddr> =
            (1..=4).map(|last| SocketAddr::from(([10, 0, 0, last], 6443))).collect();
        let backends = Backends::new(&addresses);
        let healths = [Health::Unreachable, Health::Ready, Health::Unready, Health::Ready];
        for (backend, health) in backends.all().iter().zip(healths) {
            backend.set_health(health);
        }
        let mut firsts = Vec::new();
        for _ in 0..4 {
            let order = backends.by_preference();
            firsts.push(order[0].address);
            assert_eq!(order[2].address, addresses[2], "unready after ready");
            assert_eq!(order[3].address, addresses[0], "unreachable last");
        }
        assert!(firsts.contains(&addresses[1]) && firsts.contains(&addresses[3]), "{firsts:?}");
    }

    #[test]
    fn becoming_unreachable_cuts_once() {
        let backends = Backends::new(&["10.0.0.1:6443".parse().unwrap()]);
        let backend = &backends.all()[0];
        let mut cuts = backend.cuts();
        backend.set_health(Health::Ready);
        assert!(!cuts.has_changed().unwrap());
        backend.set_health(Health::Unreachable);
        assert!(cuts.has_changed().unwrap());
        cuts.mark_unchanged();
        backend.set_health(Health::Unreachable);
        assert!(!cuts.has_changed().unwrap());
    }
}
