//! `barque control`.

use anyhow::Context as _;
use tokio::sync::watch;

use crate::cli::ConfigArgs;
use crate::{config, signals, virtual_address};

/// Worker threads: consensus is one task after another, and three replicas share a small machine.
const WORKER_THREADS_MAX: usize = 4;

/// Runs a control-plane replica until TERM or INT.
pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let config: control::Config = config::read(args.config.as_deref(), &args.set)?;
    config.validate().context("the configuration cannot be used")?;
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
