//! The program inside the containers that are measured: prints the machine's monotonic clock in nanoseconds, as
//! its first deed; and, told so, waits for its end.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};

/// The word that makes this binary that program.
pub(crate) const WORD: &str = "bench-clock";

/// The word that makes it stay.
pub(crate) const REST: &str = "rest";

/// Prints the clock, and stays if it is to.
pub(crate) fn main() -> ExitCode {
    let printed = now().map(|now| writeln!(std::io::stdout(), "{}", now.as_nanos()));
    if std::env::args().nth(2).as_deref() == Some(REST) {
        let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        // As the first process of its namespace it is sent only what it asks for.
        let _asked = ends.thread_block().and_then(|()| ends.wait());
    }
    if matches!(printed, Ok(Ok(()))) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The monotonic clock, which all processes of a machine share.
pub(crate) fn now() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from)
}

/// What [`main`] printed, in a log of ours or of another runtime: the last word of the last line.
pub(crate) fn parse(log: &str) -> Option<Duration> {
    log.split_ascii_whitespace().next_back()?.parse().ok().map(Duration::from_nanos)
}
