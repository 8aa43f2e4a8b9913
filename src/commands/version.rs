//! `barque version`.

use std::io::Write as _;

/// Prints the version.
pub(crate) fn run() -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "barque {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
