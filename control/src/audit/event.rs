//! One event, in the words of `audit.k8s.io/v1`.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Level;
use crate::auth::Identity;

/// How far a request has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// It came in.
    RequestReceived,
    /// A stream's headers went out.
    ResponseStarted,
    /// Nothing more will be sent.
    ResponseComplete,
    /// Its handling panicked.
    Panic,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// How a request was answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The HTTP code.
    pub code: u16,
    /// The `Status` that was sent, if it was one.
    pub status: Option<Value>,
    /// The body, if the level wants it.
    pub object: Option<Value>,
}

/// An event that is being put together.
#[derive(Debug, Clone)]
pub struct Event {
    fields: Map<String, Value>,
}

impl Event {
    /// An event about a request of that identity.
    pub fn new(id: &str, level: Level, stage: Stage, identity: &Identity) -> Self {
        let now = time();
        let event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": format!("{level:?}"),
            "auditID": id,
            "stage": stage.as_str(),
            "user": user(identity),
            "requestReceivedTimestamp": now,
            "stageTimestamp": now,
        });
        let Value::Object(fields) = event else { unreachable!("it was written as an object") };
        Self { fields }
    }

    /// Sets a field, unless there is nothing to say.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        let says = match &value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        if says {
            self.fields.insert(field.to_owned(), value);
        }
        self
    }

    /// Sets whom the request was made as.
    #[must_use]
    pub fn impersonated(self, identity: Option<&Identity>) -> Self {
        self.with("impersonatedUser", identity.map_or(Value::Null, user))
    }

    /// The same request, further on.
    #[must_use]
    pub fn at(mut self, stage: Stage) -> Self {
        self.fields.insert("stage".to_owned(), json!(stage.as_str()));
        self.fields.insert("stageTimestamp".to_owned(), json!(time()));
        self
    }

    /// Sets how it was answered.
    #[must_use]
    pub fn answered(self, answer: Answer) -> Self {
        let mut status = json!({"metadata": {}, "code": answer.code});
        for field in ["status", "message", "reason"] {
            if let Some(said) = answer.status.as_ref().and_then(|status| status.get(field)) {
                status[field] = said.clone();
            }
        }
        self.with("responseStatus", status).with("responseObject", answer.object.unwrap_or_default())
    }

    /// The line of the log.
    pub(super) fn line(&self) -> String {
        let mut line = serde_json::to_string(&self.fields).unwrap_or_default();
        line.push('\n');
        line
    }
}

fn time() -> String {
    api::object::micro_timestamp(Timestamp::now())
}

fn user(identity: &Identity) -> Value {
    let mut user = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        user["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}
