//! Work that would hold an event loop up.

use tokio::task::JoinError;

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
