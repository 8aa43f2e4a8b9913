//! `barque cri`.

use anyhow::Context as _;

use crate::cli::CriArgs;
use crate::{config, signals};

/// Worker threads: the server waits more than it works.
const WORKER_THREADS_MAX: usize = 2;

/// Serves the container runtime interface until TERM or INT. Its containers go on without it.
pub(crate) fn run(args: &CriArgs) -> anyhow::Result<()> {
    let mut config: node::cri::CriConfig = config::read(args.config.as_deref(), &args.set)?;
    if let Some(socket) = &args.socket {
        config.socket = std::path::absolute(socket).context("--socket cannot be made an absolute path")?;
    }
    config.validate()?;
    super::run_service(WORKER_THREADS_MAX, async move {
        let shutdown = signals::shutdown_token()?;
        Ok(node::cri::run(config, shutdown).await?)
    })
}
