//! `barque control`.

use anyhow::Context as _;

use crate::cli::ConfigFile;
use crate::{config, signals};

/// Worker threads: consensus is one task after another, and three replicas share a small machine.
const WORKER_THREADS_MAX: usize = 4;

/// Runs a control-plane replica until TERM or INT.
pub(crate) fn run(args: &ConfigFile) -> anyhow::Result<()> {
    let config: control::Config = config::load(&args.config)?;
    config
        .validate()
        .with_context(|| format!("the configuration file {} cannot be used", args.config.display()))?;
    super::run_service(WORKER_THREADS_MAX, async move {
        let shutdown = signals::shutdown_token()?;
        Ok(control::run(config, shutdown).await?)
    })
}
