//! `barque node`.

use anyhow::Context as _;

use crate::cli::ConfigArgs;
use crate::{config, signals};

/// Worker threads: an agent waits more than it works, and each thread costs memory.
const WORKER_THREADS_MAX: usize = 2;

/// Runs a node agent until TERM or INT: its pods go on without it. PWR says that the host goes down: its pods
/// end first, as the configuration gives them time.
pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let config: node::Config = config::read(args.config.as_deref(), &args.set)?;
    config.validate().context("the configuration cannot be used")?;
    super::run_service(WORKER_THREADS_MAX, async move {
        let shutdown = signals::shutdown_token()?;
        let host_shutdown = signals::host_shutdown_token()?;
        Ok(node::run_until(config, shutdown, host_shutdown).await?)
    })
}
