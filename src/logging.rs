//! Logging of the long-running commands: to stderr, one line an event, filtered by target.
//!
//! Standard output stays free for what a command is asked to print.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging. `filter` is a level, or levels by target: `info,raft_store=debug`.
pub(crate) fn start(filter: &str) -> anyhow::Result<()> {
    let targets = parse(filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(targets).try_init().context("cannot start logging")
}

fn parse(filter: &str) -> anyhow::Result<Targets> {
    filter.parse().with_context(|| {
        format!("cannot read --log-level {filter:?}: give error, warn, info, debug or trace, or target=level, separated by commas")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_levels_by_target() {
        for filter in ["info", "debug", "info,raft_store=debug", "off"] {
            parse(filter).unwrap();
        }
        let error = parse("raft=loud").unwrap_err().to_string();
        assert!(error.contains("\"raft=loud\""), "{error}");
    }
}
