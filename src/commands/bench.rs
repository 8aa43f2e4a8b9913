//! `barque bench`.

use crate::bench::{self, BenchCommand};

/// Threads of the coordinator: load is generated on threads of its own.
const WORKER_THREADS_MAX: usize = 1;

/// Measures.
pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Store(args) = command;
    super::event_loop(WORKER_THREADS_MAX)?.block_on(bench::run(args))
}
