//! Work that would hold an event loop up.

use std::io;

use tokio::sync::mpsc;
use tokio::task::JoinError;

/// Pieces that a simulation lets wait for their reader, whatever bound was asked for: its states are small.
#[cfg(feature = "simulation")]
const PIECES_IN_SIMULATION_MAX: usize = 4096;

/// Does it on a thread for such work; in a simulation, which has one thread, at once.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(feature = "simulation")]
    if crate::simulation::is_on() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Has such work make pieces, one after the other, for whoever takes them; it waits when so many are not taken yet.
pub(crate) fn make_pieces<T: Send + 'static>(
    waiting_max: usize,
    work: impl FnOnce(Pieces<T>) + Send + 'static,
) -> mpsc::Receiver<T> {
    #[cfg(feature = "simulation")]
    if crate::simulation::is_on() {
        let (tx, rx) = mpsc::channel(PIECES_IN_SIMULATION_MAX);
        work(Pieces(tx));
        return rx;
    }
    let (tx, rx) = mpsc::channel(waiting_max);
    tokio::task::spawn_blocking(move || work(Pieces(tx)));
    rx
}

/// Where such work puts what it makes.
pub(crate) struct Pieces<T>(mpsc::Sender<T>);

impl<T> Pieces<T> {
    /// Hands a piece over; an error when nobody takes any more.
    pub(crate) fn put(&self, piece: T) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        if crate::simulation::is_on() {
            return self.0.try_send(piece).map_err(|_| gone());
        }
        self.0.blocking_send(piece).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked for it has gone")
}
