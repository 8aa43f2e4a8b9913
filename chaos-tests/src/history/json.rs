//! Histories as JSON lines: one event a line, as `{"type":"ok","f":"read","value":[1,3],"time":12,"process":0}`.
//!
//! An incomplete last line, as a run that was killed leaves it, is dropped; any other damage is an error.

use super::{Error, Event, History};

/// Reads events.
///
/// # Errors
/// With the first line that is none.
pub fn parse(text: &str) -> Result<History, Error> {
    let mut events = Vec::new();
    let complete = text.ends_with('\n');
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Event>(line) {
            Ok(event) => events.push(event),
            Err(_) if !complete && number + 1 == lines.len() => {}
            Err(error) => return Err(Error::Syntax { line: number + 1, reason: error.to_string() }),
        }
    }
    Ok(History { events })
}

/// Writes events.
pub fn print(history: &History) -> String {
    history.events.iter().map(|event| line(event) + "\n").collect()
}

/// One event as a line without its end.
pub(super) fn line(event: &Event) -> String {
    serde_json::to_string(event).expect("an event holds nothing that JSON cannot say")
}
