//! `barque demo quote` and `barque demo quote-writer`: one-line texts that differ each time.
//!
//! The writer ends at INT only: TERM is not handled, so as process 1 of a container it needs the whole grace period,
//! which is what the books' example shows.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::print_line;

/// The environment variable with the writer's period in seconds.
const INTERVAL: &str = "INTERVAL";
const INTERVAL_DEFAULT_S: u64 = 30;

/// Our own words.
const QUOTES: [&str; 8] = [
    "A cluster is a promise kept by many.",
    "What is written down twice is remembered once.",
    "The leader is whoever the others wait for.",
    "Nothing is faster than what need not be done.",
    "A test that cannot fail has nothing to say.",
    "Every queue ends somewhere, or everything does.",
    "It worked on my machine; now it is your machine.",
    "Who restarts first, restarts last.",
];

/// Flags of `demo quote-writer`.
#[derive(Debug, Args)]
pub(crate) struct WriterArgs {
    /// The file to write.
    #[arg(default_value = "/var/local/output/quote")]
    file: PathBuf,
}

/// Prints one.
pub(super) fn print() -> anyhow::Result<()> {
    crate::commands::print(&quote())
}

/// A line that was not made before: its number is the time.
fn quote() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let number = since.as_nanos() / 1000;
    let index = usize::try_from(number % QUOTES.len() as u128).unwrap_or_default();
    format!("{} (No. {number})\n", QUOTES[index])
}

/// Writes one every interval until INT.
pub(super) async fn write(args: &WriterArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for INT")?;
    let seconds = match std::env::var(INTERVAL) {
        Ok(text) => text.parse().with_context(|| format!("{INTERVAL}={text} is no number of seconds"))?,
        Err(_) => INTERVAL_DEFAULT_S,
    };
    print_line(format_args!("Quote writer"));
    print_line(format_args!(
        "Configured to write a quote to {} every {seconds} seconds",
        args.file.display()
    ));
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        print_line(format_args!("{} Writing quote...", now.as_secs()));
        replace(&args.file)?;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds.max(1))) => {}
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

fn replace(file: &Path) -> anyhow::Result<()> {
    std::fs::write(file, quote()).with_context(|| format!("cannot write {}", file.display()))
}
