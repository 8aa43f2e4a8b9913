//! What a container has written, while it runs and afterwards, until it is removed.

use super::{Engine, EngineError};
pub use crate::streaming::log_files::LogPiece;
use crate::streaming::log_files::{LogReader, Wanted};

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
        let (engine, id) = (self.engine, &self.id);
        let runs = || match engine.records.read(id)? {
            Some(record) => engine.is_running(&record),
            None => Ok(false),
        };
        let follow = self.follow;
        self.reader.next_pieces(|| Ok(follow && runs()?), |path, error| EngineError::io("read", path)(error))
    }
}
