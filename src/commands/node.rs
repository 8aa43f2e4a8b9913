//! `barque node`.

use anyhow::Context as _;

use crate::cli::ConfigFile;
use crate::{config, signals};

/// Worker threads: an agent waits more than it works, and each thread costs memory.
const WORKER_THREADS_MAX: usize = 2;

/// Runs a node agent until TERM or INT: its pods go on without it. PWR says that the host goes down: its pods
/// end first, as the configuration gives them time.
pub(crate) fn run(args: &ConfigFile) -> anyhow::Result<()> {
    let config: node::Config = config::load(&args.config)?;
    config
        .validate()
        .with_context(|| format!("the configuration file {} cannot be used", args.config.display()))?;
    super::run_service(WORKER_THREADS_MAX, async move {
        let shutdown = signals::shutdown_token()?;
        let host_shutdown = signals::host_shutdown_token()?;
        Ok(node::run_until(config, shutdown, host_shutdown).await?)
    })
}
