//! One module per subcommand. Each reads its flags, calls what does the work, and prints.

pub(crate) mod bench;
pub(crate) mod control;
pub(crate) mod down;
pub(crate) mod endpoint;
pub(crate) mod hello;
pub(crate) mod kubeconfig;
pub(crate) mod node;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod version;

use anyhow::Context as _;

/// An event loop on as many threads as the machine has processors, but not more than `threads_max`.
pub(crate) fn event_loop(threads_max: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.min(threads_max))
        .enable_all()
        .build()
        .context("cannot start the event loop")
}
