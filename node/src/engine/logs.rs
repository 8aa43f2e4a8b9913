//! What a container has written, while it runs and afterwards, until it is removed.

use std::time::Duration;

use super::{Engine, EngineError};
use crate::streaming::log_files::{LogReader, Wanted};

/// How often a followed log is looked at when nothing comes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);

/// What of a log is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// The last lines only.
    pub tail: Option<u64>,
    /// Begin each line with its time.
    pub timestamps: bool,
}

/// Some of a container's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// Whether it came on standard error.
    pub is_error: bool,
    /// As it came.
    pub text: Vec<u8>,
}

/// A place in a container's log.
pub struct Logs<'a> {
    engine: &'a Engine,
    id: String,
    follow: bool,
    reader: LogReader,
}

impl Engine {
    /// Reads a container's log.
    pub fn logs(&self, reference: &str, options: LogOptions) -> Result<Logs<'_>, EngineError> {
        let id = self.records.find(reference)?.id;
        let path = self.records.dir(&id).join("log");
        let wanted = Wanted { tail_lines: options.tail, timestamps: options.timestamps, ..Wanted::default() };
        let reader = LogReader::open(&path, wanted).map_err(EngineError::io("read", &path))?;
        Ok(Logs { engine: self, id, follow: options.follow, reader })
    }
}

impl Logs<'_> {
    /// What comes next; waits for it when the log is followed. `None`: no more.
    pub fn next_pieces(&mut self) -> Result<Option<Vec<LogPiece>>, EngineError> {
        loop {
            // Asked before reading: what was written before the end is read after it.
            let more = self.follow && self.runs()?;
            let path = || self.engine.records.dir(&self.id).join("log");
            let pieces = self.reader.read_pieces().map_err(|error| EngineError::io("read", path())(error))?;
            let pieces: Vec<LogPiece> = pieces
                .unwrap_or_default()
                .into_iter()
                .map(|piece| LogPiece { is_error: piece.is_error, text: piece.text })
                .collect();
            if !pieces.is_empty() {
                return Ok(Some(pieces));
            }
            if !more {
                return Ok(None);
            }
            std::thread::sleep(FOLLOW_INTERVAL);
        }
    }

    fn runs(&self) -> Result<bool, EngineError> {
        match self.engine.records.read(&self.id)? {
            Some(record) => self.engine.is_running(&record),
            None => Ok(false),
        }
    }
}
