//! Writes a history while it happens.
//!
//! One lock gives the order: a call is recorded before it is sent and its end after the answer came, so that
//! what the order says to be earlier was earlier. Lines reach the file as they come; a run that is killed leaves a
//! history that can be checked.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Error, Event, History, Phase, json};

/// Events that one run may record; what comes later is not recorded and the run says so.
const EVENTS_MAX: usize = 20_000_000;

struct Inner {
    events: Vec<Event>,
    file: Option<BufWriter<File>>,
    refused: u64,
}

/// Where the times of events come from.
#[derive(Clone, Copy)]
enum Clock {
    Since(Instant),
    Told(fn() -> Duration),
}

/// A history that grows. Clones write to the same one.
#[derive(Clone)]
pub struct Recorder {
    clock: Clock,
    inner: Arc<Mutex<Inner>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::to(None, Clock::Since(Instant::now()))
    }
}

impl Recorder {
    /// Keeps the history in memory and, line by line, in a file.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn to_file(path: &Path) -> Result<Self, Error> {
        Self::to_file_since(path, Instant::now())
    }

    /// The same, for one of several histories of a run that began at that moment.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn to_file_since(path: &Path, began: Instant) -> Result<Self, Error> {
        let file = File::create(path).map_err(|source| Error::Io {
            operation: "create",
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self::to(Some(BufWriter::new(file)), Clock::Since(began)))
    }

    /// Keeps the history in memory; its times are those of a clock that says how long the run has lasted.
    pub fn on_clock(clock: fn() -> Duration) -> Self {
        Self::to(None, Clock::Told(clock))
    }

    fn to(file: Option<BufWriter<File>>, clock: Clock) -> Self {
        let inner = Inner { events: Vec::new(), file, refused: 0 };
        Self { clock, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        let elapsed = match self.clock {
            Clock::Since(began) => began.elapsed(),
            Clock::Told(clock) => clock(),
        };
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    /// A call begins. Call this before anything is sent.
    pub fn invoke(&self, process: i64, f: &str, value: Value) {
        self.push(Phase::Invoke, process, (f, value), None);
    }

    /// It was done.
    pub fn ok(&self, process: i64, f: &str, value: Value) {
        self.push(Phase::Ok, process, (f, value), None);
    }

    /// It was certainly not done.
    pub fn fail(&self, process: i64, f: &str, value: Value, error: impl Into<String>) {
        self.push(Phase::Fail, process, (f, value), Some(error.into()));
    }

    /// Nobody knows; or a note of the nemesis.
    pub fn info(&self, process: i64, f: &str, value: Value, error: Option<String>) {
        self.push(Phase::Info, process, (f, value), error);
    }

    fn push(&self, phase: Phase, process: i64, (f, value): (&str, Value), error: Option<String>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.events.len() >= EVENTS_MAX {
            inner.refused += 1;
            return;
        }
        let event = Event { phase, f: f.to_owned(), value, time: self.now_ns(), process, error };
        if let Some(file) = &mut inner.file {
            // The history in memory is what this run judges by; a full disk costs the copy only.
            let _lost = writeln!(file, "{}", json::line(&event));
        }
        inner.events.push(event);
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).events.len()
    }

    /// Whether nothing was recorded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events that came after the bound.
    pub fn refused(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).refused
    }

    /// Visits the events from position `from` on; returns the position of the next.
    pub fn since(&self, from: usize, mut visit: impl FnMut(&Event)) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.events.iter().skip(from).for_each(&mut visit);
        inner.events.len()
    }

    /// What was recorded so far; the file is complete up to here.
    pub fn history(&self) -> History {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            let _lost = file.flush();
        }
        History { events: inner.events.clone() }
    }
}
