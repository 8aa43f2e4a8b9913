//! `barque control`.

use anyhow::Context as _;
use tokio::sync::watch;

use crate::cli::ConfigFile;
use crate::{config, signals, virtual_address};

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
        let (leading, leads) = watch::channel(false);
        let own = config.advertised().ip();
        let holding =
            config.virtual_address.map(|address| tokio::spawn(virtual_address::hold(address, own, leads)));
        let ended = control::run_telling(config, leading, shutdown).await;
        // It ends with the replica, and gives the address up.
        if let Some(holding) = holding {
            holding.await.context("the virtual address was not given up")?;
        }
        Ok(ended?)
    })
}
