//! Progress on the terminal: one line a step, with its time. A spinner where somebody watches, plain lines
//! where not. Everything goes to standard error, so that standard output holds results only.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(80);

/// A step under way.
pub(crate) struct Step {
    began: Instant,
    title: String,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Begins a step.
    pub(crate) fn begin(title: impl Into<String>) -> Self {
        let title = title.into();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {msg} {elapsed:>4.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style).with_message(title.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { began: Instant::now(), title, spinner }
    }

    /// Says what the step is waiting for, where somebody watches.
    pub(crate) fn waiting_for(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(format!("{} ({what})", self.title));
        }
    }

    /// Ends the step well.
    pub(crate) fn done(self) {
        self.end('✔');
    }

    /// Ends the step badly; the caller reports why.
    pub(crate) fn failed(self) {
        self.end('✘');
    }

    fn end(self, mark: char) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        line(format_args!("  {mark} {} ({:.2} s)", self.title, self.began.elapsed().as_secs_f64()));
    }
}

/// Prints a line to standard error.
pub(crate) fn line(text: std::fmt::Arguments<'_>) {
    // When standard error is closed there is nobody to tell.
    let _closed = writeln!(std::io::stderr(), "{text}");
}
