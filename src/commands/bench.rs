//! `barque bench`.

use crate::bench::{self, BenchCommand};

/// Threads of the coordinator: load is generated on threads of its own.
const WORKER_THREADS_MAX: usize = 1;

/// Measures.
pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<()> {
    let event_loop = super::event_loop(WORKER_THREADS_MAX)?;
    match command {
        BenchCommand::Store(args) => event_loop.block_on(bench::run(args)),
        BenchCommand::Pods(args) => event_loop.block_on(bench::pods::run(args)),
        BenchCommand::Network(args) => bench::network::run(args),
        BenchCommand::Failover(args) => event_loop.block_on(bench::failover::run(args)),
        BenchCommand::Api(args) => event_loop.block_on(bench::api::run(args)),
        BenchCommand::Scheduler(args) => event_loop.block_on(bench::scheduler::run(args)),
    }
}
