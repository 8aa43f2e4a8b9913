//! Histories in Jepsen's EDN: a vector of maps, or one map after another.
//!
//! Reads what Jepsen 0.1 to 0.3 writes (`{:type :invoke, :f :read, …}`, `#jepsen.history.Op{…}`) and writes the former. Keywords
//! become plain words inside; on the way out, map keys and the function of a micro-operation become keywords
//! again. Sets become vectors, characters and symbols become words. What a value cannot hold, such as ratios, is an error.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

use super::{Error, Event, History, NEMESIS, Phase};

/// How deep values may lie within values.
const DEPTH_MAX: usize = 64;

/// Reads a history.
///
/// # Errors
/// With the line where the text is not EDN, or an event lacks what it needs.
pub fn parse(text: &str) -> Result<History, Error> {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    let mut events = Vec::new();
    while let Some(value) = reader.next_value()? {
        let items = match value {
            Value::Array(items) => items,
            one => vec![one],
        };
        for item in items {
            let event = event(&item).map_err(|reason| reader.error(reason))?;
            events.push(event);
        }
    }
    Ok(History { events })
}

/// Writes a history, one event a line.
pub fn print(history: &History) -> String {
    let mut text = String::new();
    for (index, event) in history.events.iter().enumerate() {
        let phase = match event.phase {
            Phase::Invoke => "invoke",
            Phase::Ok => "ok",
            Phase::Fail => "fail",
            Phase::Info => "info",
        };
        text += "{:type :";
        text += phase;
        let _ = write!(text, ", :f :{}, :value ", event.f);
        print_value(&mut text, &event.value, event.f == "txn");
        let _ = write!(text, ", :time {}, :process ", event.time);
        match event.process {
            NEMESIS => text += ":nemesis",
            process => {
                let _ = write!(text, "{process}");
            }
        }
        let _ = write!(text, ", :index {index}");
        if let Some(error) = &event.error {
            let _ = write!(text, ", :error {}", Value::from(error.as_str()));
        }
        text += "}\n";
    }
    text
}

fn print_value(text: &mut String, value: &Value, in_txn: bool) {
    match value {
        Value::Null => *text += "nil",
        Value::Array(items) => {
            text.push('[');
            let micro_op = in_txn && items.len() == 3 && items[0].is_string();
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push(' ');
                }
                match item {
                    Value::String(word) if micro_op && at == 0 => {
                        let _ = write!(text, ":{word}");
                    }
                    other => print_value(text, other, in_txn),
                }
            }
            text.push(']');
        }
        Value::Object(entries) => {
            text.push('{');
            for (at, (key, item)) in entries.iter().enumerate() {
                if at > 0 {
                    *text += ", ";
                }
                if key.parse::<i64>().is_ok_and(|number| number.to_string() == *key) {
                    *text += key;
                } else if is_word(key) {
                    let _ = write!(text, ":{key}");
                } else {
                    let _ = write!(text, "{}", Value::from(key.as_str()));
                }
                text.push(' ');
                print_value(text, item, in_txn);
            }
            text.push('}');
        }
        plain => {
            let _ = write!(text, "{plain}");
        }
    }
}

fn is_word(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_?!*+.".contains(&byte))
}

