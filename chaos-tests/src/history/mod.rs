//! Histories: what clients asked and what they were told, in the order in which it happened.
//!
//! Owns the record of a run ([`Event`], [`History`]), the pairing of calls with their ends ([`Operation`]) and
//! the file forms: JSON lines ([`json`]) and Jepsen's EDN ([`edn`]). It promises that what is written is read
//! again as it was. It does not judge: that is [`crate::checker`]'s.
//!
//! The words are Jepsen's. A process is one client with at most one operation under way. *ok*: it was done. *fail*: it was certainly
//! not done. *info*: nobody knows, and it may be done at any later time.

pub mod edn;
pub mod json;
mod recorder;

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use recorder::Recorder;

/// The process under whose name faults stand in a history.
pub const NEMESIS: i64 = -1;

/// Why a history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not in the form it should have.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Where, counted from one.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The events contradict each other.
    #[error("event {index}: {reason}; is the file complete, and in order?")]
    Order {
        /// Which event.
        index: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What an event says of its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It begins.
    Invoke,
    /// It was done.
    Ok,
    /// It was not done.
    Fail,
    /// Nobody knows.
    Info,
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Begin, or kind of end.
    #[serde(rename = "type")]
    pub phase: Phase,
    /// What the operation is: `read`, `write`, `txn`, …
    pub f: String,
    /// What is asked, or what was told.
    #[serde(default)]
    pub value: Value,
    /// Nanoseconds since the run began.
    #[serde(default)]
    pub time: u64,
    /// Who.
    pub process: i64,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It was done.
    Ok,
    /// It was not done.
    Fail,
    /// Nobody knows.
    Info,
}

/// A call with its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Operation {
    /// What it is.
    pub f: String,
    /// Who.
    pub process: i64,
    /// What was asked.
    pub asked: Value,
    /// What was told; what was asked if nothing was told.
    pub told: Value,
    /// How it ended.
    pub end: End,
    /// Position of its beginning in the history.
    pub call: usize,
    /// Position of its end; none if it never ended.
    pub ret: Option<usize>,
    /// When it began, in nanoseconds.
    pub call_ns: u64,
    /// When it ended.
    pub ret_ns: Option<u64>,
    /// What was said of its failure.
    pub error: Option<String>,
}

impl Operation {
    /// Whether it certainly ended before the other began.
    pub fn precedes(&self, other: &Self) -> bool {
        self.end == End::Ok && self.ret.is_some_and(|ret| ret < other.call)
    }
}

/// Everything that was recorded of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// In the order in which they happened.
    pub events: Vec<Event>,
}

impl History {
    /// Reads a file: Jepsen's EDN if its name ends with `.edn`, else JSON lines.
    ///
    /// # Errors
    /// When it cannot be read or is no history.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            operation: "read",
            path: path.display().to_string(),
            source,
        })?;
        if path.extension().is_some_and(|extension| extension == "edn") {
            edn::parse(&text)
        } else {
            json::parse(&text)
        }
    }

    /// Writes a file, in the form that its name asks for.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = if path.extension().is_some_and(|extension| extension == "edn") {
            edn::print(self)
        } else {
            json::print(self)
        };
        std::fs::write(path, text).map_err(|source| Error::Io {
            operation: "write",
            path: path.display().to_string(),
            source,
        })
    }

    /// The operations of clients, in the order of their beginnings.
    ///
    /// # Errors
    /// When an end has no beginning, or a process begins twice.
    pub fn operations(&self) -> Result<Vec<Operation>, Error> {
        let mut operations: Vec<Operation> = Vec::with_capacity(self.events.len() / 2);
        let mut open: HashMap<i64, usize> = HashMap::new();
        for (index, event) in self.events.iter().enumerate() {
            if event.process < 0 {
                continue;
            }
            if event.phase == Phase::Invoke {
                if open.insert(event.process, operations.len()).is_some() {
                    let reason = format!("process {} begins again before its last call ended", event.process);
                    return Err(Error::Order { index, reason });
                }
                operations.push(begun(event, index));
                continue;
            }
            let Some(number) = open.remove(&event.process) else {
                let reason = format!("process {} ends a call that it never began", event.process);
                return Err(Error::Order { index, reason });
            };
            finish(&mut operations[number], event, index);
        }
        Ok(operations)
    }

    /// Faults: everything that the nemesis recorded.
    pub fn faults(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| event.process == NEMESIS)
    }

    /// When the last event happened.
    pub fn end_ns(&self) -> u64 {
        self.events.last().map_or(0, |event| event.time)
    }
}

fn begun(event: &Event, index: usize) -> Operation {
    Operation {
        f: event.f.clone(),
        process: event.process,
        asked: event.value.clone(),
        told: event.value.clone(),
        end: End::Info,
        call: index,
        ret: None,
        call_ns: event.time,
        ret_ns: None,
        error: None,
    }
}

fn finish(operation: &mut Operation, event: &Event, index: usize) {
    operation.end = match event.phase {
        Phase::Ok => End::Ok,
        Phase::Fail => End::Fail,
        Phase::Invoke | Phase::Info => End::Info,
    };
    operation.ret = Some(index);
    operation.ret_ns = Some(event.time);
    operation.error.clone_from(&event.error);
    if operation.end == End::Ok {
        operation.told = event.value.clone();
    }
}
