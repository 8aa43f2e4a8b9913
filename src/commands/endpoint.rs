//! `barque endpoint`.

use anyhow::Context as _;

use crate::cli::EndpointArgs;
use crate::{endpoint, signals};

/// Runs the endpoint until TERM or INT.
pub(crate) fn run(args: &EndpointArgs) -> anyhow::Result<()> {
    // It moves bytes; one thread is plenty and keeps it small.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(async {
            let shutdown = signals::shutdown_token()?;
            endpoint::serve(args.listen, &args.ca, &args.masters, shutdown).await
        })
}
