//! Signals of the long-running commands.
//!
//! The first TERM or INT asks for an orderly stop; a second one ends the process at once, for the operator
//! who does not want to wait.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process that INT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that is cancelled at the first TERM or INT. Call inside a tokio runtime.
pub(crate) fn shutdown_token() -> anyhow::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::info!(signal = name, "stopping");
        cancel.cancel();
        let name = signals.next().await;
        tracing::warn!(signal = name, "stopping at once, without an orderly end");
        std::process::exit(EXIT_INTERRUPTED);
    });
    Ok(token)
}

/// A token that is cancelled at the first PWR: the host goes down. Call inside a tokio runtime.
pub(crate) fn host_shutdown_token() -> anyhow::Result<CancellationToken> {
    let kind = SignalKind::from_raw(nix::sys::signal::Signal::SIGPWR as i32);
    let mut power = signal(kind).context("cannot listen for PWR")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        if power.recv().await.is_some() {
            tracing::info!(signal = "PWR", "the host goes down");
            cancel.cancel();
        }
    });
    Ok(token)
}

/// TERM and INT as a sequence.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both signals over from now on. Call inside a tokio runtime.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for TERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for INT")?,
        })
    }

    /// Waits for the next one and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "TERM",
            _ = self.interrupt.recv() => "INT",
        }
    }
}
