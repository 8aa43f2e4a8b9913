//! When a client's turns come, and what it chooses by.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The turns of one client, until it is time to end.
pub(super) struct Pace {
    stop: CancellationToken,
    pause: Duration,
    next: Instant,
}

impl Pace {
    pub(super) fn new(stop: CancellationToken, pause: Duration) -> Self {
        Self { stop, pause, next: Instant::now() }
    }

    /// Waits for the next turn; false when it is time to end.
    pub(super) async fn turn(&mut self) -> bool {
        self.next = (self.next + self.pause).max(Instant::now());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep_until(self.next) => true,
        }
    }
}

/// What the client of that number chooses by, in a run from that seed.
pub(super) fn random_of(seed: u64, client: usize) -> StdRng {
    StdRng::seed_from_u64(seed ^ (client as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