fn event(value: &Value) -> Result<Event, String> {
    let Value::Object(fields) = value else { return Err(format!("an event is a map, not {value}")) };
    let word = |name: &str| fields.get(name).and_then(Value::as_str);
    let phase = match word("type") {
        Some("invoke") => Phase::Invoke,
        Some("ok") => Phase::Ok,
        Some("fail") => Phase::Fail,
        Some("info") => Phase::Info,
        _ => return Err(format!(":type of an event is :invoke, :ok, :fail or :info: {value}")),
    };
    let process = match fields.get("process") {
        Some(Value::Number(number)) => number.as_i64().ok_or("a process is a whole number")?,
        Some(Value::String(_)) => NEMESIS,
        _ => return Err(format!("an event needs a :process: {value}")),
    };
    Ok(Event {
        phase,
        f: word("f").unwrap_or_default().to_owned(),
        value: fields.get("value").cloned().unwrap_or_default(),
        time: fields.get("time").and_then(Value::as_u64).unwrap_or_default(),
        process,
        error: fields.get("error").filter(|error| !error.is_null()).map(|error| match error {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }),
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn error(&self, reason: impl Into<String>) -> Error {
        let end = self.at.min(self.bytes.len());
        let line = 1 + self.bytes[..end].iter().filter(|byte| **byte == b'\n').count();
        Error::Syntax { line, reason: reason.into() }
    }

    /// The next value, or none at the end of the text.
    fn next_value(&mut self) -> Result<Option<Value>, Error> {
        self.skip_blank(0)?;
        if self.at >= self.bytes.len() { Ok(None) } else { self.value(0).map(Some) }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Skips blanks, commas, comments and values that are commented out.
    fn skip_blank(&mut self, depth: usize) -> Result<(), Error> {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b',' => self.at += 1,
                b';' => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                b'#' if self.bytes.get(self.at + 1) == Some(&b'_') => {
                    self.at += 2;
                    self.value(depth + 1)?;
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        if depth > DEPTH_MAX {
            return Err(self.error(format!("values lie deeper than {DEPTH_MAX}")));
        }
        self.skip_blank(depth)?;
        match self.peek() {
            None => Err(self.error("the text ends within a value")),
            Some(b'[') => self.sequence(b']', depth),
            Some(b'(') => self.sequence(b')', depth),
            Some(b'{') => self.map(depth),
            Some(b'"') => self.string(),
            Some(b'\\') => {
                self.at += 1;
                let word = self.token();
                Ok(Value::String(word))
            }
            Some(b'#') => {
                self.at += 1;
                if self.peek() == Some(b'{') {
                    return self.sequence(b'}', depth);
                }
                // A tag: what it marks is read as it is.
                self.token();
                self.value(depth + 1)
            }
            Some(b']' | b')' | b'}') => Err(self.error("a bracket closes what was not opened")),
            Some(_) => self.atom(),
        }
    }

    fn sequence(&mut self, close: u8, depth: usize) -> Result<Value, Error> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_blank(depth)?;
            if self.peek() == Some(close) {
                self.at += 1;
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Error> {
        self.at += 1;
        let mut entries = Map::new();
        loop {
            self.skip_blank(depth)?;
            if self.peek() == Some(b'}') {
                self.at += 1;
                return Ok(Value::Object(entries));
            }
            let key = match self.value(depth + 1)? {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let item = self.value(depth + 1)?;
            entries.insert(key, item);
        }
    }

    fn string(&mut self) -> Result<Value, Error> {
        let begin = self.at;
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'\\' => self.at += 1,
                b'"' => {
                    let raw = &self.bytes[begin..self.at];
                    let text = serde_json::from_slice::<String>(raw);
                    // EDN has the escapes of JSON, and allows line ends as they are.
                    return text.map(Value::String).or_else(|_| {
                        let inner = String::from_utf8_lossy(&raw[1..raw.len() - 1]);
                        Ok(Value::String(inner.replace("\\\"", "\"").replace("\\\\", "\\")))
                    });
                }
                _ => {}
            }
        }
        Err(self.error("a string does not end"))
    }

    fn token(&mut self) -> String {
        let begin = self.at;
        while let Some(byte) = self.peek() {
            if byte.is_ascii_whitespace() || b",()[]{}\";".contains(&byte) {
                break;
            }
            self.at += 1;
        }
        String::from_utf8_lossy(&self.bytes[begin..self.at]).into_owned()
    }

    fn atom(&mut self) -> Result<Value, Error> {
        let token = self.token();
        if token.is_empty() {
            return Err(self.error("an unexpected character"));
        }
        Ok(match token.as_str() {
            "nil" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            text if text.starts_with(':') => Value::String(text[1..].to_owned()),
            text => match number(text) {
                Some(number) => Value::Number(number),
                None if text.as_bytes()[0].is_ascii_digit() => {
                    return Err(self.error(format!("{text} is no number that can be held")));
                }
                None => Value::String(text.to_owned()),
            },
        })
    }
}

fn number(text: &str) -> Option<Number> {
    let whole = text.trim_end_matches('N');
    if let Ok(number) = whole.parse::<i64>() {
        return Some(Number::from(number));
    }
    let first = text.as_bytes()[0];
    let numeric = first.is_ascii_digit() || (text.len() > 1 && matches!(first, b'-' | b'+'));
    if !numeric {
        return None;
    }
    text.trim_end_matches('M').parse::<f64>().ok().and_then(Number::from_f64)
}
